"""boto3 and aiobotocore: caps are written before a request is signed, each attempt is held for, and every signature stays right."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import aiobotocore.session
import boto3
import botocore.auth
import botocore.awsrequest
import botocore.config
import botocore.credentials
import pytest
from aiobotocore.config import AioConfig

import wflo_nb
from tests.integration.conftest import ledger_calls, ledger_total
from wflo_nb.capture import evident, formats
from wflo_nb.capture.formats.base import WireFormat
from wflo_nb.events import CallChanged

MODEL = "anthropic.claude-sonnet-4-5-v1:0"
ASK = {"anthropic_version": "bedrock-2023-05-31", "messages": [{"role": "user", "content": "Hello."}]}
COST = 7 * 3_000 + 20 * 15_000
KEYS = {"aws_access_key_id": "AKIDTEST", "aws_secret_access_key": "secret", "region_name": "us-east-1"}

RETRIES: dict[str, Any] = {"max_attempts": 2, "mode": "standard"}


class Bedrock:
    """A server on loopback that checks signatures with botocore's own signer and answers as Claude does."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.signatures: list[bool] = []
        self.statuses: list[int] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def signed_rightly(self, headers: Any, path: str, raw: bytes) -> bool:
        told = headers["authorization"]
        names = told.split("SignedHeaders=")[1].split(",")[0].split(";")
        request = botocore.awsrequest.AWSRequest("POST", self.url + path, {n: headers[n] for n in names if n != "host"}, raw)
        request.context["timestamp"] = headers["x-amz-date"]
        signer = botocore.auth.SigV4Auth(botocore.credentials.Credentials("AKIDTEST", "secret"), "bedrock", "us-east-1")
        return told.endswith(signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request))

    def _handler(bedrock) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                bedrock.signatures.append(bedrock.signed_rightly(self.headers, self.path, raw))
                bedrock.bodies.append(json.loads(raw))
                status = bedrock.statuses.pop(0) if bedrock.statuses else 200
                usage = {"input_tokens": 7, "output_tokens": 20}
                answer = {"type": "message", "model": "claude-sonnet-4-5", "content": [{"type": "text", "text": "Hi."}], "usage": usage}
                data = json.dumps(answer if status == 200 else {"message": "busy"}).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler


@pytest.fixture
def bedrock() -> Iterator[Bedrock]:
    made = Bedrock()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join(5)


@pytest.fixture(autouse=True)
def claude_at_bedrock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anthropic's messages as Bedrock carries them, for what this file is about: the way, not the words."""
    messages: WireFormat = formats.all_at("/v1/messages")[0]

    def read(body: dict[str, Any], *where: Any) -> Any:
        return messages.read({**body, "model": "claude-sonnet-4-5"}, *where)

    def write_cap(body: dict[str, Any], cap: int, *where: Any) -> None:
        body["max_tokens"] = cap

    ours = replace(messages, path="/invoke", read=read, write_cap=write_cap, recognises=lambda body: "messages" in body)
    monkeypatch.setattr(formats, "all_at", lambda path: (ours,) if path.endswith("/invoke") else ())
    monkeypatch.setattr(formats, "find", lambda path: ours if path.endswith("/invoke") else None)


def by_boto3(bedrock: Bedrock, client: Any = None, **extra: Any) -> Any:
    config = botocore.config.Config(retries=RETRIES)
    client = client or boto3.client("bedrock-runtime", endpoint_url=bedrock.url, config=config, **KEYS)
    return json.loads(client.invoke_model(modelId=MODEL, body=json.dumps({**ASK, **extra}))["body"].read())


def by_aiobotocore(bedrock: Bedrock, **extra: Any) -> Any:
    async def work() -> Any:
        made = aiobotocore.session.get_session().create_client(
            "bedrock-runtime", endpoint_url=bedrock.url, config=AioConfig(retries=RETRIES), **KEYS
        )
        async with made as client:
            answer = await client.invoke_model(modelId=MODEL, body=json.dumps({**ASK, **extra}))
            return json.loads(await answer["body"].read())

    return asyncio.run(work())


Send = Callable[..., Any]
both = pytest.mark.parametrize("send", [by_boto3, by_aiobotocore])


@both
def test_server_is_told_to_those_who_listen(bedrock: Bedrock, send: Send) -> None:
    heard: list[Any] = []
    undo = wflo_nb.subscribe(lambda event: heard.append(event) if isinstance(event, CallChanged) else None)
    with wflo_nb.execution():
        send(bedrock)
    undo()
    assert {(event.call.meta["host"], event.call.meta["port"]) for event in heard} == {("127.0.0.1", urlsplit(bedrock.url).port)}


@both
def test_cap_is_written_before_the_request_is_signed(bedrock: Bedrock, send: Send) -> None:
    with wflo_nb.execution(budget_usd=1) as run:
        assert send(bedrock)["usage"]["output_tokens"] == 20
    (row,) = ledger_calls()
    assert (row["state"], row["cost_nano"]) == ("SETTLED", COST) and run.figures().spent_nano == COST
    assert bedrock.bodies == [{**ASK, "max_tokens": row["cap_written"]}]
    assert bedrock.signatures == [True]


def test_clients_made_before_are_included_and_left_as_they_were_afterwards(bedrock: Bedrock) -> None:
    client = boto3.client("bedrock-runtime", endpoint_url=bedrock.url, **KEYS)
    for _ in range(2):
        with wflo_nb.execution(budget_usd=1):
            by_boto3(bedrock, client)
        by_boto3(bedrock, client)
    assert ["max_tokens" in body for body in bedrock.bodies] == [True, False, True, False]
    assert len(ledger_calls()) == 2 and bedrock.signatures == [True] * 4


@both
def test_each_retry_is_admitted_and_signed_anew(bedrock: Bedrock, send: Send) -> None:
    bedrock.statuses = [503]
    with wflo_nb.execution(budget_usd=1):
        send(bedrock, max_tokens=30)
    assert [row["state"] for row in ledger_calls()] == ["UNCONFIRMED", "SETTLED"]
    assert bedrock.signatures == [True, True] and bedrock.bodies == [{**ASK, "max_tokens": 30}] * 2


@both
def test_refusal_arrives_as_it_is_and_nothing_is_sent_then_or_later(bedrock: Bedrock, send: Send) -> None:
    seen = []
    with pytest.raises(wflo_nb.BudgetExceededError), wflo_nb.execution(budget_usd="0.003"):
        for _ in range(5):
            try:
                send(bedrock, max_tokens=50)
            except Exception as error:
                seen.append(error)
    assert seen and all(isinstance(error, wflo_nb.BudgetExceededError) for error in seen)
    assert len(bedrock.bodies) == 5 - len(seen) > 0 and ledger_total() == COST * len(bedrock.bodies)


@both
def test_call_that_is_not_sent_after_all_gives_its_money_back(bedrock: Bedrock, send: Send) -> None:
    bedrock.url = "http://127.0.0.1:9"
    with wflo_nb.execution(budget_usd=1) as run, pytest.raises(Exception, match="Could not connect"):
        send(bedrock)
    assert {row["state"] for row in ledger_calls()} == {"RELEASED"} and run.figures().held_nano == 0


def test_answer_that_an_event_handler_gives_costs_nothing(bedrock: Bedrock) -> None:
    client = boto3.client("bedrock-runtime", endpoint_url=bedrock.url, **KEYS)

    class Body:
        def stream(self) -> Iterator[bytes]:
            yield b"{}"

        def read(self, amt: int | None = None) -> bytes:
            return b"{}"

    answer = botocore.awsrequest.AWSResponse(bedrock.url, 200, {"content-type": "application/json"}, Body())
    client.meta.events.register("before-send.bedrock-runtime.InvokeModel", lambda **_: answer)
    with wflo_nb.execution(budget_usd=1) as run:
        client.invoke_model(modelId=MODEL, body=json.dumps(ASK))
    assert [row["state"] for row in ledger_calls()] == ["RELEASED"] and run.figures().spent_nano == 0 and not bedrock.bodies


def test_request_without_credentials_gives_its_money_back(bedrock: Bedrock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    client = boto3.client("bedrock-runtime", endpoint_url=bedrock.url, region_name="us-east-1")
    with wflo_nb.execution(budget_usd=1) as run, pytest.raises(botocore.exceptions.NoCredentialsError):
        by_boto3(bedrock, client)
    assert [row["state"] for row in ledger_calls()] == ["RELEASED"] and run.figures().held_nano == 0


@both
def test_other_service_is_left_alone(bedrock: Bedrock, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "all_at", lambda path: ())
    monkeypatch.setattr(formats, "find", lambda path: None)
    monkeypatch.setattr(evident, "model_of", lambda path, content: None)
    with wflo_nb.execution(budget_usd=0):
        send(bedrock)
    assert bedrock.bodies == [ASK] and ledger_calls() == []


def test_threads_share_one_client_and_one_budget(bedrock: Bedrock) -> None:
    client = boto3.client("bedrock-runtime", endpoint_url=bedrock.url, **KEYS)
    with wflo_nb.execution(budget_usd=1):
        threads = [threading.Thread(target=by_boto3, args=(bedrock, client), kwargs={"max_tokens": 30}) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [row["cost_nano"] for row in ledger_calls()] == [COST] * 8 and len(bedrock.bodies) == 8
