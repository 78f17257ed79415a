"""The door for programs of their own: what they send through it is read, limited and answered like any call of this process."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import httpx2
import pytest

import wflo_nb
from tests.integration.conftest import ledger_calls, ledger_total
from wflo_nb import BudgetExceededError
from wflo_nb.capture.transports.gateway import Gateway
from wflo_nb.capture.transports.programs import patch_claude_agent
from wflo_nb.errors import UnsupportedFormatError
from wflo_nb.testing import FakeProvider

ASK: dict[str, Any] = {"model": "claude-sonnet-4-5", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
PROGRAM = """
import sys
from anthropic import Anthropic
client = Anthropic(base_url=sys.argv[1], api_key="test")
ask = dict(model="claude-sonnet-4-5", max_tokens=50, messages=[{"role": "user", "content": "hi"}])
try:
    print(client.messages.create(**ask).content[0].text)
    with client.messages.stream(**ask) as stream:
        print("".join(stream.text_stream))
except Exception as error:
    print(type(error).__name__, error.status_code, "refused before it was sent" in str(error))
"""


KNOCK = """
import httpx, json, sys
try:
    answer = httpx.post(sys.argv[1], content=sys.argv[2], timeout=30)
    print(json.dumps([answer.status_code, answer.text]))
except httpx.HTTPError as error:
    print(json.dumps([0, type(error).__name__]))
"""


def knock(url: str, **more: Any) -> tuple[int, str]:
    """Ask from a program of its own: a request of this process would be a call of this process."""
    done = subprocess.run(
        [sys.executable, "-c", KNOCK, url, json.dumps({**ASK, **more})], capture_output=True, text=True, check=True, timeout=60
    )
    status, text = json.loads(done.stdout)
    return status, text


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "wflo-gateway"]


def program(door: Gateway) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, door.url], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_program_gets_its_answers_and_its_execution_the_bill(provider: FakeProvider, library: Any) -> None:
    with wflo_nb.execution("outside", budget_usd=1) as run:
        with wflo_nb.step("agent"):
            door = Gateway(library, run.account, provider.url)
        whole, streamed = program(door)
        door.close()
    assert whole.split() == streamed.split()
    rows = ledger_calls()
    assert [(row["state"], row["step"], row["stream"]) for row in rows] == [("SETTLED", "agent", 0), ("SETTLED", "agent", 1)]
    assert ledger_total() == provider.spent_nano == run.figures().spent_nano > 0


def test_program_that_is_refused_is_told_not_to_try_again(provider: FakeProvider, library: Any) -> None:
    with pytest.raises(BudgetExceededError), wflo_nb.execution("poor", budget_usd=0) as run:
        door = Gateway(library, run.account, provider.url)
        said = program(door)
        door.close()
    assert said == ["PaymentRequiredError 402 True"]
    assert provider.requests == 0
    assert [row["state"] for row in ledger_calls()] == ["REFUSED"]


def test_nobody_else_finds_the_door(provider: FakeProvider, library: Any) -> None:
    with wflo_nb.execution("t", budget_usd=1) as run:
        door = Gateway(library, run.account, provider.url)
        parts = urlsplit(door.url)
        assert len(parts.path) > 20
        for path in ("/v1/messages", "/" + "x" * 22 + "/v1/messages", f"{parts.path}x/v1/messages"):
            assert knock(f"http://{parts.netloc}{path}")[0] == 404
        door.close()
    assert provider.bodies == []


def test_provider_that_is_not_there_costs_nothing(library: Any) -> None:
    with wflo_nb.execution("t", budget_usd=1) as run:
        door = Gateway(library, run.account, "http://127.0.0.1:9")
        status, text = knock(f"{door.url}/v1/messages")
        door.close()
    assert (status, json.loads(text)["error"]["type"]) == (502, "api_error")
    assert {(row["state"], row["cost_nano"]) for row in ledger_calls()} == {("RELEASED", 0)}


def test_answer_that_is_cut_off_keeps_its_hold(provider: FakeProvider, library: Any) -> None:
    provider.behave(cut_after=3)
    with wflo_nb.execution("t", budget_usd=1) as run:
        door = Gateway(library, run.account, provider.url)
        assert knock(f"{door.url}/v1/messages", stream=True) == (0, "RemoteProtocolError")
        door.close()
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED"
    assert row["cost_nano"] == row["reserved_nano"] >= provider.spent_nano > 0


SEVERAL = """
import http.client, sys
from urllib.parse import urlsplit
parts = urlsplit(sys.argv[1])
connection = http.client.HTTPConnection(parts.netloc, timeout=10)
for method, path in (("HEAD", "/x"), ("GET", "/empty"), ("POST", "/v1/messages"), ("POST", "/v1/messages")):
    body = iter([sys.argv[2][:9].encode(), sys.argv[2][9:].encode()]) if method == "POST" else None
    connection.request(method, parts.path + path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    print(method, answer.status, answer.getheader("transfer-encoding"), len(answer.read()) > 0)
    if answer.getheader("content-length") is None and not answer.chunked and connection.sock is not None:
        connection.sock.settimeout(0.2)
        try:
            print("left over", connection.sock.recv(100))
        except TimeoutError:
            pass
        connection.sock.settimeout(10)
"""


def test_one_connection_serves_answers_without_a_body_and_requests_in_chunks(provider: FakeProvider, library: Any) -> None:
    handler: Any = provider._server.RequestHandlerClass

    class Empty(handler):  # type: ignore[misc]
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "7")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

    provider._server.RequestHandlerClass = Empty
    with wflo_nb.execution("t", budget_usd=1) as run:
        door = Gateway(library, run.account, provider.url)
        done = subprocess.run([sys.executable, "-c", SEVERAL, door.url, json.dumps(ASK)], capture_output=True, text=True, timeout=60)
        door.close()
    assert done.stdout.splitlines() == ["HEAD 200 None False", "GET 204 None False", *["POST 200 chunked True"] * 2], done.stderr
    assert provider.bodies == [ASK, ASK]
    assert ledger_total() == provider.spent_nano > 0


def test_request_whose_end_cannot_be_told_is_not_sent(provider: FakeProvider, library: Any) -> None:
    with wflo_nb.execution("t", budget_usd=1) as run:
        door = Gateway(library, run.account, provider.url)
        parts = urlsplit(door.url)
        for said in (
            "content-length: many",
            "content-length: -1",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked\r\n\r\nxyz\r\n",
        ):
            with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
                raw.sendall(f"POST {parts.path}/v1/messages HTTP/1.1\r\nhost: x\r\n{said}\r\n\r\n".encode())
                assert raw.recv(100).startswith(b"HTTP/1.1 400 ")
                while raw.recv(1000):
                    """The connection is closed, since nobody knows where the next request begins."""
        door.close()
    assert provider.requests == 0


# -- how the program is led there --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Options:
    env: dict[str, str]
    settings: str | None = None


class Transport:
    """What claude-agent-sdk has between itself and its program, as far as we look at it."""

    def __init__(self, options: Options) -> None:
        self._options, self._cwd = options, None
        self.fails = False

    async def connect(self) -> None:
        if self.fails:
            raise OSError("no such program")

    async def close(self) -> None:
        """The program has ended."""


@pytest.fixture
def patched() -> Iterator[None]:
    undo = patch_claude_agent(types.SimpleNamespace(SubprocessCLITransport=Transport))  # type: ignore[arg-type]
    yield
    undo()
    assert not hasattr(Transport.connect, "__wrapped__") and not hasattr(Transport.close, "__wrapped__")


def test_program_is_told_in_its_environment_and_in_its_settings(provider: FakeProvider, patched: None) -> None:
    options = Options({"ANTHROPIC_BASE_URL": provider.url, "MINE": "1"}, '{"model": "opus", "env": {"OTHER": "2"}}')
    before = dataclasses.replace(options, env=dict(options.env))
    transport = Transport(options)

    async def work() -> None:
        await transport.connect()
        url, settings = transport._options.env["ANTHROPIC_BASE_URL"], json.loads(transport._options.settings or "")
        assert url != provider.url
        assert settings["env"]["ANTHROPIC_BASE_URL"] == url
        assert (settings["model"], settings["env"]["OTHER"], transport._options.env["MINE"]) == ("opus", "2", "1")
        assert (await asyncio.to_thread(knock, f"{url}/v1/messages"))[0] == 200
        await transport.close()

    with wflo_nb.execution("t", budget_usd=1):
        asyncio.run(work())
    assert options == before  # the user's own
    assert len(ledger_calls()) == 1
    assert ledger_total() == provider.spent_nano > 0


@pytest.mark.parametrize(
    ("env", "settings"),
    [({"CLAUDE_CODE_USE_VERTEX": "true"}, None), ({}, "no-such-file.json"), ({}, '{"env": 3}'), ({}, "{broken")],
    ids=["cloud", "no file", "odd", "broken"],
)
def test_program_that_cannot_be_led_is_turned_away(patched: None, env: dict[str, str], settings: str | None) -> None:
    with pytest.raises(UnsupportedFormatError, match="the program that claude-agent-sdk starts"), wflo_nb.execution("t", budget_usd=1):
        asyncio.run(Transport(Options(env, settings)).connect())


def test_program_is_led_past_its_proxy(patched: None) -> None:
    transport = Transport(
        Options({"NO_PROXY": "here.example"}, '{"env": {"HTTP_PROXY": "http://far.example", "no_proxy": "there.example"}}')
    )

    async def work() -> None:
        await transport.connect()
        for env in (transport._options.env, json.loads(transport._options.settings or "")["env"]):
            for name in ("NO_PROXY", "no_proxy"):
                assert "127.0.0.1" in env[name].split(",") and "there.example" in env[name]
        await transport.close()

    with wflo_nb.execution("t", budget_usd=1):
        asyncio.run(work())


def test_program_that_does_not_start_leaves_no_door_open(patched: None) -> None:
    transport = Transport(Options({}))
    transport.fails = True
    with wflo_nb.execution("t", budget_usd=1), pytest.raises(OSError, match="no such program"):
        asyncio.run(transport.connect())
    asyncio.run(Transport(Options({})).connect())  # outside of any execution it is left alone
