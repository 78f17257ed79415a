"""Instrumentation of other makers beside ours, switched on before and after: both see each call, once, and both can be taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import logfire
import openai
import pytest
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import wflo_nb
from tests.frameworks.conftest import ledger_calls, sums_up
from wflo_nb import BudgetExceededError, telemetry
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime

MESSAGES: Any = [{"role": "user", "content": "Say something about rivers."}]


@pytest.fixture
def spans() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


def instrumented(tracers: TracerProvider) -> Callable[[], None]:
    ours = [HTTPXClientInstrumentor(), HTTPX2ClientInstrumentor()]
    for one in ours:
        one.instrument(tracer_provider=tracers)
    return lambda: [one.uninstrument() for one in ours] and None


def ask_all(provider: FakeProvider) -> list[Any]:
    """A whole answer and a stream of an SDK, and a request of one's own."""
    client = openai.OpenAI(base_url=provider.openai_url, api_key="test")
    whole = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=50)
    stream = list(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=50, stream=True))
    raw = httpx.post(f"{provider.openai_url}/chat/completions", json={"model": "gpt-4o-mini", "messages": MESSAGES})
    return [whole.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream), raw.json()["choices"]]


@pytest.mark.parametrize("order", ["theirs first", "ours first"])
def test_opentelemetrys_own_spans_and_our_records_are_one_of_each_call(
    provider: FakeProvider, spans: tuple[TracerProvider, InMemorySpanExporter], order: str
) -> None:
    tracers, exporter = spans
    bare = ask_all(provider)
    undo = instrumented(tracers) if order == "theirs first" else None
    off = telemetry.enable(tracer_provider=tracers)
    with wflo_nb.execution("t", budget_usd=1):
        undo = undo or instrumented(tracers)
        assert ask_all(provider) == bare
    off()
    for take_back in (undo, runtime().restore)[:: 1 if order == "ours first" else -1]:  # the last that came goes first
        take_back()
    assert ask_all(provider) == bare
    rows = ledger_calls()
    assert [row["state"] for row in rows] == ["SETTLED"] * 3
    assert sum(row["cost_nano"] for row in rows) * 3 == provider.spent_nano  # before, watched, afterwards
    found = exporter.get_finished_spans()
    theirs = [span for span in found if span.name == "POST"]
    ours = [span for span in found if span.name == "chat gpt-4o-mini"]
    (execution,) = [span for span in found if span.name == "invoke_workflow t"]
    assert (len(theirs), len(ours)) == (3, 3)
    assert {span.context.trace_id for span in (*theirs, *ours)} == {execution.context.trace_id}


@pytest.mark.parametrize("order", ["theirs first", "ours first"])
def test_refusal_passes_through_their_instrumentation(
    provider: FakeProvider, spans: tuple[TracerProvider, InMemorySpanExporter], order: str
) -> None:
    undo = instrumented(spans[0]) if order == "theirs first" else None
    reached: list[BaseException] = []
    with pytest.raises(BudgetExceededError), wflo_nb.execution("t", budget_usd=0):
        undo = undo or instrumented(spans[0])
        try:
            ask_all(provider)
        except Exception as error:
            reached.append(error)
    assert undo is not None
    undo()
    assert [isinstance(error, BudgetExceededError) for error in reached] == [True]
    assert provider.requests == 0


def test_logfire_goes_on_telling_its_story(provider: FakeProvider, spans: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    exporter = spans[1]
    logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[SimpleSpanProcessor(exporter)])
    client = openai.OpenAI(base_url=provider.openai_url, api_key="test")
    with logfire.instrument_openai(client), wflo_nb.execution("t", budget_usd=1):
        answer = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=50)
        streamed = list(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=50, stream=True))
    assert answer.choices[0].message.content.startswith("word0")
    assert all(chunk.choices for chunk in streamed)  # nobody sees the usage that we asked for
    told = [span for span in exporter.get_finished_spans() if str(span.instrumentation_scope.name).startswith("logfire")]
    assert len(told) >= 2
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"] * 2
    assert sums_up(provider)
