"""httpx and httpx2: two libraries with the same classes, patched at the transport, below every client, retry and redirect.

The module is an argument, never an import: whichever of the two the user's SDK brought is the one that is watched.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any

from wflo_nb import events
from wflo_nb.capture import gate
from wflo_nb.capture.exchange import REDIRECTS, Exchange
from wflo_nb.capture.shown import WISH, Request, concerns, is_seen_at
from wflo_nb.capture.sse import ACCEPTED, readable
from wflo_nb.capture.transports import refused, unpacked
from wflo_nb.capture.transports.notice import payer, quietly, quietly_in_loop
from wflo_nb.capture.transports.patching import replace
from wflo_nb.errors import WfloError


def patch(lib: ModuleType) -> Callable[[], None]:
    """Watch `lib`'s transports. Returns the undo."""
    undo_sync = replace(lib.HTTPTransport, "handle_request", functools.partial(_wrap_sync, lib))
    undo_async = replace(lib.AsyncHTTPTransport, "handle_async_request", functools.partial(_wrap_async, lib))

    def undo() -> None:
        undo_sync()
        undo_async()

    return undo


def _never_sent(lib: ModuleType, error: BaseException) -> bool:
    if isinstance(error, lib.LocalProtocolError):  # over HTTP/2 also where an answer breaks the protocol
        return any(type(reason).__module__.startswith("h11.") for reason in getattr(error.__cause__, "args", ()))
    return isinstance(error, (lib.ConnectError, lib.ConnectTimeout, lib.PoolTimeout, lib.UnsupportedProtocol))


def _wrap_sync(lib: ModuleType, send: Any) -> Any:
    tee, once, hand_over = _sync_tee(lib), quietly(send), unpacked.hand_over(lib)

    def handle_request(self: Any, request: Any) -> Any:
        account = payer()
        if account is None or (place := _place(request)) is None:
            return send(self, request)
        shown, accepted = _shown(request, place, request.read())
        try:
            exchange = gate.admit(account, shown)
        except WfloError as error:
            return refused.answer(lib, request, error)
        if exchange is None:
            return send(self, request)
        try:
            response = once(self, _outgoing(lib, request, exchange, accepted))
            if exchange.plain is not None and exchange.misunderstood(response.status_code):
                response.close()
                response = once(self, _outgoing(lib, request, exchange, accepted))
            if _incoming(request, response, exchange) == "gzip":
                hand_over(response, exchange)
            response.stream = tee(response.stream, exchange)
        except BaseException as error:
            exchange.failed(error, sent=not _never_sent(lib, error))
            raise
        return response

    return handle_request


def _wrap_async(lib: ModuleType, send: Any) -> Any:
    tee, once, hand_over = _async_tee(lib), quietly_in_loop(send), unpacked.hand_over(lib)

    async def handle_async_request(self: Any, request: Any) -> Any:
        account = payer()
        if account is None or (place := _place(request)) is None:
            return await send(self, request)
        shown, accepted = _shown(request, place, await request.aread())
        try:
            exchange = await gate.admit_in_loop(account, shown)
        except WfloError as error:
            return refused.answer(lib, request, error)
        if exchange is None:
            return await send(self, request)
        try:
            response = await once(self, _outgoing(lib, request, exchange, accepted))
            if exchange.plain is not None and exchange.misunderstood(response.status_code):
                await response.aclose()
                response = await once(self, _outgoing(lib, request, exchange, accepted))
            if _incoming(request, response, exchange) == "gzip":
                hand_over(response, exchange)
            response.stream = tee(response.stream, exchange)
        except BaseException as error:
            exchange.failed(error, sent=not _never_sent(lib, error))
            raise
        return response

    return handle_async_request


def _place(request: Any) -> tuple[str, str] | None:
    """Host and path, if they may be those of a call to a model."""
    url = request.url
    host, path = url.host, url.path
    return (host, path) if concerns(request.method, host, path) else None


def _shown(request: Any, place: tuple[str, str], content: bytes) -> tuple[Request, str]:
    """What the gate is shown of a request, and what encodings of an answer the request accepts."""
    encoding = accepted = b""
    signed = False
    for name, value in request.headers.raw:  # once over them, as bytes: asking by name decodes all of them each time
        if len(name) == 15 and name.lower() == b"accept-encoding":
            accepted = accepted + b"," + value if accepted else value
        elif len(name) == 16 and name.lower() == b"content-encoding":
            encoding = encoding + b"," + value if encoding else value
        elif value[:5] == b"AWS4-":
            signed = True
    wishes = _wishes(request.headers) if "/model/" in place[1] or "bedrock" in place[0] else None
    shown = Request(*place, content, encoding.decode("latin-1"), signed, _port(request.url) if events.listeners else 0, wishes)
    return shown, "" if signed else accepted.decode("latin-1")  # a signed request goes as it is


def _wishes(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower().startswith(WISH)}


def _port(url: Any) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


_REWRITTEN = frozenset({b"accept-encoding", b"content-length", b"content-encoding", b"transfer-encoding"})


def _outgoing(lib: ModuleType, request: Any, exchange: Exchange, accepted: str) -> Any:
    """The request as it is sent: ours where the body changed, and never asking for an encoding that we cannot read."""
    body = exchange.body
    if not body and _readable(accepted):
        return request
    headers = [pair for pair in request.headers.raw if pair[0].lower() not in (_REWRITTEN if body else _REWRITTEN_ENCODING)]
    headers.append((b"accept-encoding", b"identity" if exchange.injected else ACCEPTED.encode()))
    if body:
        headers.append((b"content-length", str(len(body)).encode()))
    # A copy that shares all the rest: making a new request parses its URL and its headers once more.
    twin = object.__new__(type(request))
    twin.__dict__.update(request.__dict__)
    twin.headers = lib.Headers(headers)
    if body:
        twin.stream = lib.ByteStream(body)
        twin._content = body  # what `read` and `content` give
    return twin


_REWRITTEN_ENCODING = frozenset({b"accept-encoding"})
_readable = functools.lru_cache(64)(readable)


def _incoming(request: Any, response: Any, exchange: Exchange) -> str:
    """Show the exchange the head of an answer. Returns how the body is packed that is handed on."""
    if response.status_code in REDIRECTS:  # 301 and 302 are followed by a GET here, which asks no model
        exchange.seen_again = response.status_code < 307 or is_seen_at(str(request.url), response.headers.get("location", ""))
    kind = encoding = b""
    for name, value in response.headers.raw:
        if len(name) == 12 and name.lower() == b"content-type":
            kind = value
        elif len(name) == 16 and name.lower() == b"content-encoding":
            encoding = encoding + b"," + value if encoding else value
        elif len(name) == 23 and name.lower() == b"x-litellm-response-cost":
            exchange.claimed(value.decode("latin-1"))
    asked = response.headers if exchange.format.headers else None
    packed = encoding.decode("latin-1")
    if exchange.head(response.status_code, kind.decode("latin-1").lower(), packed, asked):
        headers = response.headers
        del headers["content-encoding"]
        if "content-length" in headers:
            del headers["content-length"]
        return ""
    return packed


def _sync_tee(lib: ModuleType) -> Any:
    class Tee(lib.SyncByteStream):  # type: ignore[misc, name-defined]
        """Hands the answer on as it comes and lets the exchange read along."""

        def __init__(self, inner: Any, exchange: Exchange) -> None:
            self.exchange = exchange
            self.inner = inner

        def __iter__(self) -> Iterator[bytes]:
            exchange = self.exchange
            try:
                for data in self.inner:
                    if kept := exchange.feed(data):
                        yield kept
                if rest := exchange.flush():
                    yield rest
            except GeneratorExit:
                exchange.closed()
                raise
            except BaseException as error:
                exchange.failed(error, sent=True)
                raise
            exchange.finished()

        def close(self) -> None:
            try:
                self.inner.close()
            finally:
                if not self.exchange.over:
                    self.exchange.closed()

        def __del__(self) -> None:  # nobody reads it, nobody closed it: at no cost for those that are read
            if not self.exchange.over:
                self.exchange.dropped()

    return Tee


def _async_tee(lib: ModuleType) -> Any:
    class AsyncTee(lib.AsyncByteStream):  # type: ignore[misc, name-defined]
        """Hands the answer on as it comes and lets the exchange read along."""

        def __init__(self, inner: Any, exchange: Exchange) -> None:
            self.exchange = exchange
            self.inner = inner

        async def __aiter__(self) -> AsyncIterator[bytes]:
            exchange = self.exchange
            try:
                async for data in self.inner:
                    if kept := exchange.feed(data):
                        yield kept
                if rest := exchange.flush():
                    yield rest
            except GeneratorExit:
                exchange.closed()
                raise
            except BaseException as error:
                exchange.failed(error, sent=True)
                raise
            exchange.finished()

        async def aclose(self) -> None:
            try:
                await self.inner.aclose()
            finally:
                if not self.exchange.over:
                    self.exchange.closed()

        def __del__(self) -> None:  # nobody reads it, nobody closed it: at no cost for those that are read
            if not self.exchange.over:
                self.exchange.dropped()

    return AsyncTee
