"""A packed answer that httpx takes over from us is what httpx would have found itself, down to its errors."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import httpx
import httpx2
import pytest

import wflo_nb
from tests.integration.conftest import ledger_calls
from tests.integration.wire import ASK
from wflo_nb.testing import FakeProvider

LIBRARIES = pytest.mark.parametrize("lib", [httpx, httpx2], ids=lambda lib: lib.__name__)


def _packed(how: str, data: bytes) -> list[bytes]:
    whole = gzip.compress(data, mtime=0)
    return {
        "whole": [whole],
        "pieces": [whole[:50], whole[50:90], whole[90:]],
        "with more behind": [whole + b"more"],
        "with more after": [whole, b"more"],
        "by zlib": [zlib.compress(data)],
        "cut": [whole[:-12]],
        "broken": [whole[:30] + b"\xff\x00\xff" + whole[33:]],
        "not at all": [data],
        "empty": [b""],
        "twice": [gzip.compress(whole, mtime=0)],
        "large": [gzip.compress(data[:-1] + b" " * (1 << 17) + data[-1:], mtime=0)],
        "very large": [gzip.compress(data[:-1] + b" " * (5 << 20) + data[-1:], mtime=0)],
    }[how]


@pytest.fixture
def packed(provider: FakeProvider, request: pytest.FixtureRequest) -> FakeProvider:
    """Packs its answers as the test says."""
    handler: Any = provider._server.RequestHandlerClass
    how: str = request.param

    class Packing(handler):  # type: ignore[misc]
        def _bytes(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-encoding", "gzip, gzip" if how == "twice" else "gzip")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for piece in filter(None, _packed(how, data)):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    provider._server.RequestHandlerClass = Packing
    return provider


EVERY = pytest.mark.parametrize(
    "packed",
    [
        "whole", "pieces", "with more behind", "with more after", "by zlib", "cut", "broken", "not at all", "empty", "twice", "large",
        "very large",
    ],
    indirect=True,
)  # fmt: skip


def _ways(lib: Any, url: str) -> dict[str, Any]:
    """What can be seen of the same answer, however it is read; of an error, its kind and words."""

    client = lib.Client(verify=False)

    def read(how: Any) -> Any:
        with client.stream("POST", url, json=ASK) as response:
            try:
                return how(response), response.num_bytes_downloaded, sorted(response.headers.items())
            except lib.HTTPError as error:
                return type(error).__name__, str(error)

    with client:
        return _read_in_all_ways(read) | {"in a loop": asyncio.run(_in_loop(lib, url))}


def _read_in_all_ways(read: Any) -> dict[str, Any]:
    return {
        "read": read(lambda response: response.read()),
        "bytes": read(lambda response: b"".join(response.iter_bytes())),
        "bytes by 7": read(lambda response: list(response.iter_bytes(7))[:50]),
        "text": read(lambda response: "".join(response.iter_text())),
        "raw": read(lambda response: b"".join(response.iter_raw())),
        "raw by 7": read(lambda response: list(response.iter_raw(7))[:50]),
    }


async def _in_loop(lib: Any, url: str) -> Any:
    async with lib.AsyncClient(verify=False) as client, client.stream("POST", url, json=ASK) as response:
        try:
            return await response.aread(), response.num_bytes_downloaded, sorted(response.headers.items())
        except lib.HTTPError as error:
            return type(error).__name__, str(error)


def _timeless(seen: dict[str, Any]) -> dict[str, Any]:
    return {way: (got[0], got[1], [h for h in got[2] if h[0] != "date"]) if len(got) == 3 else got for way, got in seen.items()}


@EVERY
@LIBRARIES
def test_what_is_read_is_the_same_with_and_without_us(packed: FakeProvider, lib: Any) -> None:
    url = f"{packed.openai_url}/chat/completions"
    bare = _timeless(_ways(lib, url))
    with wflo_nb.execution(budget_usd=1):
        assert _timeless(_ways(lib, url)) == bare


@pytest.mark.parametrize(("packed", "own"), [("whole", 0), ("with more behind", 0), ("pieces", 1), ("large", 1)], indirect=["packed"])
@LIBRARIES
def test_answer_in_one_small_piece_is_unpacked_once(packed: FakeProvider, own: int, lib: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    begin = lib._decoders.GZipDecoder.__init__
    monkeypatch.setattr(lib._decoders.GZipDecoder, "__init__", lambda self: made.append(1) or begin(self))
    with wflo_nb.execution(budget_usd=1):
        answer = lib.post(f"{packed.openai_url}/chat/completions", json=ASK)
    assert answer.json()["choices"] and len(made) == own
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"]


@pytest.mark.parametrize("packed", ["whole"], indirect=True)
@LIBRARIES
def test_release_that_unpacks_in_another_way_is_left_alone(packed: FakeProvider, lib: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from wflo_nb.capture.transports import unpacked

    monkeypatch.delattr(lib.Response, "_get_content_decoder")
    response = object()
    unpacked.hand_over(lib)(response, object())  # type: ignore[arg-type]  # neither is touched


@pytest.mark.parametrize("packed", ["whole"], indirect=True)
@LIBRARIES
def test_answer_that_somebody_changes_on_its_way_is_theirs(packed: FakeProvider, lib: Any) -> None:
    class Changed(lib.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __iter__(self) -> Any:
            for piece in self.inner:
                data = gzip.compress(gzip.decompress(piece).replace(b"choices", b"CHOICES"))
                yield from (data[at : at + 99] for at in range(0, len(data), 99))

        def close(self) -> None:
            self.inner.close()

    class Changing(lib.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            response = super().handle_request(request)
            response.stream = Changed(response.stream)
            return response

    with lib.Client(transport=Changing(verify=False)) as client, wflo_nb.execution(budget_usd=1):
        assert client.post(f"{packed.openai_url}/chat/completions", json=ASK).json()["CHOICES"]
    assert [row["cost_nano"] for row in ledger_calls()] == [packed.spent_nano]
