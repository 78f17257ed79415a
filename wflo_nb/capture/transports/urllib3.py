"""urllib3, with requests, botocore and many others above it: seen where a pool makes one request on one connection, below its own
retries and redirects, so that each of them is a call of its own.

The module is an argument, never an import. Versions before 2 hand out the answer in another shape there and are not read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from wflo_nb.budget.account import Account
from wflo_nb.capture import gate
from wflo_nb.capture.exchange import REDIRECTS, Exchange
from wflo_nb.capture.shown import Request, concerns, is_seen_at, target
from wflo_nb.capture.sse import ACCEPTED, readable
from wflo_nb.capture.transports import admitted, cassettes, unread
from wflo_nb.capture.transports.notice import payer, quietly
from wflo_nb.capture.transports.patching import replace
from wflo_nb.capture.transports.signing import is_signed

#: The parameters of `HTTPConnectionPool._make_request` after the URL, and what they are if nobody says.
_ORDER = (
    *("body", "headers", "retries", "timeout", "chunked", "response_conn"),
    *("preload_content", "decode_content", "enforce_content_length"),
)
_DEFAULTS = {"body": None, "headers": None, "chunked": False, "response_conn": None, "preload_content": True, "decode_content": True}
_REWRITTEN = frozenset({"accept-encoding", "content-length", "content-encoding", "transfer-encoding"})
_readable = functools.lru_cache(64)(readable)


def patch(lib: ModuleType) -> Callable[[], None]:
    """Watch `urllib3.HTTPConnectionPool`. Returns the undo."""
    doors = ("_raw_read", "_handle_chunk", "_update_chunk_length")
    if not all(hasattr(lib.HTTPResponse, door) for door in doors) or not hasattr(lib.HTTPConnectionPool, "_make_request"):
        return unread.patch_urllib3(lib)
    return replace(lib.HTTPConnectionPool, "_make_request", functools.partial(_wrap, lib))


def _wrap(lib: ModuleType, make: Any) -> Any:
    once = quietly(make)

    def _make_request(self: Any, conn: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        account, parts = payer(), target(url)
        host, path = parts.hostname or self.host, unquote(parts.path)  # through a proxy the URL names the host
        if account is None or not concerns(method.upper(), host, path):
            return make(self, conn, method, url, *args, **kwargs)
        asked = {**_DEFAULTS, **dict(zip(_ORDER, args, strict=False)), **kwargs}
        admission = admitted.take()
        exchange = admission.exchange if admission else _admit(account, host, parts.port or self.port or 0, path, asked)
        if exchange is None:  # looked at, and not to be looked at again by what it stands on
            return once(self, conn, method, url, **asked)
        return _exchanged(lib, functools.partial(once, self, conn, method, url), asked, exchange, f"{self.scheme}://{host}{parts.path}")

    return _make_request


def _admit(account: Account, host: str, port: int, path: str, asked: dict[str, Any]) -> Exchange | None:
    content = asked["body"] = _content(asked["body"])
    headers = {_text(name).lower(): value for name, value in (asked["headers"] or {}).items()}
    plain = content if isinstance(content, bytes) else content.encode() if isinstance(content, str) else _looked_through(content)
    encoding, signed = _text(headers.get("content-encoding", "")), is_signed(headers.get("authorization"))
    shown = Request(host, path, plain, encoding, signed, port)
    return gate.admit(account, shown)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _content(body: Any) -> Any:
    """The body; whole, if it could be read only once."""
    if body is None:
        return b""
    if isinstance(body, bytes | str) or (hasattr(body, "read") and _rewinds(body)):
        return body
    if isinstance(body, bytearray | memoryview):
        return bytes(body)
    pieces = iter(lambda: body.read(2**16), type(body.read(0))()) if hasattr(body, "read") else body
    return b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces)


def _rewinds(file: Any) -> bool:
    """Whether what was read of a file can be read again. Pipes have the methods for it, too."""
    try:
        file.seek(file.tell())
    except Exception:  # AttributeError, OSError; whatever else files of other packages raise
        return False
    return True


def _looked_through(file: Any) -> bytes:
    start = file.tell()
    data = file.read()
    file.seek(start)
    return data.encode() if isinstance(data, str) else bytes(data)


def _exchanged(lib: ModuleType, make: Any, said: dict[str, Any], exchange: Exchange, url: str) -> Any:
    # The answer is ours to prepare before anybody reads it, or gives its connection back.
    how = {**said, "preload_content": False, "response_conn": None}
    try:
        _rewrite(lib, how, said, exchange)
        response = make(**how)
        if exchange.misunderstood(response.status):
            response.drain_conn()
            _rewrite(lib, how, said, exchange)
            response = make(**how)
        if response.status in REDIRECTS:  # urllib3 itself sends the body on at each of them, what stands on it at the last two
            exchange.seen_again = is_seen_at(url, response.headers.get("location", ""))
        _incoming(response, exchange)
        if said["preload_content"]:
            response._body = response.read(decode_content=said["decode_content"])
    except BaseException as error:
        exchange.failed(error, sent=not _never_sent(lib, error))
        raise
    response._connection = said["response_conn"]
    return response


def _never_sent(lib: ModuleType, error: BaseException) -> bool:
    errors = lib.exceptions
    if isinstance(error, errors.SSLError):
        return "CERTIFICATE_VERIFY_FAILED" in str(error)
    return isinstance(error, errors.NewConnectionError | errors.ConnectTimeoutError | errors.ProxyError | errors.LocationValueError)


def _rewrite(lib: ModuleType, how: dict[str, Any], said: dict[str, Any], exchange: Exchange) -> None:
    """Our body where it changed, and never asking for an encoding that we cannot read."""
    how.update({name: said[name] for name in ("body", "headers", "chunked")})
    headers = {_text(name).lower(): value for name, value in (said["headers"] or {}).items()}
    if is_signed(headers.get("authorization")):
        return
    body, wish = exchange.body, _text(headers.get("accept-encoding", ""))
    leave = _readable(wish) or wish == getattr(lib.util, "SKIP_HEADER", None)
    if not body and leave and not exchange.injected:
        return
    gone = _REWRITTEN if body else {"accept-encoding"}
    changed = lib.HTTPHeaderDict()
    for name, value in (said["headers"] or {}).items():
        if _text(name).lower() not in gone:
            changed.add(_text(name), value)
    if exchange.injected or not leave:
        changed.add("Accept-Encoding", "identity" if exchange.injected else ACCEPTED)
    elif wish:
        changed.add("Accept-Encoding", wish)
    if body:
        changed.add("Content-Length", str(len(body)))
        how["body"], how["chunked"] = body, False
    how["headers"] = changed


def _incoming(response: Any, exchange: Exchange) -> None:
    headers = response.headers
    encoding = ",".join(headers.getlist("content-encoding"))
    if exchange.head(response.status, headers.get("content-type", "").lower(), encoding, headers if exchange.format.headers else None):
        headers.discard("content-encoding")
        headers.discard("content-length")
    if not exchange.over:
        if (whole := cassettes.recorded(response)) is not None:
            exchange.feed(whole)
            exchange.flush()
            exchange.finished()
            return
        if not hasattr(type(response), "_raw_read"):  # HTTP/2, which urllib3 tries out: its answers are made in another way
            exchange.failed(TypeError(f"answers of the kind {type(response).__name__} are not read"), sent=True)
            return
        response._wflo = exchange
        response._wflo_left = b""
        response._wflo_busy = False
        response.__class__ = _watched(type(response))


def _watched(kind: type[Any]) -> type[Any]:
    if kind not in _kinds:
        _kinds[kind] = _watching(kind)
    return _kinds[kind]


_kinds: dict[type[Any], type[Any]] = {}


def _watching(kind: type[Any]) -> type[Any]:
    """The same kind of response, which lets an exchange read along. All ways of reading come through one of two doors: `_raw_read`,
    and `_handle_chunk` for those that want the pieces as the server cut them.
    """

    class Watched(kind):  # type: ignore[misc]
        _wflo: Exchange
        _wflo_left: bytes
        _wflo_busy: bool

        def _wflo_through(self, read: Callable[[], Any]) -> Any:
            self._wflo_busy = True
            try:
                return read()
            except BaseException as error:
                self._wflo.failed(error, sent=True)
                raise
            finally:
                self._wflo_busy = False

        def _wflo_end(self) -> bytes:
            rest = self._wflo.flush()
            self._wflo.finished()
            return rest

        def _raw_read(self, amt: int | None = None, *, read1: bool = False) -> Any:
            read = super()._raw_read
            while True:
                if amt and len(self._wflo_left) >= amt:
                    data, whole = b"", False
                else:
                    data = self._wflo_through(lambda: read(amt, read1=read1))
                    whole = (amt is None and not read1) or self.length_remaining == 0 or (not data and amt != 0)
                kept = self._wflo_left + (self._wflo.feed(data) if data else b"") + (self._wflo_end() if whole else b"")
                cut = len(kept) if amt is None else amt
                kept, self._wflo_left = kept[:cut], kept[cut:]
                if kept or whole or amt == 0:  # nothing at all would say that this is the end
                    return kept

        def _handle_chunk(self, amt: int | None) -> bytes:
            handle = super()._handle_chunk
            return self._wflo.feed(self._wflo_through(lambda: handle(amt)))

        def _update_chunk_length(self) -> None:
            self._wflo_through(super()._update_chunk_length)
            if self.chunk_left == 0:
                self._wflo_left += self._wflo_end()

        def read_chunked(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes]:
            for data in super().read_chunked(amt, decode_content):
                yield from self._wflo_cut(data, amt)
            yield from self._wflo_rest(amt)

        def stream(self, amt: int | None = 2**16, decode_content: bool | None = None) -> Iterator[bytes]:
            yield from super().stream(amt, decode_content)
            yield from self._wflo_rest(amt)

        def _wflo_rest(self, amt: int | None) -> Iterator[bytes]:
            rest, self._wflo_left = self._wflo_left, b""
            if rest:
                yield from self._wflo_cut(rest, amt)

        def _wflo_cut(self, data: bytes, amt: int | None) -> Iterator[bytes]:
            """A piece that was kept back until its event was whole, in pieces no longer than somebody asks for."""
            if not amt or not 0 < amt < len(data) or not self._wflo.injected:
                yield data
                return
            for at in range(0, len(data), amt):
                yield data[at : at + amt]

        def release_conn(self) -> None:
            super().release_conn()
            if not self._wflo_busy:
                self._wflo.closed()

        def close(self) -> None:
            super().close()  # also when it is collected, perhaps in a child that inherited it
            self._wflo.dropped()

    Watched.__name__, Watched.__qualname__, Watched.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    Watched.__doc__ = kind.__doc__
    return Watched
