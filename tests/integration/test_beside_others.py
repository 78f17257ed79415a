"""Clients as people set them up, and other people's instruments at the same doors: a call is counted once, and everybody keeps working."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import h2.config
import h2.connection
import h2.events
import hyperframe.frame
import openai
import pytest
import requests
import respx
import urllib3
import vcr

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls, ledger_total
from tests.integration.wire import ASK
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime

LIBRARIES = ["httpx", "httpx2"]
each_library = pytest.mark.parametrize("library", LIBRARIES)


def url_of(provider: FakeProvider) -> str:
    return f"{provider.openai_url}/chat/completions"


def assert_counted(provider: FakeProvider, times: int = 1) -> None:
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"] * times
    assert provider.requests == times and ledger_total() == provider.spent_nano


# -- httpx as people set it up -----------------------------------------------------------------------------------------------


@each_library
def test_event_hooks_see_what_the_caller_asked(provider: FakeProvider, library: str) -> None:
    http, seen = importlib.import_module(library), []
    raw = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}'
    hooks = {"request": [lambda request: seen.append(request.content)], "response": [lambda response: seen.append(response.status_code)]}
    with wflo_nb.execution(budget_usd=1), http.Client(event_hooks=hooks) as client:
        client.post(url_of(provider), content=raw)
    assert seen == [raw, 200]
    assert "max_tokens" in provider.bodies[0]
    assert_counted(provider)


@each_library
def test_transport_wrapped_round_the_default_one_and_a_subclass_that_calls_super_are_counted_once(
    provider: FakeProvider, library: str
) -> None:
    http = importlib.import_module(library)

    class Round(http.BaseTransport):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.inner = http.HTTPTransport()

        def handle_request(self, request: Any) -> Any:
            return self.inner.handle_request(request)

    class Own(http.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            return super().handle_request(request)

    class Asynchronous(http.AsyncHTTPTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            return await super().handle_async_request(request)

    async def work() -> None:
        async with http.AsyncClient(transport=Asynchronous()) as client:
            await client.post(url_of(provider), json=ASK)

    with wflo_nb.execution(budget_usd=1):
        for transport in (Round(), Own()):
            with http.Client(transport=transport) as client:
                client.post(url_of(provider), json=ASK)
        asyncio.run(work())
    assert_counted(provider, 3)


@each_library
def test_transport_that_retries_below_the_client_makes_a_call_each_time(provider: FakeProvider, library: str) -> None:
    http = importlib.import_module(library)

    class Again(http.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            response = super().handle_request(request)
            if response.status_code == 429:
                response.close()
                response = super().handle_request(request)
            return response

    provider.next(status=429)
    with wflo_nb.execution(budget_usd=1), http.Client(transport=Again()) as client:
        assert client.post(url_of(provider), json=ASK).status_code == 200
    assert [row["state"] for row in ledger_calls()] == ["RELEASED", "SETTLED"]


@each_library
def test_mounts_and_proxies_are_seen(provider: FakeProvider, library: str) -> None:
    http = importlib.import_module(library)
    with wflo_nb.execution(budget_usd=1):
        with http.Client(mounts={"http://": http.HTTPTransport()}) as client:
            client.post(url_of(provider), json=ASK)
        with http.Client(proxy=provider.url) as client:
            client.post("http://models.example.org/v1/chat/completions", json=ASK)
    assert_counted(provider, 2)


ALIAS = """
import sys, httpx2
httpx2.alias_httpx()
import wflo_nb, httpx
assert httpx is httpx2
with wflo_nb.execution(budget_usd=1) as run:
    httpx.post(sys.argv[1], json={"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]})
print(run.figures().calls, run.figures().spent_nano)
"""


def test_one_library_under_two_names_is_counted_once(provider: FakeProvider) -> None:
    done = subprocess.run([sys.executable, "-c", ALIAS, url_of(provider)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", str(provider.spent_nano)]


class Http2:
    """A server of one connection that speaks HTTP/2 from the first byte."""

    ANSWER = b'{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}}'

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.bodies: dict[int, bytes] = {}
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        channel, _ = self.socket.accept()
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        channel.sendall(connection.data_to_send())
        while data := channel.recv(2**16):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    self.answer(channel, connection, event.stream_id)
            channel.sendall(connection.data_to_send())

    def answer(self, _channel: socket.socket, connection: h2.connection.H2Connection, stream: int) -> None:
        connection.send_headers(stream, [(":status", "200"), ("content-type", "application/json")])
        connection.send_data(stream, self.ANSWER, end_stream=True)


@each_library
def test_http2_is_read_as_http1_is(library: str) -> None:
    http, server = importlib.import_module(library), Http2()
    url = f"http://127.0.0.1:{server.socket.getsockname()[1]}/v1/chat/completions"
    with wflo_nb.execution(budget_usd=1), http.Client(http1=False, http2=True) as client:
        answers = [client.post(url, json=ASK) for _ in range(2)]
    assert [answer.http_version for answer in answers] == ["HTTP/2", "HTTP/2"]
    assert [(row["state"], row["cost_nano"]) for row in ledger_calls()] == [("SETTLED", 13_500)] * 2
    assert all(b"max_tokens" in body for body in server.bodies.values()) and len(server.bodies) == 2
    server.socket.close()


class Http2WithoutHeaders(Http2):
    """Breaks the protocol when it has the whole request: a body, and no headers before it."""

    def answer(self, channel: socket.socket, _connection: h2.connection.H2Connection, stream: int) -> None:
        channel.sendall(hyperframe.frame.DataFrame(stream, self.ANSWER).serialize())


@each_library
def test_http2_that_breaks_after_the_request_keeps_its_hold(library: str) -> None:
    http, server = importlib.import_module(library), Http2WithoutHeaders()
    url = f"http://127.0.0.1:{server.socket.getsockname()[1]}/v1/chat/completions"
    with wflo_nb.execution(budget_usd=1), http.Client(http1=False, http2=True) as client, pytest.raises(http.LocalProtocolError):
        client.post(url, json=ASK)
    (row,) = ledger_calls()
    assert (row["state"], row["cost_nano"]) == ("UNCONFIRMED", row["reserved_nano"])
    assert server.bodies
    server.socket.close()


@each_library
def test_http1_request_that_cannot_be_written_costs_nothing(provider: FakeProvider, library: str) -> None:
    http = importlib.import_module(library)
    with wflo_nb.execution(budget_usd=1), http.Client() as client, pytest.raises(http.LocalProtocolError):
        client.post(url_of(provider), json=ASK, headers={"x-odd": "a\nb"})
    (row,) = ledger_calls()
    assert (row["state"], row["cost_nano"]) == ("RELEASED", 0)


@pytest.mark.parametrize("library", [*LIBRARIES, "requests", "aiohttp"])
def test_signed_request_is_sent_byte_by_byte_as_it_was_signed_and_all_it_may_cost_is_held(provider: FakeProvider, library: str) -> None:
    headers = {
        "authorization": "AWS4-HMAC-SHA256 Credential=…".replace("…", "x"),
        "accept-encoding": "br",
        "content-type": "application/json",
    }
    raw = b'{"model": "gpt-4o-mini",   "messages": [{"role": "user", "content": "hi"}]}'
    received: list[Any] = []
    handler: Any = provider._server.RequestHandlerClass

    class Keeping(handler):  # type: ignore[misc]
        def do_POST(self) -> None:
            received.append((self.headers["accept-encoding"], int(self.headers["content-length"])))
            super().do_POST()

    def send() -> None:
        if library == "requests":
            requests.post(url_of(provider), data=raw, headers=headers, timeout=10)
        elif library == "aiohttp":

            async def work() -> None:
                async with aiohttp.ClientSession() as session, session.post(url_of(provider), data=raw, headers=headers) as response:
                    await response.read()

            asyncio.run(work())
        else:
            importlib.import_module(library).post(url_of(provider), content=raw, headers=headers)

    provider._server.RequestHandlerClass = Keeping
    with wflo_nb.execution(budget_usd=1):
        send()
    with pytest.raises(wflo_nb.BudgetExceededError), wflo_nb.execution(budget_usd="0.001"):
        send()  # with a lower cap it would have fitted
    assert received == [("br", len(raw))] and len(provider.bodies) == 1
    settled, refused = ledger_calls()
    assert (settled["state"], settled["cap_written"], refused["state"]) == ("SETTLED", None, "REFUSED")
    assert settled["reserved_nano"] >= 16_384 * 600, "all that the model may write"


# -- aiohttp below httpx -----------------------------------------------------------------------------------------------------


def test_openai_client_that_stands_on_aiohttp_is_counted_once(provider: FakeProvider) -> None:
    provider.next(status=429, retry_after_ms=1)

    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="x", http_client=openai.DefaultAioHttpClient()) as client:
            await client.chat.completions.create(model="gpt-4o-mini", messages=PROMPT)
            chunks = [c async for c in await client.chat.completions.create(model="gpt-4o-mini", messages=PROMPT, stream=True)]
            assert all(chunk.choices for chunk in chunks)

    with wflo_nb.execution(budget_usd=1):
        asyncio.run(work())
    assert [row["state"] for row in ledger_calls()] == ["RELEASED", "SETTLED", "SETTLED"]
    assert provider.requests == 3 and ledger_total() == provider.spent_nano


def test_refusal_reaches_the_caller_of_an_openai_client_that_stands_on_aiohttp(provider: FakeProvider) -> None:
    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="x", http_client=openai.DefaultAioHttpClient()) as client:
            with pytest.raises(wflo_nb.BudgetExceededError):
                await client.chat.completions.create(model="gpt-4o-mini", messages=PROMPT)

    with pytest.raises(wflo_nb.BudgetExceededError), wflo_nb.execution(budget_usd=0):
        asyncio.run(work())
    assert provider.requests == 0 and [row["state"] for row in ledger_calls()] == ["REFUSED"]


# -- other people's instruments ----------------------------------------------------------------------------------------------


def test_mocked_answers_of_respx_come_through_beside_us(provider: FakeProvider) -> None:
    import httpx

    with wflo_nb.execution(), respx.mock as router:
        route = router.post(url_of(provider)).mock(return_value=httpx.Response(200, json={"mocked": True}))
        assert httpx.post(url_of(provider), json=ASK).json() == {"mocked": True}
        assert route.called
    httpx.post(url_of(provider), json=ASK)
    assert provider.requests == 1


def test_cassette_of_vcrpy_records_what_is_counted_and_plays_it_back(provider: FakeProvider, tmp_path: Path) -> None:
    import httpx

    def ask_all() -> None:
        with vcr.use_cassette(str(tmp_path / "cassette.yaml"), record_mode=vcr.mode.NEW_EPISODES):
            httpx.post(url_of(provider), json={**ASK, "user": "1"})
            _httpx(url_of(provider))
            _requests(url_of(provider))
            _aiohttp(url_of(provider))

    for _ in range(2):  # not merely because it was imported while calls were watched
        with wflo_nb.execution(budget_usd=1):
            _httpx(url_of(provider))
    assert_counted(provider, 2)
    with wflo_nb.execution(budget_usd=1):
        ask_all()
    assert_counted(provider, 6)
    with wflo_nb.execution(budget_usd=1):
        ask_all()
    assert provider.requests == 6, "played back"
    assert [row["state"] for row in ledger_calls()[6:]] == ["SETTLED"], "urllib3's door is not vcrpy's: a call, though it is played back"


def _httpx(url: str) -> None:
    import httpx2

    httpx2.post(url, json=ASK)


def _requests(url: str) -> None:
    requests.post(url, json=ASK, timeout=10)


def _aiohttp(url: str) -> None:
    async def work() -> None:
        async with aiohttp.ClientSession() as session, session.post(url, json=ASK) as response:
            await response.read()

    asyncio.run(work())


def _door(send: Callable[[str], None]) -> tuple[Any, str]:
    import httpx2

    return {
        _httpx: (httpx2.HTTPTransport, "handle_request"),
        _requests: (urllib3.HTTPConnectionPool, "_make_request"),
        _aiohttp: (aiohttp.ClientSession, "_request"),
    }[send]


@pytest.fixture(params=[_httpx, _requests, _aiohttp])
def send(request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    owner, name = _door(request.param)
    real = owner.__dict__[name]
    yield request.param
    setattr(owner, name, real)


class Descriptor:
    """As wrapt makes them: to be bound first."""

    def __init__(self, inner: Any, seen: list[str]) -> None:
        self.inner, self.seen = inner, seen

    @property
    def __class__(self) -> Any:  # they say that they are functions
        return type(lambda: None)

    def __get__(self, instance: Any, owner: Any) -> Any:
        def theirs(*args: Any, **kwargs: Any) -> Any:
            self.seen.append("bound")
            return self.inner.__get__(instance, owner)(*args, **kwargs)

        return theirs


@pytest.mark.parametrize("kind", ["wraps", "plain", "descriptor"])
@pytest.mark.parametrize("when", ["before", "between", "inside"])
def test_call_is_counted_once_whenever_somebody_else_wraps_the_same_door(
    provider: FakeProvider, send: Callable[[str], None], when: str, kind: str
) -> None:
    (owner, name), seen = _door(send), []

    def instrument() -> None:
        inner = owner.__dict__[name]

        def theirs(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return inner(*args, **kwargs)

        made = {
            "wraps": functools.wraps(inner)(theirs) if kind == "wraps" else None,
            "plain": theirs,
            "descriptor": Descriptor(inner, seen),
        }
        setattr(owner, name, made[kind])

    if when == "before":
        instrument()
    with wflo_nb.execution(budget_usd=1):
        if when == "inside":
            instrument()
        send(url_of(provider))
    if when == "between":
        instrument()
    with wflo_nb.execution(budget_usd=1):
        send(url_of(provider))
    assert_counted(provider, 2)
    assert len(seen) == {"before": 2, "inside": 2, "between": 1}[when]
    send(url_of(provider))
    assert len(ledger_calls()) == 2 and len(seen) == {"before": 3, "inside": 3, "between": 2}[when]


def _answers_in_place_of(send: Callable[[str], None]) -> Callable[..., Any]:
    import httpx2

    answer = httpx2.Response(200, json={"mocked": True})

    async def later(*_: Any, **__: Any) -> Any:
        return mock.MagicMock(read=mock.AsyncMock())

    return {_httpx: lambda *_: answer, _requests: lambda *_, **__: urllib3.HTTPResponse(b"{}", status=200), _aiohttp: later}[send]


@pytest.mark.parametrize("kind", ["function", "mock"])
def test_calls_are_watched_again_when_what_replaced_a_door_before_the_first_block_is_gone(
    provider: FakeProvider, send: Callable[[str], None], kind: str
) -> None:
    assert runtime().restore() == []
    owner, name = _door(send)
    real, stand_in = owner.__dict__[name], _answers_in_place_of(send)
    with mock.patch.object(owner, name, stand_in if kind == "function" else mock.MagicMock(side_effect=stand_in)), wflo_nb.execution():
        with contextlib.suppress(Exception):  # what it answers is no answer of a provider
            send(url_of(provider))
        assert provider.requests == 0
    counted = len(ledger_calls())
    with wflo_nb.execution(budget_usd=1):
        send(url_of(provider))
    assert [row["state"] for row in ledger_calls()[counted:]] == ["SETTLED"] and provider.requests == 1
    assert runtime().restore() == []
    assert owner.__dict__[name] is real


def test_cassette_round_the_first_block_hides_no_later_call(provider: FakeProvider, tmp_path: Path) -> None:
    assert runtime().restore() == []
    with vcr.use_cassette(str(tmp_path / "cassette.yaml")), wflo_nb.execution(budget_usd=1):
        _httpx(url_of(provider))
        _aiohttp(url_of(provider))
    assert_counted(provider, 2)
    with wflo_nb.execution(budget_usd=1):
        _httpx(url_of(provider))
        _aiohttp(url_of(provider))
        with vcr.use_cassette(str(tmp_path / "another.yaml")):
            _httpx(url_of(provider))
            _aiohttp(url_of(provider))
    assert_counted(provider, 6)


def test_nothing_of_ours_comes_back_with_what_lay_over_it(provider: FakeProvider) -> None:
    import httpx2

    assert runtime().restore() == []
    real = httpx2.HTTPTransport.__dict__["handle_request"]
    with wflo_nb.execution():
        pass
    ours = httpx2.HTTPTransport.__dict__["handle_request"]
    with mock.patch.object(httpx2.HTTPTransport, "handle_request", lambda self, request: ours(self, request)), wflo_nb.execution():
        _httpx(url_of(provider))
    assert_counted(provider)
    assert runtime().restore() == []
    assert httpx2.HTTPTransport.__dict__["handle_request"] is real


def test_what_another_upload_does_on_its_way_is_a_call_of_its_own(provider: FakeProvider) -> None:
    async def work() -> None:
        async with aiohttp.ClientSession() as session:

            async def pieces() -> AsyncIterator[bytes]:
                async with session.post(url_of(provider), json=ASK) as response:
                    yield await response.read()

            async with session.put(f"{provider.url}/upload", data=pieces()) as response:
                assert response.status == 501

    with wflo_nb.execution(budget_usd=1):
        asyncio.run(work())
    assert_counted(provider)
