"""The switch of telemetry, its logs, and that it costs nothing while it is off."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context, metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from wflo_nb import events, telemetry
from wflo_nb.errors import ConfigurationError, MissingDependencyError
from wflo_nb.events import CallChanged, ExecutionEnded, ExecutionStarted, Figures
from wflo_nb.model import Call, CallState, Execution, ExecutionStatus, Usage, microseconds
from wflo_nb.telemetry import otlp
from wflo_nb.telemetry.logs import JsonFormatter

AT = datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)
LATER = datetime(2026, 11, 25, 12, 0, 2, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _nothing_is_left_on() -> Iterator[None]:
    assert not telemetry._parts
    yield
    while telemetry._auto:
        telemetry._auto.pop()(0.1)
    assert not telemetry._parts and not events.listeners


@pytest.fixture
def memory() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


def execution(id: str = "exec-1", **more: Any) -> Execution:
    return Execution(id, "essay", ExecutionStatus.RUNNING, AT, AT, **more)


def call(id: str = "call-1", state: CallState = CallState.SETTLED, **more: Any) -> Call:
    return Call(id, "exec-1", "openai", "chat", "gpt-4o-mini", state, microseconds(AT), settled_us=microseconds(LATER), **more)


def ended(one: Execution, figures: Figures | None = None, status: ExecutionStatus = ExecutionStatus.COMPLETED) -> ExecutionEnded:
    return ExecutionEnded(Execution(one.id, one.workflow, status, one.created_at, LATER), figures or Figures())


def python(program: str, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | environment
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LIBRARIES = "[m for m in sys.modules if m.split('.')[0] in ('opentelemetry', 'prometheus_client', 'google')]"


def test_while_it_is_off_nothing_is_imported_and_nobody_listens() -> None:
    program = f"""
import sys, wflo_nb
from wflo_nb import events, telemetry
from wflo_nb.testing import FakeProvider
with FakeProvider() as provider:
    from openai import OpenAI
    before = set({LIBRARIES})  # what the SDK itself may load is not ours
    with wflo_nb.execution("essay", budget_usd=1) as run:
        OpenAI(base_url=provider.openai_url, api_key="test").chat.completions.create(
            model="gpt-4o-mini", messages=[{{"role": "user", "content": "hello"}}])
assert run.figures().calls == 1
assert telemetry.auto() is False and telemetry.trace_id(run.id) is None
telemetry.enter(run.id)()
assert not events.listeners
print(sorted(set({LIBRARIES}) - before), "wflo_nb.telemetry.traces" in sys.modules)
"""
    assert python(program) == "[] False"


def test_auto_stays_off_where_nobody_set_anything_up() -> None:
    assert telemetry.auto() is False


def test_auto_follows_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    assert telemetry.auto() and telemetry.auto()
    ((key, part),) = telemetry._parts.items()
    assert (key, part.users) == (("traces", ("traces", None)), 1)
    assert part.pipeline is not None and part.pipeline.where == "http://127.0.0.1:9/v1/traces"


@pytest.mark.parametrize(("name", "value"), [("WFLO_TELEMETRY", "off"), ("OTEL_SDK_DISABLED", "true"), ("WFLO_TELEMETRY", "nonsense")])
def test_auto_can_be_kept_off_and_never_raises(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    assert telemetry.auto() is False


def test_a_provider_that_is_set_for_the_process_is_used_and_nothing_else_is_made() -> None:
    program = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from wflo_nb import telemetry
assert not telemetry.auto(), "the API alone is no reason"
provider = TracerProvider()
trace.set_tracer_provider(provider)
assert telemetry.auto() and telemetry.auto()
on = telemetry.enable()
assert trace.get_tracer_provider() is provider
print(on.where, [part.pipeline.provider is provider for part in telemetry._parts.values()])
"""
    assert python(program) == "{'traces': 'the provider that is set for this process'} [True]"


def test_ours_is_never_set_for_the_process() -> None:
    off = telemetry.enable(otlp_endpoint="http://127.0.0.1:9")
    assert otlp.configured("traces") is None and otlp.configured("metrics") is None
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider) and metrics.get_meter_provider() is not None
    off(0.1)


def test_asking_twice_is_once_and_the_last_to_leave_switches_off(memory: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    provider, exporter = memory
    first, second = telemetry.enable(tracer_provider=provider), telemetry.enable(tracer_provider=provider)
    one = execution()
    first()
    first()
    events.emit(ExecutionStarted(one, Figures()))
    events.emit(ended(one))
    assert [span.name for span in exporter.get_finished_spans()] == ["invoke_workflow essay"]
    second()
    assert not second and repr(second) == "<telemetry: off>"
    events.emit(ExecutionStarted(execution("exec-2"), Figures()))
    assert telemetry.trace_id("exec-2") is None


def test_what_is_open_when_it_is_switched_off_is_ended(memory: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    provider, exporter = memory
    off = telemetry.enable(tracer_provider=provider)
    events.emit(ExecutionStarted(execution(notebook_id="nb-1", cell="In [1]"), Figures()))
    off()
    cell, notebook = exporter.get_finished_spans()
    assert (cell.name, notebook.name, notebook.parent) == ("cell essay", "notebook", None)
    assert cell.parent is not None and cell.parent.span_id == notebook.context.span_id


def test_a_step_that_is_only_known_by_its_calls_lasts_from_the_first_to_the_last(
    memory: tuple[TracerProvider, InMemorySpanExporter],
) -> None:
    provider, exporter = memory
    off = telemetry.enable(tracer_provider=provider)
    one = execution()
    events.emit(ExecutionStarted(one, Figures()))
    for index in range(2):
        events.emit(CallChanged(call(f"call-{index}", CallState.RESERVED, step="research"), Figures()))
        events.emit(CallChanged(call(f"call-{index}", step="research"), Figures()))
    events.emit(ended(one))
    off()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    step, outer = spans["step research"], spans["invoke_workflow essay"]
    assert step.parent is not None and step.parent.span_id == outer.context.span_id
    calls = [span for span in exporter.get_finished_spans() if span.name == "chat gpt-4o-mini"]
    assert [span.parent.span_id for span in calls if span.parent] == [step.context.span_id] * 2
    assert (step.start_time, step.end_time) == (calls[0].start_time, calls[0].end_time) == (1795608000123456000, 1795608002000000000)


def test_a_step_that_is_an_execution_of_its_own_is_one_span(memory: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    provider, exporter = memory
    off = telemetry.enable(tracer_provider=provider)
    events.emit(ExecutionStarted(execution(), Figures()))
    events.emit(CallChanged(call(step="essay"), Figures()))
    events.emit(ended(execution()))
    off()
    assert [span.name for span in exporter.get_finished_spans()] == ["chat gpt-4o-mini", "invoke_workflow essay"]


def test_an_execution_left_current_by_mistake_is_no_parent_of_the_next(memory: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    provider, exporter = memory
    off = telemetry.enable(tracer_provider=provider)
    token = context.attach(context.get_current())
    first, second = execution(), execution("exec-2")
    events.emit(ExecutionStarted(first, Figures()))
    telemetry.enter("exec-1")  # and never left, as by a generator that nobody closes
    events.emit(ended(first))
    events.emit(ExecutionStarted(second, Figures()))
    events.emit(ended(second))
    context.detach(token)
    off()
    assert [span.parent for span in exporter.get_finished_spans()] == [None, None]


def test_a_span_around_an_execution_that_tells_no_time_is_not_taken_for_one_inside_it(
    memory: tuple[TracerProvider, InMemorySpanExporter],
) -> None:
    provider, exporter = memory
    off = telemetry.enable(tracer_provider=provider)
    outer = trace.NonRecordingSpan(trace.SpanContext(5, 7, is_remote=False, trace_flags=trace.TraceFlags(1)))
    with trace.use_span(outer):  # of another implementation than the SDK
        one = execution()
        events.emit(ExecutionStarted(one, Figures()))
        events.emit(CallChanged(call(), Figures()))
        events.emit(ended(one))
    off()
    inner, around = exporter.get_finished_spans()
    assert around.parent is not None and around.parent.span_id == 7
    assert inner.parent is not None and inner.parent.span_id == around.context.span_id


def test_old_executions_are_forgotten(memory: tuple[TracerProvider, InMemorySpanExporter], monkeypatch: pytest.MonkeyPatch) -> None:
    from wflo_nb.telemetry import traces

    monkeypatch.setattr(traces, "_REMEMBERED", 3)
    off = telemetry.enable(tracer_provider=memory[0])
    for index in range(5):
        events.emit(ExecutionStarted(execution(f"exec-{index}"), Figures()))
        events.emit(ended(execution(f"exec-{index}")))
    assert [telemetry.trace_id(f"exec-{index}") is None for index in range(5)] == [True, True, False, False, False]
    assert len(telemetry._traces[0]._ours) == 3
    off()


def test_metrics_go_to_a_meter_provider_and_stop_when_switched_off() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    off = telemetry.enable(meter_provider=provider)
    assert off.where == {"metrics": "the provider that was handed over"}
    events.emit(CallChanged(call(cost_nano=5, usage=Usage(3, 4), latency_ms=20.0), Figures()))
    found = reader.get_metrics_data()
    assert found is not None
    names = {metric.name for r in found.resource_metrics for scope in r.scope_metrics for metric in scope.metrics}
    assert {"gen_ai.client.token.usage", "gen_ai.client.operation.duration", "wflo.spend"} <= names
    off()
    events.emit(CallChanged(call(cost_nano=5), Figures()))
    again = reader.get_metrics_data()
    spends = [
        m for r in (again.resource_metrics if again else ()) for scope in r.scope_metrics for m in scope.metrics if m.name == "wflo.spend"
    ]
    assert not [point for metric in spends for point in metric.data.data_points]
    provider.shutdown()


def test_a_port_in_use_says_so_and_leaves_nothing_on() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"Port {port} of 127\.0\.0\.1 is in use.* 0 for any free one"):
            telemetry.enable(otlp_endpoint="http://127.0.0.1:9", prometheus_port=port)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prometheus_port": 70000}, "Port 70000 is none"),
        ({"prometheus_port": "9464"}, "is no port"),
        ({"otlp_endpoint": "collector:4317"}, "is no URL. Write the collector's, for example"),
    ],
)
def test_what_cannot_be_used_is_refused_with_words(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        telemetry.enable(**arguments)


def test_a_protocol_that_is_not_spoken_is_refused_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigurationError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL=grpc is not spoken here. Use http/protobuf"):
        telemetry.enable()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("opentelemetry.sdk.trace", {}),
        ("opentelemetry.exporter.otlp.proto.http.trace_exporter", {}),
        ("prometheus_client", {"prometheus_port": 0}),
    ],
)
def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch, module: str, arguments: dict[str, Any]) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wflo_nb\[otel\]'"):
        telemetry.enable(**arguments)


def test_one_page_serves_everybody_who_asks_for_it() -> None:
    first = telemetry.enable(prometheus_port=0)
    second = telemetry.enable(prometheus_port=0)
    assert first.prometheus_url == second.prometheus_url
    first()
    assert telemetry._parts
    second()


def test_credentials_of_an_endpoint_are_not_told() -> None:
    off = telemetry.enable(otlp_endpoint="http://name:secret@127.0.0.1:9")
    assert "secret" not in repr(off) and off.where["traces"] == "http://127.0.0.1:9/v1/traces"
    off(0.1)


def test_logs_say_each_call_and_each_end(caplog: pytest.LogCaptureFixture) -> None:
    off = telemetry.enable(logs=True)
    one = execution()
    events.emit(ExecutionStarted(one, Figures()))
    events.emit(CallChanged(call(state=CallState.RESERVED), Figures()))
    events.emit(CallChanged(call(cost_nano=1500, usage=Usage(9, 20), latency_ms=1234.5), Figures()))
    events.emit(CallChanged(call(state=CallState.REFUSED, reason="it does not fit", meta={"error": "BudgetExceededError"}), Figures()))
    events.emit(CallChanged(call(cost_nano=None, reason="no price is known for gpt"), Figures()))
    events.emit(ended(one, Figures(spent_nano=1500, calls=2, refused=1)))
    off()
    events.emit(CallChanged(call(cost_nano=1500), Figures()))
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "chat gpt-4o-mini settled in 1.234 s, $0.0000015, 9 in, 20 out"),
        ("WARNING", "chat gpt-4o-mini refused: it does not fit"),
        ("INFO", "chat gpt-4o-mini settled, unknown: no price is known for gpt"),
        ("INFO", "invoke_workflow essay completed: 2 calls, 1 refused, $0.0000015 spent"),
    ]
    facts = json.loads(JsonFormatter().format(caplog.records[0]))
    assert facts["level"] == "INFO" and facts["logger"] == "wflo_nb" and facts["time"].endswith("+00:00")
    assert facts["wflo.cost.nano_usd"] == 1500 and facts["gen_ai.usage.output_tokens"] == 20
    assert logging.getLogger("wflo_nb").level == logging.NOTSET


def test_a_level_that_was_set_stands(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "wflo_nb")
    off = telemetry.enable(logs=True)
    events.emit(CallChanged(call(cost_nano=1), Figures()))
    off()
    assert not caplog.records and logging.getLogger("wflo_nb").level == logging.ERROR


def test_every_name_that_is_told_is_documented() -> None:
    from wflo_nb.telemetry import names
    from wflo_nb.telemetry.meters import Meters
    from wflo_nb.telemetry.prometheus import Prometheus

    one = execution(notebook_id="nb-1", kernel_id="k", cell="In [1]", parent_id="exec-0", error={"type": "ValueError"})
    failed = Execution(**{name: getattr(one, name) for name in one.__slots__} | {"status": ExecutionStatus.FAILED})
    full = Usage(9, 9, cache_read_tokens=1, cache_write_tokens=1, reasoning_tokens=1)
    said = call(cost_nano=1, usage=full, stream=True, ttft_ms=1.0, http_status=500, reason="r", cap_written=1, answered_model="m", step="s")
    told = {*names.call_attributes(said), *names.execution_attributes(failed, Figures(cap_nano=1, stopped="budget"))}
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    running = [ExecutionStarted(one, Figures(cap_nano=1)), CallChanged(said.changed(latency_ms=1.0), Figures(cap_nano=1))]
    listeners = [Meters(provider, "1"), Prometheus(0)]
    for event in (*running, CallChanged(call("call-2", CallState.REFUSED), Figures(cap_nano=1))):
        for listener in listeners:
            listener(event)
    found = reader.get_metrics_data()
    assert found is not None
    told |= {metric.name for r in found.resource_metrics for scope in r.scope_metrics for metric in scope.metrics}
    assert len(told) > 45
    for family in listeners[1]._registry.collect():
        told.add(family.name)
    listeners[1].close()
    text = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
    short = {name: name.removesuffix(".nano_usd").removeprefix("gen_ai.usage") for name in told}
    assert not [name for name, end in short.items() if name not in text and end not in text]


@pytest.mark.parametrize("module", ["opentelemetry.sdk.metrics", "prometheus_client.registry", "wflo_nb.telemetry.tally"])
def test_streams_that_the_garbage_collector_closes_inside_telemetry_are_settled_later(module: str) -> None:
    from wflo_nb.budget.ledger import within_money

    scope: dict[str, Any] = {"__name__": module, "look": lambda: within_money()}
    exec("def collect(): return look()", scope)
    assert scope["collect"]() and not within_money(), "locks may be held there that the settlement would wait for"


def test_a_forked_child_waits_for_no_lock_of_a_thread_that_it_does_not_have() -> None:
    program = """
import os, threading
from wflo_nb import events, telemetry
from opentelemetry.sdk.trace import TracerProvider
telemetry.enable(tracer_provider=TracerProvider(), prometheus_port=0)
locks = [telemetry._traces[0]._lock, *[p.listener._tally._lock for k, p in telemetry._parts.items() if k[0] == "prometheus"]]
held, done = threading.Event(), threading.Event()
def hold():
    with locks[0], locks[1]:
        held.set()
        done.wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if not child:
    telemetry.trace_id("exec-1")
    events.emit(events.BudgetChanged("exec-1", events.Figures()))
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
done.set()
"""
    assert python(program) == "7"


def test_a_process_that_ends_sends_what_waits_and_does_not_wait_for_ever() -> None:
    program = """
import http.server, threading, wflo_nb
from wflo_nb import events, telemetry
class Silent(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print("asked", flush=True)
        threading.Event().wait()
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
telemetry.enable(otlp_endpoint=f"http://127.0.0.1:{server.server_port}")
with wflo_nb.execution("essay"):
    pass
"""
    assert "asked" in python(program)
