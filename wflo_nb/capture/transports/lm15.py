"""lm15, the client that DSPy brings along: HTTP/1.1 of its own over sockets, so that no library below it sees its calls.

Its `stream` makes one attempt (with a second connection only where a kept one turns out to be dead before the request is written).
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from wflo_nb.capture import gate
from wflo_nb.capture.exchange import REDIRECTS, Exchange
from wflo_nb.capture.shown import Request, concerns, is_seen_at
from wflo_nb.capture.sse import ACCEPTED, readable
from wflo_nb.capture.transports.notice import payer, quietly, quietly_in_loop
from wflo_nb.capture.transports.patching import replace
from wflo_nb.capture.transports.signing import is_signed

_REWRITTEN = frozenset({"accept-encoding", "content-length", "content-encoding", "transfer-encoding"})


def patch(lib: ModuleType) -> Callable[[], None]:
    """Watch `StdlibTransport`. Returns the undo."""
    return replace(lib.StdlibTransport, "stream", lambda stream: _wrap(lib, stream))


def patch_async(lib: ModuleType) -> Callable[[], None]:
    """Watch `StdlibAsyncTransport`. Returns the undo."""
    return replace(lib.StdlibAsyncTransport, "_do_stream", lambda stream: _wrap_async(lib, stream))


def _wrap(lib: ModuleType, send: Any) -> Any:
    once = quietly(send)

    def stream(self: Any, request: Any) -> Any:
        account = payer()
        shown = None if account is None else _shown(request)
        exchange = gate.admit(account, shown) if account is not None and shown is not None else None
        if exchange is None:
            return send(self, request)
        try:
            response = once(self, _outgoing(request, exchange))
            if exchange.misunderstood(response.status):
                response.close()
                response = once(self, _outgoing(request, exchange))
        except BaseException as error:
            exchange.failed(error, sent=not isinstance(error, lib.ConnectError))
            raise
        _incoming(request, response, exchange)
        response._chunks = _tee(response._chunks, exchange)
        response._release = _closing(response._release, exchange)
        return response

    return stream


def _wrap_async(lib: ModuleType, send: Any) -> Any:
    once = quietly_in_loop(send)

    async def _do_stream(self: Any, request: Any) -> Any:
        account = payer()
        shown = None if account is None else _shown(request)
        exchange = await gate.admit_in_loop(account, shown) if account is not None and shown is not None else None
        if exchange is None:
            return await send(self, request)
        try:
            response = await once(self, _outgoing(request, exchange))
            if exchange.misunderstood(response.status):
                await response.aclose()
                response = await once(self, _outgoing(request, exchange))
        except BaseException as error:
            exchange.failed(error, sent=not isinstance(error, lib.ConnectError))
            raise
        _incoming(request, response, exchange)
        response._chunks = _tee_async(response._chunks, exchange)
        response._release = _closing_async(response._release, exchange)
        return response

    return _do_stream


def _shown(request: Any) -> Request | None:
    parts = urlsplit(request.url)
    host, path = parts.hostname or "", unquote(parts.path)
    if not concerns(request.method.upper(), host, path):
        return None
    headers = _lowered(request.headers)
    encoding, signed = headers.get("content-encoding", ""), is_signed(headers.get("authorization"))
    return Request(host, path, request.body, encoding, signed, parts.port or (443 if parts.scheme == "https" else 80))


def _lowered(headers: list[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def _outgoing(request: Any, exchange: Exchange) -> Any:
    said = _lowered(request.headers)
    wish = said.get("accept-encoding", "")
    if is_signed(said.get("authorization")) or (not exchange.body and readable(wish)):
        return request
    headers = [(n, v) for n, v in request.headers if n.lower() not in (_REWRITTEN if exchange.body else {"accept-encoding"})]
    headers.append(("accept-encoding", "identity" if exchange.injected or not wish else ACCEPTED))
    return dataclasses.replace(request, headers=headers, body=exchange.body or request.body)


def _incoming(request: Any, response: Any, exchange: Exchange) -> None:
    weakref.finalize(response, exchange.dropped).atexit = False  # nobody reads it, nobody closed it
    if response.status in REDIRECTS:
        exchange.seen_again = is_seen_at(request.url, response.header("location") or "")
    encoding = ",".join(response.headers_all("content-encoding"))
    if exchange.head(response.status, (response.header("content-type") or "").lower(), encoding, _lowered(response.headers)):
        gone = {"content-encoding", "content-length"}
        response.headers = [(name, value) for name, value in response.headers if name.lower() not in gone]


def _tee(chunks: Iterator[bytes], exchange: Exchange) -> Iterator[bytes]:
    try:
        for data in chunks:
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


async def _tee_async(chunks: AsyncIterator[bytes], exchange: Exchange) -> AsyncIterator[bytes]:
    try:
        async for data in chunks:
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


def _closing(release: Callable[[bool], object], exchange: Exchange) -> Callable[[bool], object]:
    def closing(consumed: bool) -> object:
        try:
            return release(consumed)
        finally:
            exchange.closed()

    return closing


def _closing_async(release: Callable[[bool], Any], exchange: Exchange) -> Callable[[bool], Any]:
    async def closing(consumed: bool) -> Any:
        try:
            return await release(consumed)
        finally:
            exchange.closed()

    return closing
