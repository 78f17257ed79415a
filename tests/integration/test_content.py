"""Prompts and answers in traces: nowhere by default, in the spans of calls where somebody asked for them, and never with a key in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wflo_nb
from tests.collector import Collector, Span, running
from wflo_nb import events, telemetry
from wflo_nb.errors import BudgetExceededError, ConfigurationError
from wflo_nb.testing import FakeProvider

MODEL = "gpt-4o-mini"
CHAT = f"chat {MODEL}"
WORDS = "the-prompt-itself"
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": WORDS}]
ASKED = [
    {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
    {"role": "user", "parts": [{"type": "text", "content": WORDS}]},
]
CONTENT = ("gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages")


@pytest.fixture
def collector() -> Iterator[Collector]:
    yield from running()


@pytest.fixture
def shown(collector: Collector) -> Iterator[Collector]:
    off = telemetry.enable(otlp_endpoint=collector.url, record_content=True)
    assert off.content
    yield collector
    off()
    assert not events.readers


def ask(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=PROMPT, **more)


def contents(span: Span) -> list[Any]:
    return [json.loads(span.attributes[name]) if name in span.attributes else None for name in CONTENT]


def said(words: str, finish: str = "stop") -> list[dict[str, Any]]:
    return [{"role": "assistant", "parts": [{"type": "text", "content": words}], "finish_reason": finish}]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_prompt_and_answer_are_messages_on_the_span_of_their_call(shown: Collector, openai_client: Any, stream: bool) -> None:
    with wflo_nb.execution("essay", budget_usd=1):
        answer = ask(openai_client, stream=stream)
        words = "".join(c.choices[0].delta.content or "" for c in answer) if stream else answer.choices[0].message.content
    assert telemetry.flush()
    assert contents(shown.one(CHAT)) == [None, ASKED, said(words)]
    assert not [name for span in shown.spans if span.name != CHAT for name in CONTENT if name in span.attributes]


def test_prompt_and_answer_of_calls_in_a_loop(shown: Collector, async_openai: Callable[[], Any]) -> None:
    async def work() -> list[str]:
        async with async_openai() as client:
            with wflo_nb.execution("essay", budget_usd=1):
                answers = await asyncio.gather(*(ask(client, max_tokens=n) for n in (3, 4, 5)))
        return [answer.choices[0].message.content for answer in answers]

    words = asyncio.run(work())
    assert telemetry.flush()
    found = sorted((contents(span)[2] for span in shown.named(CHAT)), key=str)
    assert found == sorted((said(one, "length") for one in words), key=str)


def test_instructions_of_anthropic_stand_beside_its_messages(shown: Collector, anthropic_client: Any) -> None:
    messages = [{"role": "user", "content": WORDS}]
    with wflo_nb.execution("essay", budget_usd=1):
        answer = anthropic_client.messages.create(model="claude-sonnet-4-5", max_tokens=50, system="Be brief.", messages=messages)
    assert telemetry.flush()
    words = "".join(part.text for part in answer.content)
    expected = [[{"type": "text", "content": "Be brief."}], ASKED[1:], said(words, answer.stop_reason.replace("end_turn", "stop"))]
    assert contents(shown.one("chat claude-sonnet-4-5")) == expected


def test_stream_that_was_left_tells_what_had_come(shown: Collector, openai_client: Any) -> None:
    with wflo_nb.execution("essay", budget_usd=1):
        stream = ask(openai_client, stream=True)
        first = next(chunk.choices[0].delta.content for chunk in stream)
        stream.close()
    assert telemetry.flush()
    ((message,),) = [contents(shown.one(CHAT))[2]]
    assert message["parts"][0]["content"].startswith(first)
    assert message["finish_reason"] == "unknown"


def test_refused_call_was_never_sent_and_tells_no_content(shown: Collector, openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError), wflo_nb.execution("poor", budget_usd=0):
        ask(openai_client, max_tokens=50)
    assert telemetry.flush()
    assert contents(shown.one(CHAT)) == [None, None, None]


def test_no_key_goes_along_and_ledger_and_logs_have_no_content_at_all(
    shown: Collector, provider: FakeProvider, state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from openai import OpenAI

    secret = "sk-" + "a1B2" * 10
    off = telemetry.enable(logs=True)
    client = OpenAI(base_url=provider.openai_url, api_key=secret)
    with wflo_nb.execution("essay", budget_usd=1) as run:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": f"{WORDS} {secret}"}])
    assert telemetry.flush()
    off()
    sent = b"".join(shown.raw)
    assert WORDS.encode() in sent and b"[secret]" in sent and secret.encode() not in sent
    run.account.store.write_out()
    kept = b"".join(path.read_bytes() for path in state_dir.rglob("*") if path.is_file())
    logged = caplog.text + repr([record.__dict__.get("wflo") for record in caplog.records])
    assert MODEL.encode() in kept and MODEL in logged
    assert WORDS.encode() not in kept and WORDS not in logged


def test_one_destination_may_have_contents_and_another_not(shown: Collector, openai_client: Any) -> None:
    for other in running():
        off = telemetry.enable(otlp_endpoint=other.url)
        with wflo_nb.execution("essay", budget_usd=1):
            ask(openai_client)
        assert telemetry.flush()
        off()
        assert other.one(CHAT) and WORDS.encode() not in b"".join(other.raw)
    assert contents(shown.one(CHAT))[1] == ASKED


@pytest.mark.parametrize(
    ("setting", "argument", "is_told"), [("on", None, True), ("on", False, False), ("off", True, True), ("", None, False)]
)
def test_environment_decides_where_nobody_says(
    collector: Collector, openai_client: Any, monkeypatch: pytest.MonkeyPatch, setting: str, argument: bool | None, is_told: bool
) -> None:
    monkeypatch.setenv("WFLO_RECORD_CONTENT", setting)
    off = telemetry.enable(otlp_endpoint=collector.url, record_content=argument)
    with wflo_nb.execution("essay", budget_usd=1):
        ask(openai_client)
    off()
    assert off.content is is_told
    assert (WORDS.encode() in b"".join(collector.raw)) is is_told


def test_workflows_follow_the_environment_too(collector: Collector, openai_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("WFLO_RECORD_CONTENT", "on")
    wflo_nb.WfloWorkflow("essay", budget_usd=1).execute_sync(lambda: ask(openai_client) and None)
    while telemetry._auto:
        telemetry._auto.pop()()
    assert contents(collector.one(CHAT))[1] == ASKED
    assert not events.readers


def test_setting_that_is_not_understood_switches_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_RECORD_CONTENT", "yes please")
    with pytest.raises(ConfigurationError, match="WFLO_RECORD_CONTENT='yes please' is not understood"):
        telemetry.enable()
    assert not telemetry._parts
