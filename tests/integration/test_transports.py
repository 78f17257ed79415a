"""Calls of plain HTTP libraries: seen whole, however they are read, counted once, refused before they are sent."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import http.client
import http.server
import io
import json
import os
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import urllib3

import wflo_nb
from tests.integration.conftest import ledger_calls, ledger_total
from tests.integration.wire import ASK, CHUNKED, EVERY, packing, ragged, unchunking
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime

Send = Callable[[str, dict[str, Any]], bytes]
STREAM = {**ASK, "stream": True}


@pytest.fixture(params=["plain", "gzip"])
def chat_url(provider: FakeProvider, request: pytest.FixtureRequest) -> str:
    if request.param == "gzip":
        packing(provider)
    return f"{provider.openai_url}/chat/completions"


@pytest.mark.parametrize("name", EVERY)
def test_whole_answer_is_read_and_counted_however_it_is_taken(provider: FakeProvider, chat_url: str, name: str) -> None:
    send = EVERY[name]
    bare = send(chat_url, ASK)
    with wflo_nb.execution(budget_usd=1) as run:
        assert send(chat_url, ASK) == bare
    (row,) = ledger_calls()
    usage = provider.bill[1].usage
    assert (row["state"], row["input_tokens"], row["output_tokens"]) == ("SETTLED", usage.input_tokens, usage.output_tokens)
    assert row["cost_nano"] == provider.bill[1].nano_usd == run.figures().spent_nano
    assert provider.bodies[1]["max_tokens"] == row["cap_written"], "the cap that was held for was sent"


@pytest.mark.parametrize("name", EVERY | CHUNKED)
def test_stream_that_is_cut_anywhere_comes_through_to_its_last_byte(provider: FakeProvider, name: str) -> None:
    url = f"{ragged(provider).openai_url}/chat/completions"
    bare = (EVERY | CHUNKED)[name](url, STREAM)
    with wflo_nb.execution(budget_usd=1):
        assert (EVERY | CHUNKED)[name](url, STREAM) == bare
    assert bare.rstrip().endswith(b"data: [DONE]")
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"] and ledger_total() == provider.bill[1].nano_usd


@pytest.mark.parametrize("name", EVERY | CHUNKED)
def test_stream_is_read_and_counted_however_it_is_taken_and_shows_nothing_new(provider: FakeProvider, chat_url: str, name: str) -> None:
    send = (EVERY | CHUNKED)[name]
    bare = send(chat_url, STREAM)
    with wflo_nb.execution(budget_usd=1) as run:
        assert send(chat_url, STREAM) == bare
    (row,) = ledger_calls()
    assert (row["state"], row["cost_nano"]) == ("SETTLED", provider.bill[1].nano_usd)
    assert run.figures().spent_nano == provider.bill[1].nano_usd and run.figures().held_nano == 0
    assert provider.bodies[1]["stream_options"] == {"include_usage": True}


# -- refused, or not all of it -----------------------------------------------------------------------------------------------


def post_requests(url: str, ask: dict[str, Any]) -> Any:
    return requests.post(url, json=ask, timeout=10).json()


def post_session(url: str, ask: dict[str, Any]) -> Any:
    from requests.adapters import HTTPAdapter

    retry = urllib3.Retry(total=3, allowed_methods=None, status_forcelist=[429, 500, 502, 503], backoff_factor=0)
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retry))
        return session.post(url, json=ask, timeout=10).json()


def post_urllib3(url: str, ask: dict[str, Any]) -> Any:
    with urllib3.PoolManager(retries=urllib3.Retry(3, allowed_methods=None, status_forcelist=[429, 503], backoff_factor=0)) as pool:
        return pool.request("POST", url, json=ask).json()


def post_aiohttp(url: str, ask: dict[str, Any]) -> Any:
    async def work() -> Any:
        async with aiohttp.ClientSession() as session, session.post(url, json=ask) as response:
            return await response.json()

    return asyncio.run(work())


def post_aiohttp_with_retries(url: str, ask: dict[str, Any]) -> Any:
    async def again(request: Any, send: Any) -> Any:
        for _ in range(4):
            response = await send(request)
            if response.status < 400:
                break
            response.release()
        return response

    async def work() -> Any:
        async with aiohttp.ClientSession(middlewares=(again,)) as session, session.post(url, json=ask) as response:
            return await response.json()

    return asyncio.run(work())


POSTS = [post_requests, post_session, post_urllib3, post_aiohttp]
RETRYING = [post_session, post_urllib3, post_aiohttp_with_retries]
Post = Callable[[str, dict[str, Any]], Any]


@pytest.mark.parametrize("post", POSTS)
def test_what_does_not_fit_is_refused_before_it_is_sent_and_again_after_a_swallow(provider: FakeProvider, post: Post) -> None:
    url = f"{provider.openai_url}/chat/completions"
    ask = {**ASK, "max_tokens": 40}
    seen = []
    with pytest.raises(wflo_nb.BudgetExceededError), wflo_nb.execution(budget_usd="0.0002") as run:
        for _ in range(12):
            try:
                post(url, ask)
            except Exception as error:
                seen.append(error)
    assert seen and all(isinstance(error, wflo_nb.BudgetExceededError) for error in seen)
    assert provider.requests == 12 - len(seen) > 0
    assert run.figures().spent_nano == provider.spent_nano == ledger_total()
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"] * provider.requests + ["REFUSED"] * len(seen)


@pytest.mark.parametrize("post", RETRYING)
def test_each_retry_below_the_caller_is_a_call_of_its_own(provider: FakeProvider, post: Post) -> None:
    provider.next(status=429)
    provider.next(status=503, billed=True)
    with wflo_nb.execution(budget_usd=1):
        assert post(f"{provider.openai_url}/chat/completions", {**ASK, "max_tokens": 40})["usage"]["completion_tokens"] == 20
    assert [row["state"] for row in ledger_calls()] == ["RELEASED", "UNCONFIRMED", "SETTLED"]
    assert provider.requests == 3 and ledger_total() >= provider.spent_nano


@pytest.mark.parametrize("post", RETRYING)
def test_retry_that_does_not_fit_is_refused(provider: FakeProvider, post: Post) -> None:
    provider.behave(status=503, billed=True)
    with pytest.raises(wflo_nb.BudgetExceededError), wflo_nb.execution(budget_usd="0.0006"):
        for _ in range(9):
            with contextlib.suppress(requests.RequestException, urllib3.exceptions.HTTPError, aiohttp.ClientError):
                post(f"{provider.openai_url}/chat/completions", {**ASK, "max_tokens": 400})
    sent = provider.requests
    assert [row["state"] for row in ledger_calls()] == ["UNCONFIRMED"] * sent + ["REFUSED"]
    assert provider.spent_nano <= ledger_total() <= 600_000


@pytest.mark.parametrize("post", [post_requests, post_urllib3, post_aiohttp])
def test_redirected_call_is_counted_where_it_arrives(provider: FakeProvider, post: Post) -> None:
    packing(provider)
    with wflo_nb.execution(budget_usd=1):
        assert "usage" in post(f"{provider.url}/moved/v1/chat/completions", ASK)
    assert [row["state"] for row in ledger_calls()] == ["RELEASED", "SETTLED"]
    assert ledger_total() == provider.spent_nano and provider.requests == 1


@pytest.mark.parametrize("post", POSTS)
def test_server_that_does_not_know_stream_options_is_asked_again(provider: FakeProvider, post: Post) -> None:
    url = f"{provider.openai_url}/chat/completions"
    provider.next(status=400)
    with wflo_nb.execution(), contextlib.suppress(ValueError, aiohttp.ClientError):  # events are no JSON
        post(url, STREAM)
    assert [("stream_options" in body) for body in provider.bodies] == [True, False]
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED"


@pytest.mark.parametrize("post", POSTS)
def test_call_that_reaches_nobody_costs_nothing(post: Post) -> None:
    with wflo_nb.execution(budget_usd=1) as run, contextlib.suppress(OSError, urllib3.exceptions.HTTPError):
        post("http://127.0.0.1:9/v1/chat/completions", ASK)
    rows = ledger_calls()
    assert rows and {row["state"] for row in rows} == {"RELEASED"}
    assert run.figures().held_nano == run.figures().spent_nano == 0


@pytest.mark.parametrize("post", [post_requests, post_urllib3, post_aiohttp])
@pytest.mark.parametrize("stream", [False, True])
def test_answer_that_breaks_off_keeps_its_hold(provider: FakeProvider, post: Post, stream: bool) -> None:
    provider.behave(cut_after=2)
    with wflo_nb.execution(budget_usd=1) as run, contextlib.suppress(Exception):
        post(f"{provider.openai_url}/chat/completions", {**ASK, "stream": stream, "max_tokens": 40})
    rows = ledger_calls()
    assert len(rows) == provider.requests and {row["state"] for row in rows} == {"UNCONFIRMED"}
    assert run.figures().spent_nano == sum(row["reserved_nano"] for row in rows) >= provider.spent_nano


def _pieces_of_requests(url: str, size: int) -> Any:
    return requests.post(url, json=STREAM, stream=True, timeout=10).iter_content(size)


def _pieces_of_urllib3(url: str, size: int) -> Any:
    return urllib3.request("POST", url, json=STREAM, preload_content=False).stream(size)


def _chunks_of_urllib3(url: str, size: int) -> Any:
    return urllib3.request("POST", url, json=STREAM, preload_content=False).read_chunked(size)


@pytest.mark.parametrize("size", [1, 13, 100])
@pytest.mark.parametrize("read", [_pieces_of_requests, _pieces_of_urllib3, _chunks_of_urllib3])
@pytest.mark.parametrize("prepare", [lambda p: p, ragged], ids=["events", "ragged"])
def test_pieces_are_never_longer_than_asked_for(provider: FakeProvider, read: Any, size: int, prepare: Any) -> None:
    prepare(provider)
    url = f"{provider.openai_url}/chat/completions"
    without = list(read(url, size))
    with wflo_nb.execution(budget_usd=1):
        pieces = list(read(url, size))
    assert max(map(len, pieces)) <= size
    assert b"".join(pieces) == b"".join(without)
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"]


def leave_requests(url: str) -> None:
    response = requests.post(url, json=STREAM, stream=True, timeout=10)
    next(response.iter_lines())
    response.close()


def leave_urllib3(url: str) -> None:
    with urllib3.PoolManager() as pool:
        response = pool.request("POST", url, json=STREAM, preload_content=False)
        next(response.stream())
        response.close()


def lose_urllib3(url: str) -> None:
    with urllib3.PoolManager() as pool:
        next(pool.request("POST", url, json=STREAM, preload_content=False).stream())
        gc.collect()


def leave_aiohttp(url: str) -> None:
    async def work() -> None:
        async with aiohttp.ClientSession() as session, session.post(url, json=STREAM) as response:
            await response.content.readline()

    asyncio.run(work())


def lose_aiohttp(url: str) -> None:
    async def work() -> None:
        async with aiohttp.ClientSession() as session:
            await (await session.post(url, json=STREAM)).content.readline()

    asyncio.run(work())
    gc.collect()


def time_out_aiohttp(url: str) -> None:
    async def work() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.2)) as session, session.post(url, json=STREAM) as response:
            await response.read()

    with pytest.raises(TimeoutError):
        asyncio.run(work())


def time_out_requests(url: str) -> None:
    with pytest.raises(requests.RequestException):
        requests.post(url, json=STREAM, timeout=0.1)


@pytest.mark.parametrize(
    "leave", [leave_requests, leave_urllib3, lose_urllib3, leave_aiohttp, lose_aiohttp, time_out_aiohttp, time_out_requests]
)
def test_stream_that_nobody_reads_to_its_end_keeps_its_hold(provider: FakeProvider, leave: Callable[[str], None]) -> None:
    provider.behave(chunk_delay=0.5)
    with wflo_nb.execution(budget_usd=1) as run:
        leave(f"{provider.openai_url}/chat/completions")
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED"
    figures = run.figures()
    assert figures.held_nano == figures.in_flight == 0 and figures.spent_nano == row["reserved_nano"] >= provider.spent_nano


def test_whole_answer_that_nobody_reads_is_counted_as_it_is(provider: FakeProvider) -> None:
    async def work() -> None:
        async with aiohttp.ClientSession() as session, session.post(f"{provider.openai_url}/chat/completions", json=ASK) as response:
            await response.content.wait_eof()

    with wflo_nb.execution(budget_usd=1):
        asyncio.run(work())
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"] and ledger_total() == provider.spent_nano


def test_read_that_was_cancelled_may_be_taken_up_again(provider: FakeProvider) -> None:
    provider.behave(chunk_delay=0.02)

    async def work() -> bytes:
        async with aiohttp.ClientSession() as session, session.post(f"{provider.openai_url}/chat/completions", json=STREAM) as response:
            found = b""
            while not response.content.at_eof():
                with contextlib.suppress(TimeoutError):
                    found += await asyncio.wait_for(response.content.readany(), 0.005)
            return found

    with wflo_nb.execution(budget_usd=1):
        assert asyncio.run(work()).endswith(b"data: [DONE]\n\n")
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"] and ledger_total() == provider.spent_nano


# -- once, and never twice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("post", POSTS)
def test_calls_outside_any_execution_are_left_alone(provider: FakeProvider, post: Post) -> None:
    with wflo_nb.execution():
        pass
    post(f"{provider.openai_url}/chat/completions", ASK)
    assert provider.bodies == [ASK] and ledger_calls() == []


def test_call_that_costs_nothing_to_another_service_passes_as_it_is(provider: FakeProvider) -> None:
    with wflo_nb.execution(budget_usd=0):
        for post in POSTS:
            post(f"{provider.url}/chat/messages", {"text": "no call to a model"})
    assert provider.bodies == [{"text": "no call to a model"}] * len(POSTS) and ledger_calls() == []


def test_other_interface_of_a_known_provider_is_refused_under_a_budget_whatever_carries_it() -> None:
    for post in POSTS:
        with pytest.raises(wflo_nb.errors.UnsupportedFormatError, match="no wire format"), wflo_nb.execution(budget_usd=1):
            post("http://api.openai.com/v1/things/nobody/knows", {"model": "gpt-image-1", "prompt": "x"})
    assert [row["state"] for row in ledger_calls()] == ["REFUSED"] * len(POSTS)


def _urlopen(host: str, path: str) -> None:
    urllib3.HTTPConnectionPool(host).urlopen("POST", path, body=b"{}", retries=False)


def _http_client(host: str, path: str) -> None:
    http.client.HTTPConnection(host).request("POST", path, b"{}")


@pytest.mark.parametrize("send", [_urlopen, _http_client])
@pytest.mark.parametrize("path", ["//v1/things/nobody/knows", "//[things/nobody/knows", "/v1/things?at=http://here.example/"])
def test_path_is_not_taken_for_an_address(send: Callable[[str, str], None], path: str) -> None:
    with pytest.raises(wflo_nb.errors.UnsupportedFormatError, match=r"api\.openai\.com/"), wflo_nb.execution(budget_usd=1):
        send("api.openai.com", path)


def _piece_by_piece(host: str, path: str, raw: bytes) -> int:
    with contextlib.closing(http.client.HTTPConnection(host)) as connection:
        connection.putrequest("POST", path)
        connection.putheader("content-length", str(len(raw)))
        connection.putheader("expect", "100-continue")
        connection.endheaders()
        connection.send(raw)
        return connection.getresponse().status


def _without_a_pool(host: str, path: str, raw: bytes) -> int:
    with contextlib.closing(urllib3.connection.HTTPConnection(host)) as connection:
        connection.request("POST", path, raw)
        return connection.getresponse().status


@pytest.mark.parametrize("post", [_piece_by_piece, _without_a_pool])
def test_request_is_noticed_also_where_it_is_put_together_below_the_usual_doors(
    provider: FakeProvider, post: Callable[[str, str, bytes], int]
) -> None:
    raw = json.dumps(ASK).encode()
    with pytest.raises(wflo_nb.errors.UnsupportedFormatError, match=r"http\.client"), wflo_nb.execution(budget_usd=1):
        post(provider.host, "/v1/chat/completions", raw)
    assert provider.requests == 0
    with wflo_nb.execution(budget_usd=1):
        assert post(provider.host, "/nothing/of/ours", raw) == 404
    with wflo_nb.execution():
        assert post(provider.host, "/v1/chat/completions", raw) == 200
    refused, unmetered = ledger_calls()
    assert (refused["state"], unmetered["state"], unmetered["cost_nano"]) == ("REFUSED", "SETTLED", None)


@pytest.mark.parametrize("kind", ["str", "bytes", "file", "pieces", "packed"])
@pytest.mark.parametrize("library", ["requests", "urllib3", "aiohttp"])
def test_body_is_read_whatever_it_is_handed_over_as(provider: FakeProvider, library: str, kind: str) -> None:
    raw = json.dumps(ASK).encode()
    headers = {"content-type": "application/json"} | ({"content-encoding": "gzip"} if kind == "packed" else {})

    def body() -> Any:
        if kind == "pieces" and library == "aiohttp":

            async def each() -> Any:
                yield raw[:20]
                yield raw[20:]

            return each()
        made = {"str": raw.decode(), "bytes": raw, "file": io.BytesIO(raw), "pieces": iter([raw[:20], raw[20:]])}
        return gzip.compress(raw) if kind == "packed" else made[kind]

    url = f"{provider.openai_url}/chat/completions"
    with wflo_nb.execution(budget_usd=1):
        if library == "requests":
            assert requests.post(url, data=body(), headers=headers, timeout=10).ok
        elif library == "urllib3":
            with urllib3.PoolManager() as pool:
                assert pool.request("POST", url, body=body(), headers=headers).status == 200
        else:

            async def work() -> None:
                async with aiohttp.ClientSession() as session, session.post(url, data=body(), headers=headers) as response:
                    assert response.status == 200
                    await response.read()

            asyncio.run(work())
    (row,) = ledger_calls()
    assert row["state"] == "SETTLED" and row["cost_nano"] == provider.spent_nano
    assert provider.bodies == [{**ASK, "max_tokens": row["cap_written"]}]


def _piped(data: bytes) -> Any:
    """A file that can be read once, as the output of a program is."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as end:
        end.write(data)
    return os.fdopen(reading, "rb")


async def _send_aiohttp(url: str, body: Any) -> None:
    async with aiohttp.ClientSession() as session, session.post(url, data=body) as response:
        await response.read()


def _form_aiohttp(url: str, body: Any) -> None:
    form = aiohttp.FormData()
    form.add_field("model", "whisper-1")
    form.add_field("file", body, filename="a.wav", content_type="audio/wav")
    asyncio.run(_send_aiohttp(url, form))


PIPING: dict[str, Callable[[str, Any], object]] = {
    "requests": lambda url, body: requests.post(url, data=body, timeout=10),
    "urllib3": lambda url, body: urllib3.request("POST", url, body=body, timeout=10),
    "aiohttp": lambda url, body: asyncio.run(_send_aiohttp(url, body)),
}


@pytest.mark.parametrize("budget", [1, None])
@pytest.mark.parametrize("ask", [{**ASK, "max_tokens": 20}, ASK, {"text": "no call to a model"}], ids=["as it is", "rewritten", "no call"])
@pytest.mark.parametrize("library", PIPING)
def test_body_that_can_be_read_once_is_sent(provider: FakeProvider, library: str, ask: dict[str, Any], budget: int | None) -> None:
    unchunking(provider)
    no_call = "text" in ask
    with wflo_nb.execution(budget_usd=budget):
        PIPING[library](
            f"{provider.url}/messages" if no_call else f"{provider.openai_url}/chat/completions", _piped(json.dumps(ask).encode())
        )
    assert [{name: body.get(name) for name in ask} for body in provider.bodies] == [ask]
    assert [row["state"] for row in ledger_calls()] == ([] if no_call else ["SETTLED"])


def test_form_with_a_file_that_can_be_read_once_is_sent_as_it_is_without_us() -> None:
    seen: list[bytes] = []

    class Keeping(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            while size := int(self.rfile.readline(), 16):
                seen.append(self.rfile.read(size))
                self.rfile.readline()
            self.send_response(400)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Keeping) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with wflo_nb.execution():
            _form_aiohttp(f"http://127.0.0.1:{server.server_port}/v1/audio/transcriptions", _piped(b"RIFF and so on"))
        thread.join(10)
    assert b"RIFF and so on" in b"".join(seen) and b"whisper-1" in b"".join(seen)


@pytest.mark.parametrize("inside", [True, False])
def test_fault_of_a_body_that_is_being_made_is_told_and_nothing_is_asked(provider: FakeProvider, inside: bool) -> None:
    unchunking(provider)

    async def broken() -> AsyncIterator[bytes]:
        yield b"{"
        raise ValueError("the file is gone")

    with wflo_nb.execution() if inside else contextlib.nullcontext(), pytest.raises(aiohttp.ClientConnectionError) as told:
        asyncio.run(_send_aiohttp(f"{provider.openai_url}/chat/completions", broken()))
    assert isinstance(told.value.__cause__, ValueError)
    assert provider.bodies == [] and ledger_calls() == []


UPLOADING: dict[str, Callable[[str, str, Iterator[bytes]], object]] = {
    "httpx": lambda url, proxy, parts: httpx.post(url, content=parts, proxy=proxy, timeout=10),
    "requests": lambda url, proxy, parts: requests.post(url, data=parts, proxies={"http": proxy}, timeout=10),
    "aiohttp": lambda url, proxy, parts: asyncio.run(_upload_aiohttp(url, proxy, parts)),
}


async def _upload_aiohttp(url: str, proxy: str, parts: Iterator[bytes]) -> None:
    async def each() -> AsyncIterator[bytes]:
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            yield part

    async with aiohttp.ClientSession() as session, session.post(url, data=each(), proxy=proxy) as response:
        await response.read()


@pytest.mark.parametrize("library", UPLOADING)
def test_upload_that_costs_nothing_is_sent_while_it_is_made(library: str) -> None:
    arrived, last = threading.Event(), threading.Event()
    waited: list[bool] = []

    class Taking(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
                arrived.set()
            last.set()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    def parts() -> Iterator[bytes]:
        yield b"the first of many, too many to be kept"
        waited.append(arrived.wait(5))
        yield b"the last"

    with http.server.HTTPServer(("127.0.0.1", 0), Taking) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with wflo_nb.execution(budget_usd=1):
            UPLOADING[library]("http://api.openai.com/v1/files", f"http://127.0.0.1:{server.server_port}", parts())
        thread.join(10)
    assert waited == [True] and last.is_set() and ledger_calls() == []


@pytest.mark.parametrize("library", ["urllib3", "aiohttp"])
def test_call_through_a_proxy_is_known_by_its_own_host(provider: FakeProvider, library: str) -> None:
    ask, url = {"model": "gpt-4o", "prompt": "x"}, "http://api.openai.com/v1/things/nobody/knows"
    with pytest.raises(wflo_nb.errors.UnsupportedFormatError, match=r"api\.openai\.com"), wflo_nb.execution(budget_usd=1):
        if library == "urllib3":
            requests.post(url, json=ask, proxies={"http": provider.url}, timeout=10)
        else:

            async def work() -> None:
                async with aiohttp.ClientSession() as session:
                    await session.post(url, json=ask, proxy=provider.url)

            asyncio.run(work())
    assert provider.requests == 0


def test_libraries_are_left_as_they_were() -> None:
    def doors() -> list[Any]:
        pool, plain = urllib3.HTTPConnectionPool._make_request, http.client.HTTPConnection
        return [aiohttp.ClientSession._request, aiohttp.ClientSession._ws_connect, pool, plain.request, plain.putrequest]

    assert runtime().restore() == []
    before = doors()
    with wflo_nb.execution(), wflo_nb.execution():
        assert all(now is not was for now, was in zip(doors(), before, strict=True))
    assert runtime().restore() == []
    assert doors() == before


def test_many_calls_at_once_stay_within_the_budget_and_none_hangs(provider: FakeProvider) -> None:
    provider.behave(delay=0.02)
    url = f"{provider.openai_url}/chat/completions"

    async def work() -> list[Any]:
        async with aiohttp.ClientSession() as session:

            async def one() -> int:
                async with session.post(url, json={**ASK, "max_tokens": 40}) as response:
                    await response.read()
                    return int(response.status)

            return await asyncio.gather(*(one() for _ in range(60)), return_exceptions=True)

    with pytest.raises(wflo_nb.BudgetExceededError), wflo_nb.execution(budget_usd="0.0004") as run:
        results = asyncio.run(work())
    assert {type(result) for result in results if result != 200} <= {
        *map(type, filter(lambda r: isinstance(r, wflo_nb.BudgetExceededError), results))
    }
    assert results.count(200) == provider.requests and run.figures().spent_nano == provider.spent_nano <= 400_000


# -- noticed only ------------------------------------------------------------------------------------------------------------


def test_call_through_the_standard_library_is_refused_under_a_budget_and_noted_without(provider: FakeProvider) -> None:
    url = f"{provider.openai_url}/chat/completions"
    asked = urllib.request.Request(url, json.dumps(ASK).encode(), {"content-type": "application/json"})
    with pytest.raises(wflo_nb.errors.UnsupportedFormatError, match=r"http\.client"), wflo_nb.execution(budget_usd=1):
        urllib.request.urlopen(asked, timeout=10)
    assert provider.requests == 0
    with wflo_nb.execution() as run:
        urllib.request.urlopen(asked, timeout=10).read()
    assert run.figures().unpriced == 1 and provider.requests == 1
    assert [row["state"] for row in ledger_calls()] == ["REFUSED", "SETTLED"]


def test_websocket_to_a_known_provider_is_refused_under_a_budget_and_left_alone_elsewhere(provider: FakeProvider) -> None:
    async def connect(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            await session.ws_connect(url)

    with pytest.raises(wflo_nb.errors.UnsupportedFormatError, match="websocket"), wflo_nb.execution(budget_usd=1):
        asyncio.run(connect("wss://api.openai.com/v1/realtime?model=gpt-realtime"))
    with pytest.raises(aiohttp.WSServerHandshakeError), wflo_nb.execution(budget_usd=1):
        asyncio.run(connect(f"{provider.url}/chatroom"))
    assert [row["state"] for row in ledger_calls()] == ["REFUSED"]


@pytest.mark.parametrize("library", ["urllib3", "aiohttp"])
def test_version_that_is_not_read_is_refused_under_a_budget_and_noted_once_without(
    provider: FakeProvider, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = post_requests if library == "urllib3" else post_aiohttp
    if library == "urllib3":
        monkeypatch.delattr(urllib3.HTTPResponse, "_handle_chunk")
    else:
        monkeypatch.delattr(aiohttp, "ClientMiddlewareType")
    url = f"{provider.openai_url}/chat/completions"
    with pytest.raises(wflo_nb.errors.UnsupportedFormatError, match=f"this version of {library}"), wflo_nb.execution(budget_usd=1):
        post(url, ASK)
    with wflo_nb.execution(budget_usd=1, prices={"mine": {"input": 0, "output": 0}}):
        post(f"{provider.url}/chat/messages", {"text": "no call to a model"})
    assert provider.requests == 1
    with wflo_nb.execution() as run:
        post(url, ASK)
    assert run.figures().unpriced == 1
    assert [row["state"] for row in ledger_calls()] == ["REFUSED", "SETTLED"]


def test_connections_go_back_to_their_pools(provider: FakeProvider) -> None:
    url = f"{provider.openai_url}/chat/completions"

    async def work() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            for ask in (ASK, STREAM, ASK):
                async with session.post(url, json=ask) as response:
                    await response.read()
            async with session.post(url, json=STREAM) as response:
                await response.content.readline()
            async with session.post(url, json=ASK, timeout=aiohttp.ClientTimeout(5)) as response:
                await response.read()

    with wflo_nb.execution(budget_usd=1), urllib3.HTTPConnectionPool("127.0.0.1", int(provider.url.rpartition(":")[2]), maxsize=1) as pool:
        for ask in (ASK, STREAM, ASK):
            assert pool.request("POST", "/v1/chat/completions", json=ask).data
            response = pool.request("POST", "/v1/chat/completions", json=ask, preload_content=False)
            assert b"".join(response.stream())
        assert (pool.num_requests, pool.num_connections) == (6, 1)
        asyncio.run(work())
    assert len(ledger_calls()) == provider.requests == 11


def test_threads_that_wait_for_each_others_money_get_it(provider: FakeProvider) -> None:
    provider.behave(delay=0.05)
    url = f"{provider.openai_url}/chat/completions"
    with wflo_nb.execution(budget_usd="0.0006") as run, ThreadPoolExecutor(8) as pool, requests.Session() as session:
        ask = {**ASK, "max_tokens": 100}  # each may cost a fifth of the budget, and costs a fiftieth
        answers = list(pool.map(lambda _: session.post(url, json=ask, timeout=30).json(), range(16)))
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [20] * 16
    assert run.figures().spent_nano == provider.spent_nano == ledger_total()
