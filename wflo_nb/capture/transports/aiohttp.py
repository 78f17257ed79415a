"""aiohttp: seen by a client middleware of ours, the innermost, so that each redirect and each retry of the user's own middlewares is
a call of its own. httpx clients that stand on aiohttp (openai's `DefaultAioHttpClient`, litellm's) are seen here and nowhere else.

The module is an argument, never an import. Versions before 3.12 have no middlewares and are not read.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from wflo_nb.capture import gate
from wflo_nb.capture.exchange import REDIRECTS, Exchange
from wflo_nb.capture.shown import Request, concerns, is_seen_at
from wflo_nb.capture.sse import ACCEPTED, readable
from wflo_nb.capture.transports import admitted, notice, unread
from wflo_nb.capture.transports.patching import replace_all
from wflo_nb.capture.transports.signing import is_signed

_readable = functools.lru_cache(64)(readable)


def patch(lib: ModuleType) -> Callable[[], None]:
    """Watch `aiohttp.ClientSession`. Returns the undo."""
    session = lib.ClientSession
    read = hasattr(lib, "ClientMiddlewareType")
    wrap = functools.partial(_wrap, lib) if read else unread.wrap_aiohttp
    return replace_all((session, "_request", wrap), (session, "_ws_connect", _wrap_websocket))


def _wrap(lib: ModuleType, send: Any) -> Any:
    reader = _reader(lib)

    async def _request(self: Any, method: str, str_or_url: Any, **kwargs: Any) -> Any:
        if notice.payer() is not None:
            theirs = kwargs.get("middlewares")
            unpacks = kwargs.get("auto_decompress")
            unpacks = self._auto_decompress if unpacks is None else unpacks
            ours = functools.partial(_watch, lib, reader, unpacks)
            kwargs["middlewares"] = (*(self._middlewares if theirs is None else theirs), ours)
        return await send(self, method, str_or_url, **kwargs)

    return _request


def _wrap_websocket(connecting: Any) -> Any:
    connect = notice.quietly_in_loop(connecting)

    async def _ws_connect(self: Any, url: Any, **kwargs: Any) -> Any:
        account = notice.payer()
        if account is not None:
            target = self._build_url(url)
            await notice.session_in_loop(account, target.host or "", target.path, "a websocket")
        return await connect(self, url, **kwargs)

    return _ws_connect


async def _watch(lib: ModuleType, reader: Any, unpacks: bool, request: Any, send: Any) -> Any:
    """One attempt: the request as it is about to be sent, and the answer as it comes."""
    admission = admitted.take()
    exchange, content = (admission.exchange, b"") if admission else await _admit(lib, request)
    if exchange is None:
        return await send(request)
    send = notice.quietly_in_loop(send)
    packed = request.headers.get("content-encoding")
    try:
        await _rewrite(request, exchange, unpacks)
        response = await send(request)
        if exchange.misunderstood(response.status):
            response.release()
            await _rewrite(request, exchange, unpacks)
            if not exchange.body:  # back to the caller's own
                if packed and not request.compress:
                    request.headers["Content-Encoding"] = packed
                await request.update_body(content)
            response = await send(request)
    except BaseException as error:
        exchange.failed(error, sent=not _never_sent(lib, error))
        raise
    headers = response.headers
    if response.status in REDIRECTS:  # 301 and 302 are followed by a GET here, which asks no model
        exchange.seen_again = response.status < 307 or is_seen_at(str(request.url), headers.get("location", ""))
    encoding = "" if unpacks else ",".join(headers.getall("content-encoding", ()))
    if exchange.head(response.status, headers.get("content-type", "").lower(), encoding, headers if exchange.format.headers else None):
        response._headers = type(headers)(_without(headers, "content-encoding", "content-length"))
        response._cache.pop("headers", None)
    if not exchange.over:
        response.content = reader(response.content, exchange)
    return response


async def _admit(lib: ModuleType, request: Any) -> tuple[Exchange | None, bytes]:
    account, host, path = notice.payer(), request.url.host or "", request.url.path
    if account is None or not concerns(request.method, host, path):
        return None, b""
    content = b""
    if request.body:
        try:
            content = await request.body.as_bytes()
            if getattr(request.body, "consumed", False):  # a pipe can be read once, and that was now
                await request.update_body(content)
        except TypeError:  # a body that can be sent, not read: then it is a request that cannot be read
            content = b""
        except Exception as error:  # of what makes the body: half of it is read, and the rest will not come
            raise lib.ClientConnectionError("Failed to send bytes into the underlying connection") from error
    # aiohttp packs what it is told to compress only when it sends it.
    encoding = "" if request.compress else request.headers.get("content-encoding", "")
    signed = is_signed(request.headers.get("authorization"))
    return await gate.admit_in_loop(account, Request(host, path, content, encoding, signed, request.url.port or 0)), content


def _never_sent(lib: ModuleType, error: BaseException) -> bool:
    kinds = (lib.ClientConnectorError, lib.ClientHttpProxyError, getattr(lib, "ConnectionTimeoutError", lib.ClientConnectorError))
    return isinstance(error, kinds)


async def _rewrite(request: Any, exchange: Exchange, unpacks: bool) -> None:
    """Our body where it changed, and never asking for an encoding that neither aiohttp nor we can read."""
    headers = request.headers
    if is_signed(headers.get("authorization")):
        return
    if not unpacks and (exchange.injected or not _readable(headers.get("accept-encoding", ""))):
        headers["Accept-Encoding"] = "identity" if exchange.injected else ACCEPTED
    if exchange.body:
        if not request.compress:
            headers.pop("Content-Encoding", None)
        headers.pop("Transfer-Encoding", None)
        request.chunked = None
        await request.update_body(exchange.body)


def _without(headers: Any, *names: str) -> Any:
    """The headers in aiohttp's own kind of mapping, without some."""
    kept = headers.copy()
    for name in names:
        kept.popall(name, None)
    return kept


class _Unhurried:
    """Stands where a stream reader has its connection: ours takes from another reader, which has a real one."""

    connected = True

    def pause_reading(self) -> None:
        """Nothing is read ahead."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Nothing was paused."""


def _reader(lib: ModuleType) -> Any:
    class Reader(lib.StreamReader):  # type: ignore[misc, name-defined]
        """Hands the answer on as it comes and lets the exchange read along.

        All ways of reading end in `_wait` when nothing is buffered, so that is where the next piece is taken from the real reader.
        """

        def __init__(self, inner: Any, exchange: Exchange) -> None:
            super().__init__(_Unhurried(), getattr(inner, "_low_water", 2**16), timer=getattr(inner, "_timer", None))
            self.inner = inner
            self.exchange = exchange
            self.pulling = False
            if getattr(inner, "_http_chunk_splits", None) is not None:
                self.begin_http_chunk_receiving()

        async def _wait(self, func_name: str) -> None:
            if self.pulling:
                raise RuntimeError(f"{func_name}() called while another coroutine is already waiting for incoming data")
            self.pulling = True
            try:
                data, whole = await self.inner.readchunk()
            except Exception as error:  # not a cancelled read: the caller may come back for the rest
                self.exchange.failed(error, sent=True)
                raise
            finally:
                self.pulling = False
            self._put(data, whole)
            if not data and not whole:
                self._end()

        def _put(self, data: bytes, whole: bool) -> None:
            kept = self.exchange.feed(data) if data else b""
            if kept:
                self.feed_data(kept)
            if whole and self._http_chunk_splits is not None:
                self.end_http_chunk_receiving()

        def _end(self) -> None:
            if not self._eof:
                if rest := self.exchange.flush():
                    self.feed_data(rest)
                self.exchange.finished()
                self.feed_eof()

        def _leave(self) -> None:
            """Nobody reads on. What has come already still counts."""
            if not self.exchange.over:
                inner = self.inner
                with contextlib.suppress(Exception):
                    if inner.exception() is None and (data := inner.read_nowait()):
                        self.exchange.feed(data)
                    if inner.exception() is None and inner.at_eof():
                        self.exchange.flush()
                        self.exchange.finished()
                self.exchange.closed()

        def set_exception(self, exc: BaseException, *cause: Any) -> None:
            if not isinstance(exc, lib.ClientPayloadError):  # the response was released or closed
                self._leave()
            self.inner.set_exception(exc, *cause)
            super().set_exception(exc, *cause)

        def exception(self) -> BaseException | None:
            return self._exception or self.inner.exception()  # type: ignore[no-any-return]

        def read_nowait(self, n: int = -1) -> bytes:
            if data := self.inner.read_nowait():
                self._put(data, False)
            return super().read_nowait(n)  # type: ignore[no-any-return]

        def at_eof(self) -> bool:
            if not self._eof and self.inner.exception() is None and self.inner.at_eof():
                self._end()
            return super().at_eof()  # type: ignore[no-any-return]

        def is_eof(self) -> bool:
            return self.inner.is_eof()  # type: ignore[no-any-return]

        def on_eof(self, callback: Callable[[], None]) -> None:
            self.inner.on_eof(callback)

        async def wait_eof(self) -> None:
            await self.inner.wait_eof()

        @property
        def total_raw_bytes(self) -> Any:
            return getattr(self.inner, "total_raw_bytes", self.total_bytes)

        def __del__(self) -> None:
            with contextlib.suppress(AttributeError):  # it was never made whole
                if self.exchange.is_here():
                    self._leave()

    return Reader
