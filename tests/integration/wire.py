"""HTTP libraries, each by all its ways of reading an answer, and a provider that packs, moves and breaks."""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from wflo_nb.testing import FakeProvider

PROMPT = [{"role": "user", "content": "Say a few words about rivers, please."}]
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": PROMPT}


def packing(provider: FakeProvider) -> FakeProvider:
    """Answers in gzip whoever accepts it, and sends those who ask at ``/moved`` elsewhere."""
    handler: Any = provider._server.RequestHandlerClass

    class Packing(handler):  # type: ignore[misc]
        def do_POST(self) -> None:
            if not self.path.startswith("/moved"):
                super().do_POST()
                return
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(307)
            self.send_header("location", self.path.removeprefix("/moved"))
            self.send_header("content-length", "0")
            self.end_headers()

        def _packs(self) -> bool:
            return "gzip" in (self.headers.get("accept-encoding") or "")

        def _bytes(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
            if self._packs():
                packer = zlib.compressobj(wbits=31)
                data, headers = packer.compress(data) + packer.flush(), {**(headers or {}), "content-encoding": "gzip"}
            super()._bytes(status, data, kind, headers)

        def _stream(self, events: list[str], *how: Any) -> None:
            if not self._packs():
                super()._stream(events, *how)
                return
            packer = zlib.compressobj(wbits=31)
            pieces = [packer.compress(event.encode()) + packer.flush(zlib.Z_SYNC_FLUSH) for event in events]
            _send_chunks(self, [*pieces, packer.flush()], {"content-encoding": "gzip"})

    provider._server.RequestHandlerClass = Packing
    return provider


def ragged(provider: FakeProvider) -> FakeProvider:
    """Cuts its streams anywhere, and forgets the blank line at their end."""
    handler: Any = provider._server.RequestHandlerClass

    class Ragged(handler):  # type: ignore[misc]
        def _stream(self, events: list[str], *how: Any) -> None:
            data = "".join(events).rstrip("\n").encode()
            _send_chunks(self, [data[at : at + 37] for at in range(0, len(data), 37)], {})

    provider._server.RequestHandlerClass = Ragged
    return provider


def unchunking(provider: FakeProvider) -> FakeProvider:
    """Takes requests in chunks, too."""
    handler: Any = provider._server.RequestHandlerClass

    class Unchunking(handler):  # type: ignore[misc]
        def do_POST(self) -> None:
            if self.headers.get("transfer-encoding") != "chunked":
                super().do_POST()
                return
            body, line = b"", self.rfile
            while size := int(line.readline(), 16):
                body += line.read(size)
                line.readline()
            line.readline()
            self.headers.replace_header("transfer-encoding", "identity")
            self.headers["content-length"] = str(len(body))
            self.rfile = io.BytesIO(body)
            super().do_POST()
            self.rfile = line

    provider._server.RequestHandlerClass = Unchunking
    return provider


def _send_chunks(handler: Any, pieces: list[bytes], headers: dict[str, str]) -> None:
    handler.send_response(200)
    for name, value in {"content-type": "text/event-stream", "transfer-encoding": "chunked", **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    for piece in pieces:
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


# -- urllib3 and requests ----------------------------------------------------------------------------------------------------


def _lines(chunks: Any) -> bytes:
    return b"".join(chunks)


def _by_requests(read: Callable[[Any], bytes], stream: bool) -> Callable[..., bytes]:
    def send(url: str, ask: dict[str, Any]) -> bytes:
        import requests

        with requests.post(url, json=ask, stream=stream, timeout=10) as response:
            response.raise_for_status()
            return read(response)

    return send


def _by_urllib3(read: Callable[[Any], bytes], preload: bool = False) -> Callable[..., bytes]:
    def send(url: str, ask: dict[str, Any]) -> bytes:
        import urllib3

        with urllib3.PoolManager() as pool:
            response = pool.request("POST", url, json=ask, preload_content=preload)
            assert isinstance(response, urllib3.HTTPResponse)
            try:
                return read(response)
            finally:
                response.release_conn()

    return send


def _small(read: Callable[[int], bytes]) -> bytes:
    return _lines(iter(lambda: read(7), b""))


def _readinto(response: Any) -> bytes:
    found, buffer = b"", bytearray(11)
    while size := response.readinto(buffer):
        found += buffer[:size]
    return found


SYNC: dict[str, Callable[[str, dict[str, Any]], bytes]] = {
    "requests content": _by_requests(lambda r: r.content, stream=False),
    "requests iter_content": _by_requests(lambda r: _lines(r.iter_content(13)), stream=True),
    "requests as it comes": _by_requests(lambda r: _lines(r.iter_content(None)), stream=True),
    "requests iter_lines": _by_requests(lambda r: b"".join(line + b"\n" for line in r.iter_lines()), stream=True),
    "urllib3 data": _by_urllib3(lambda r: r.data, preload=True),
    "urllib3 late data": _by_urllib3(lambda r: r.data),
    "urllib3 read": _by_urllib3(lambda r: r.read()),
    "urllib3 read(n)": _by_urllib3(lambda r: _small(r.read)),
    "urllib3 read1": _by_urllib3(lambda r: _lines(iter(r.read1, b""))),
    "urllib3 read1(n)": _by_urllib3(lambda r: _small(r.read1)),
    "urllib3 stream": _by_urllib3(lambda r: _lines(r.stream())),
    "urllib3 stream(n)": _by_urllib3(lambda r: _lines(r.stream(9))),
    "urllib3 readinto": _by_urllib3(_readinto),
    "urllib3 BufferedReader": _by_urllib3(lambda r: io.BufferedReader(r).read()),
    "urllib3 lines": _by_urllib3(lambda r: _lines(r)),
}
CHUNKED = {
    "urllib3 read_chunked": _by_urllib3(lambda r: _lines(r.read_chunked())),
    "urllib3 read_chunked(n)": _by_urllib3(lambda r: _lines(r.read_chunked(5))),
}

# -- aiohttp -----------------------------------------------------------------------------------------------------------------


async def _all(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def _until(read: Callable[[], Any]) -> bytes:
    found = []
    while piece := await read():
        found.append(piece)
    return b"".join(found)


async def _to_the_end(content: Any) -> bytes:
    found = b""
    while not content.at_eof():
        found += await content.readany()
    return found


async def _nowait(content: Any) -> bytes:
    found = await content.read(1)
    while not content.at_eof():
        found += content.read_nowait()
        await asyncio.sleep(0.001)
    return found


async def _exactly(content: Any) -> bytes:
    found = await content.readexactly(20)
    return found + await content.read()


async def _chunks(content: Any) -> bytes:
    pieces = [piece async for piece in content.iter_chunks()]
    return b"".join(data for data, _ in pieces)


async def _text(response: Any) -> bytes:
    return (await response.text()).encode()


def _by_aiohttp(read: Callable[[Any], Any]) -> Callable[..., bytes]:
    def send(url: str, ask: dict[str, Any]) -> bytes:
        import aiohttp

        async def work() -> bytes:
            async with aiohttp.ClientSession(raise_for_status=True) as session, session.post(url, json=ask) as response:
                assert isinstance(response.content, aiohttp.StreamReader)
                return await read(response)

        return asyncio.run(work())

    return send


ASYNC: dict[str, Callable[[str, dict[str, Any]], bytes]] = {
    "aiohttp read": _by_aiohttp(lambda r: r.read()),
    "aiohttp text": _by_aiohttp(_text),
    "aiohttp content.read": _by_aiohttp(lambda r: r.content.read()),
    "aiohttp content.read(n)": _by_aiohttp(lambda r: _until(lambda: r.content.read(7))),
    "aiohttp iter_any": _by_aiohttp(lambda r: _all(r.content.iter_any())),
    "aiohttp iter_chunked": _by_aiohttp(lambda r: _all(r.content.iter_chunked(9))),
    "aiohttp iter_chunks": _by_aiohttp(lambda r: _chunks(r.content)),
    "aiohttp lines": _by_aiohttp(lambda r: _all(r.content)),
    "aiohttp readline": _by_aiohttp(lambda r: _until(r.content.readline)),
    "aiohttp readuntil": _by_aiohttp(lambda r: _until(lambda: r.content.readuntil(b"}"))),
    "aiohttp readany": _by_aiohttp(lambda r: _until(r.content.readany)),
    "aiohttp at_eof": _by_aiohttp(lambda r: _to_the_end(r.content)),
    "aiohttp read_nowait": _by_aiohttp(lambda r: _nowait(r.content)),
    "aiohttp readexactly": _by_aiohttp(lambda r: _exactly(r.content)),
}
EVERY = SYNC | ASYNC
