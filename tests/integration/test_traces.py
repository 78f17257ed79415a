"""Real SDK calls, a real exporter, and a collector on loopback that reads the bytes which arrive."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import wflo_nb
from tests.collector import Collector, Span, running
from tests.integration.conftest import PROMPT, ledger_calls
from wflo_nb import telemetry
from wflo_nb.errors import BudgetExceededError, UnsupportedFormatError
from wflo_nb.testing import FakeProvider

MODEL = "gpt-4o-mini"
CHAT = f"chat {MODEL}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    yield from running()


@pytest.fixture
def traced(collector: Collector) -> Iterator[Collector]:
    off = telemetry.enable(otlp_endpoint=collector.url)
    yield collector
    off()


@pytest.fixture
def users(collector: Collector) -> Iterator[trace.Tracer]:
    """A user's own tracer, whose spans go to the same collector, with ours switched on over the same provider."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{collector.url}/v1/traces")))
    off = telemetry.enable(tracer_provider=provider)
    yield provider.get_tracer("the user's")
    off()
    provider.shutdown()


def ask(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=PROMPT, **more)


def flushed(collector: Collector) -> list[Span]:
    assert telemetry.flush()
    return collector.spans


def test_a_call_is_a_client_span_inside_its_execution(traced: Collector, provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(cache_read=7, reasoning=3)
    with wflo_nb.execution("essay", budget_usd=1) as run:
        ask(openai_client)
    flushed(traced)
    outer, call = traced.one("invoke_workflow essay"), traced.one(CHAT)
    (row,) = ledger_calls()
    (billed,) = provider.bill
    assert (outer.kind, outer.parent, call.kind, call.parent, call.trace) == ("INTERNAL", "", "CLIENT", outer.id, outer.trace)
    assert outer.scope == call.scope == "wflo_nb" and call.resource["service.name"] == "wflo_nb"
    assert telemetry.trace_id(run.id) == outer.trace
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": row["cap_written"],
        "gen_ai.response.model": MODEL,
        "server.address": "127.0.0.1",
        "server.port": urlsplit(provider.url).port,
        "gen_ai.usage.input_tokens": billed.usage.input_tokens,
        "gen_ai.usage.output_tokens": billed.usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": 7,
        "gen_ai.usage.reasoning.output_tokens": 3,
        "http.response.status_code": 200,
        "wflo.api": "chat",
        "wflo.call.id": row["id"],
        "wflo.execution.id": run.id,
        "wflo.state": "SETTLED",
        "wflo.cap_written": row["cap_written"],
        "wflo.cost.nano_usd": billed.nano_usd,
        "wflo.cost.usd": billed.nano_usd / 1e9,
        "wflo.held.nano_usd": row["reserved_nano"],
        "wflo.held.usd": row["reserved_nano"] / 1e9,
        "wflo.price.source": row["price_source"],
        "wflo.price.date": row["price_date"],
    }
    assert call.attributes == expected
    assert outer.attributes["gen_ai.operation.name"] == "invoke_workflow" and outer.attributes["gen_ai.workflow.name"] == "essay"
    assert outer.attributes["wflo.spent.nano_usd"] == billed.nano_usd and outer.attributes["wflo.budget.usd"] == 1.0
    assert outer.attributes["wflo.status"] == "COMPLETED" and outer.attributes["wflo.calls"] == 1 and not outer.error


def by_httpx(url: str, body: dict[str, Any]) -> None:
    import httpx

    httpx.post(url, json=body)


def by_requests(url: str, body: dict[str, Any]) -> None:
    import requests

    requests.post(url, json=body, timeout=10)


def by_aiohttp(url: str, body: dict[str, Any]) -> None:
    import aiohttp

    async def post() -> None:
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            await answer.read()

    asyncio.run(post())


@pytest.mark.parametrize("send", [by_httpx, by_requests, by_aiohttp])
def test_the_server_is_named_whatever_library_calls_it(
    traced: Collector, provider: FakeProvider, send: Callable[[str, dict[str, Any]], None]
) -> None:
    with wflo_nb.execution("essay"):
        send(f"{provider.openai_url}/chat/completions", {"model": MODEL, "messages": PROMPT})
    flushed(traced)
    call = traced.one(CHAT)
    assert (call.attributes["server.address"], call.attributes["server.port"]) == ("127.0.0.1", urlsplit(provider.url).port)


def test_the_server_of_a_call_that_cannot_be_read_is_named_too(traced: Collector) -> None:
    import httpx

    with pytest.raises(UnsupportedFormatError), wflo_nb.execution("essay", budget_usd=1):
        httpx.post("https://api.openai.com/v1/videos", json={"model": "sora-2", "prompt": "a river"})
    flushed(traced)
    assert traced.one("unmetered").attributes["server.address"] == "api.openai.com"


def test_spans_begin_and_end_when_the_ledger_says(traced: Collector, openai_client: Any) -> None:
    with wflo_nb.execution():
        ask(openai_client)
    flushed(traced)
    (row,) = ledger_calls()
    call = traced.one(CHAT)
    assert (call.start, call.end) == (row["created_at"] * 1000, row["settled_at"] * 1000)  # the ledger has microseconds
    outer = traced.one("invoke_workflow execution")
    assert outer.start <= call.start < call.end <= outer.end


def test_streams_tell_when_their_first_chunk_came(traced: Collector, openai_client: Any) -> None:
    with wflo_nb.execution():
        assert len(list(ask(openai_client, stream=True)))
    flushed(traced)
    (row,) = ledger_calls()
    call = traced.one(CHAT)
    assert call.attributes["gen_ai.request.stream"] is True
    assert call.attributes["gen_ai.response.time_to_first_chunk"] == row["ttft_ms"] / 1000


def test_nested_executions_threads_and_pools_keep_their_parents(traced: Collector, openai_client: Any) -> None:
    with wflo_nb.execution("outer") as outer:
        ask(openai_client)
        with wflo_nb.execution("inner", budget_usd=1) as inner:
            thread = threading.Thread(target=ask, args=(openai_client,))
            thread.start()
            thread.join()
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda _: ask(openai_client), range(2)))
        ask(openai_client)
    flushed(traced)
    above, below = traced.one("invoke_workflow outer"), traced.one("invoke_workflow inner")
    assert below.parent == above.id
    calls = traced.named(CHAT)
    assert sorted(call.parent for call in calls) == sorted([above.id] * 2 + [below.id] * 3)
    assert all(call.parent == (above.id if call.execution == outer.id else below.id) for call in calls)
    assert {span.trace for span in traced.spans} == {telemetry.trace_id(outer.id)} == {telemetry.trace_id(inner.id)}


def test_side_by_side_executions_in_one_loop_are_separate_traces(traced: Collector, async_openai: Callable[[], Any]) -> None:
    async def work(name: str) -> str:
        async with async_openai() as client, wflo_nb.execution(name, budget_usd=1) as run:
            await asyncio.gather(*[client.chat.completions.create(model=MODEL, messages=PROMPT) for _ in range(3)])
            return run.id

    async def both() -> list[str]:
        return await asyncio.gather(work("left"), work("right"))

    ids = asyncio.run(both())
    flushed(traced)
    left, right = traced.one("invoke_workflow left"), traced.one("invoke_workflow right")
    assert [telemetry.trace_id(one) for one in ids] == [left.trace, right.trace] and left.trace != right.trace
    for outer, one in ((left, ids[0]), (right, ids[1])):
        calls = [span for span in traced.named(CHAT) if span.execution == one]
        assert [(call.parent, call.trace) for call in calls] == [(outer.id, outer.trace)] * 3


def test_a_users_span_around_an_execution_is_its_parent(users: trace.Tracer, collector: Collector, openai_client: Any) -> None:
    with users.start_as_current_span("request"), wflo_nb.execution("essay"):
        ask(openai_client)
    ask_span, outer, call = collector.one("request"), collector.one("invoke_workflow essay"), collector.one(CHAT)
    assert (outer.parent, call.parent) == (ask_span.id, outer.id)
    assert call.trace == outer.trace == ask_span.trace


def test_a_users_span_inside_an_execution_is_the_parent_of_its_calls(users: trace.Tracer, collector: Collector, openai_client: Any) -> None:
    with wflo_nb.execution("essay"):
        with users.start_as_current_span("draft"):
            ask(openai_client)
        ask(openai_client)
    assert trace.get_current_span() is trace.INVALID_SPAN
    outer, draft = collector.one("invoke_workflow essay"), collector.one("draft")
    assert draft.parent == outer.id
    assert [call.parent for call in sorted(collector.named(CHAT), key=lambda s: s.start)] == [draft.id, outer.id]


def test_a_users_span_reaches_calls_that_an_event_loop_makes(
    users: trace.Tracer, collector: Collector, async_openai: Callable[[], Any]
) -> None:
    async def work() -> None:
        async with async_openai() as client:
            with users.start_as_current_span("request"):
                async with wflo_nb.execution("essay", budget_usd=1):
                    with users.start_as_current_span("draft"):
                        await client.chat.completions.create(model=MODEL, messages=PROMPT)

    asyncio.run(work())
    request, outer, draft, call = (collector.one(name) for name in ("request", "invoke_workflow essay", "draft", CHAT))
    assert (outer.parent, draft.parent, call.parent) == (request.id, outer.id, draft.id)


def test_a_users_span_around_an_execution_is_not_taken_for_one_inside_it(
    users: trace.Tracer, collector: Collector, openai_client: Any
) -> None:
    with users.start_as_current_span("request"):
        before = contextvars.copy_context()
        with users.start_as_current_span("handler"), wflo_nb.execution("essay"):
            before.run(ask, openai_client)  # as a framework does that keeps the context of its start for its callbacks
    assert collector.one(CHAT).parent == collector.one("invoke_workflow essay").id


def test_a_call_in_a_foreign_trace_stays_there_and_is_linked(users: trace.Tracer, collector: Collector, openai_client: Any) -> None:
    def serve() -> None:
        with users.start_as_current_span("request"):
            ask(openai_client)

    with wflo_nb.execution("server"):
        thread = threading.Thread(target=serve)  # no context of OpenTelemetry's reaches it
        thread.start()
        thread.join()
    outer, request, call = collector.one("invoke_workflow server"), collector.one("request"), collector.one(CHAT)
    assert request.trace != outer.trace
    assert (call.parent, call.trace, call.links) == (request.id, request.trace, [outer.id])


def test_steps_lie_between_an_execution_and_its_calls(traced: Collector, openai_client: Any) -> None:
    with wflo_nb.execution("graph") as run:
        for name in ("plan", "write", "plan"):
            end = telemetry.enter_step(run.id, name)
            ask(openai_client)
            end()
        outer_end = telemetry.enter_step(run.id, "outer")
        inner_end = telemetry.enter_step(run.id, "inner")
        inner_end()
        outer_end()
        ask(openai_client)
    flushed(traced)
    outer = traced.one("invoke_workflow graph")
    steps = sorted((s for s in traced.spans if s.name.startswith("step ")), key=lambda s: s.start)
    assert [(s.name, s.attributes["wflo.step"]) for s in steps][:3] == [
        ("step plan", "plan"),
        ("step write", "write"),
        ("step plan", "plan"),
    ]
    assert [s.parent for s in steps[:4]] == [outer.id] * 4 and steps[4].parent == steps[3].id
    calls = sorted(traced.named(CHAT), key=lambda s: s.start)
    assert [call.parent for call in calls] == [*(step.id for step in steps[:3]), outer.id]


def test_steps_of_one_name_side_by_side_keep_their_own_calls(
    traced: Collector, openai_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(before: float, after: float) -> None:
        async with wflo_nb.step("writer"):
            await asyncio.sleep(before)
            await asyncio.to_thread(ask, openai_client)
            await asyncio.sleep(after)

    async def program() -> None:
        async with wflo_nb.execution("side by side"):
            await asyncio.gather(work(0.05, 0), work(0, 0.2), work(0.1, 0))

    asyncio.run(program())
    flushed(traced)
    steps, calls = traced.named("step writer"), traced.named(CHAT)
    assert sorted(call.parent for call in calls) == sorted(step.id for step in steps)
    assert "ended span" not in caplog.text


def test_calls_name_their_agent_task_and_tool(traced: Collector, openai_client: Any) -> None:
    with wflo_nb.execution("crew"), wflo_nb.step("researcher", kind="agent"), wflo_nb.step("dig", kind="task"):
        with wflo_nb.step("search", kind="tool"):
            ask(openai_client)
        ask(openai_client)
    flushed(traced)
    by_tool, plain = sorted(traced.named(CHAT), key=lambda s: s.start)
    names = ("gen_ai.agent.name", "wflo.task", "gen_ai.tool.name", "wflo.step")
    assert [by_tool.attributes.get(name) for name in names] == ["researcher", "dig", "search", "search"]
    assert [plain.attributes.get(name) for name in names] == ["researcher", "dig", None, "dig"]


def test_retries_are_calls_of_their_own_and_errors_say_their_kind(traced: Collector, provider: FakeProvider, openai_client: Any) -> None:
    provider.next(status=429, retry_after_ms=1)
    provider.next(status=500, retry_after_ms=1)
    with wflo_nb.execution("essay"):
        ask(openai_client)
    flushed(traced)
    calls = sorted(traced.named(CHAT), key=lambda s: s.start)
    assert [call.attributes.get("error.type") for call in calls] == ["429", "500", None]
    assert [call.attributes["wflo.state"] for call in calls] == ["RELEASED", "UNCONFIRMED", "SETTLED"]
    assert [call.error for call in calls] == [True, True, False]
    assert calls[0].attributes["wflo.cost.nano_usd"] == 0
    assert calls[1].attributes["wflo.cost.nano_usd"] == calls[1].attributes["wflo.held.nano_usd"] > 0


def test_a_lost_connection_is_named_by_its_exception(traced: Collector, provider: FakeProvider, openai_client: Any) -> None:
    provider.next(cut_after=0)
    with wflo_nb.execution("essay"), pytest.raises(Exception, match="Connection error"):
        ask(openai_client.with_options(max_retries=0))
    flushed(traced)
    call = traced.one(CHAT)
    assert call.attributes["error.type"] == "RemoteProtocolError" and call.attributes["wflo.state"] == "UNCONFIRMED"


def test_a_refused_call_is_a_span_of_nothing_sent(traced: Collector, provider: FakeProvider, openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError), wflo_nb.execution("poor", budget_usd="0.000001"):
        ask(openai_client, max_tokens=500)
    flushed(traced)
    outer, call = traced.one("invoke_workflow poor"), traced.one(CHAT)
    assert provider.requests == 0
    assert call.parent == outer.id and call.error and call.attributes["error.type"] == "BudgetExceededError"
    assert call.attributes["wflo.state"] == "REFUSED" and call.attributes["wflo.cost.nano_usd"] == 0
    assert "refused before it was sent" in call.attributes["wflo.reason"]
    assert outer.error and outer.attributes["error.type"] == "BudgetExceededError"
    assert (outer.attributes["wflo.calls"], outer.attributes["wflo.calls.refused"], outer.attributes["wflo.stopped"]) == (0, 1, "budget")


def test_a_call_without_a_price_has_no_cost(traced: Collector, openai_client: Any) -> None:
    with wflo_nb.execution("essay"):
        openai_client.chat.completions.create(model="nobody-knows-it", messages=PROMPT)
    flushed(traced)
    call = traced.one("chat nobody-knows-it")
    assert not [name for name in call.attributes if name.startswith("wflo.cost")]
    assert traced.one("invoke_workflow essay").attributes["wflo.calls.unpriced"] == 1


def test_no_prompt_no_answer_and_no_secret_leaves(traced: Collector, provider: FakeProvider, caplog: pytest.LogCaptureFixture) -> None:
    from openai import OpenAI

    secret, words = "sk-a-very-secret-key", "the-prompt-itself"
    off = telemetry.enable(logs=True)
    client = OpenAI(base_url=provider.openai_url, api_key=secret, max_retries=0)
    prompt = [{"role": "user", "content": words}]
    provider.next()
    provider.next(status=400)
    with pytest.raises(ValueError, match=words), wflo_nb.execution("essay", budget_usd=1):
        client.chat.completions.create(model=MODEL, messages=prompt)
        with pytest.raises(Exception, match="400"):
            client.chat.completions.create(model=MODEL, messages=prompt)
        raise ValueError(f"{words} {secret}")
    flushed(traced)
    off()
    sent = b"".join(traced.raw) + caplog.text.encode() + repr([r.__dict__.get("wflo") for r in caplog.records]).encode()
    assert b"gpt-4o-mini" in sent and b"ValueError" in sent
    for private in (secret, words, "word1 "):
        assert private.encode() not in sent


def test_calls_that_outlive_their_execution_stay_in_its_trace(traced: Collector, openai_client: Any) -> None:
    go = threading.Event()

    def late() -> None:
        assert go.wait(10)
        ask(openai_client)

    with wflo_nb.execution("outside"):  # keeps the transports watched until the late call is over
        with wflo_nb.execution("short") as run:
            thread = threading.Thread(target=late)
            thread.start()
        go.set()
        thread.join()
    flushed(traced)
    call = traced.one(CHAT)
    assert call.execution == run.id and call.parent == traced.one("invoke_workflow short").id


@pytest.mark.parametrize("order", ["join first", "telemetry first"])
def test_calls_of_worker_processes_are_children_of_the_execution_that_started_them(
    traced: Collector, provider: FakeProvider, openai_client: Any, order: str
) -> None:
    first, second = ("wflo_nb.join()", f"wflo_nb.telemetry.enable({traced.url!r})")[:: 1 if order == "join first" else -1]
    program = f"""
import wflo_nb
{first}
{second}
from openai import OpenAI
OpenAI(base_url={provider.openai_url!r}, api_key="test").chat.completions.create(model={MODEL!r}, messages={PROMPT!r})
"""
    with wflo_nb.execution("parent", budget_usd=1):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    flushed(traced)
    outer, call = traced.one("invoke_workflow parent"), traced.one(CHAT)
    assert (call.parent, call.trace, call.execution) == (outer.id, outer.trace, outer.execution)
    assert outer.attributes["wflo.spent.nano_usd"] == provider.spent_nano == call.attributes["wflo.cost.nano_usd"]


def test_checkpoints_are_events_of_their_execution(traced: Collector) -> None:
    from wflo_nb import events
    from wflo_nb.model import Checkpoint, now

    with wflo_nb.execution("essay") as run:
        events.emit(events.CheckpointTaken(Checkpoint("snap-1", "before", now(), run.id, 3, 1024)))
    flushed(traced)
    ((name, facts),) = traced.one("invoke_workflow essay").events
    assert name == "wflo.checkpoint" and facts["wflo.checkpoint.id"] == "snap-1" and facts["wflo.checkpoint.bytes"] == 1024


@pytest.mark.parametrize("fault", ["silent", "failing", "absent"])
def test_a_collector_that_does_not_work_delays_no_call_and_no_end(
    collector: Collector, openai_client: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "silent":
        collector.answers.clear()
    elif fault == "failing":
        collector.status = 503
    else:
        collector.stop()
    flushes: list[float] = []
    real = telemetry.otlp.Pipeline.flush
    monkeypatch.setattr(telemetry.otlp.Pipeline, "flush", lambda self, seconds: flushes.append(seconds) or real(self, seconds))
    off = telemetry.enable(otlp_endpoint=collector.url)
    closers = [part.pipeline._closer for part in telemetry._parts.values()]
    with wflo_nb.execution("essay", budget_usd=1) as run:
        ask(openai_client)
    assert run.spent_usd > Decimal(0)
    assert not flushes, "the end of an execution waits for no collector"
    assert not telemetry.flush(0.1), "a flush gives up when it was told to"
    off(0.1)
    assert any(closer.is_alive() for closer in closers), "switching off gives up, too"
    collector.answers.set()


def test_switching_off_waits_once_for_traces_and_metrics_together(collector: Collector, openai_client: Any) -> None:
    collector.answers.clear()
    off = telemetry.enable(otlp_endpoint=collector.url)
    with wflo_nb.execution("essay"):
        ask(openai_client)
    began = time.monotonic()
    off(0.5)
    took = time.monotonic() - began
    collector.answers.set()
    assert 0.5 <= took < 0.9


def test_a_failing_listener_of_ours_never_reaches_the_call(traced: Collector, openai_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from wflo_nb.telemetry import names

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(names, "call_attributes", fail)
    with wflo_nb.execution("essay", budget_usd=1) as run:
        assert ask(openai_client).choices
    assert run.figures().calls == 1
