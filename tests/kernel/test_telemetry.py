"""Traces and metrics of a notebook: a real kernel, a collector and a scrape on loopback."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.collector import Collector, running
from tests.kernel.conftest import Kernel, start
from wflo_nb.testing import FakeProvider

ASK = """
from openai import OpenAI
OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}]).usage.total_tokens
"""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    yield from running()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, bill: FakeProvider, collector: Collector) -> Iterator[Kernel]:
    kernel = start(tmp_path_factory.mktemp("watched"), bill, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert kernel.run("%load_ext wflo_nb").status == "ok"
    yield kernel
    kernel.close()


def test_metrics_are_served_where_the_cell_says_and_end_when_told(watched: Kernel, bill: FakeProvider) -> None:
    assert "No metrics are served" in watched.run("%wflo metrics").text
    ran = watched.run("served = %wflo metrics 0\nserved")
    url = watched.value("served.value")
    assert url.startswith("http://127.0.0.1:") and f"Metrics are served for Prometheus at {url}" in ran.text
    watched.run("%wflo budget 10")
    assert watched.run(ASK).status == "ok"
    with urllib.request.urlopen(url) as answer:
        families = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
    (left,) = families["wflo_budget_left_usd"].samples
    assert left.labels == {"budget": "notebook"} and round(left.value * 1e9) == 10**10 - bill.spent_nano
    (spend,) = families["wflo_spend_usd"].samples
    assert round(spend.value * 1e9) == bill.spent_nano
    taken = url.rsplit(":", 1)[1].split("/")[0]
    other = watched.run("import socket\ns = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n%wflo metrics {s.getsockname()[1]}")
    assert other.status == "error" and "is in use, perhaps by the metrics of another kernel" in other.text
    assert f":{taken}/" in watched.run("%wflo metrics").text, "what was served before is served on"
    assert "no longer served" in watched.run("%wflo metrics off").text
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url)


def test_a_trace_goes_from_the_notebook_over_its_cells_to_the_calls(watched: Kernel, collector: Collector) -> None:
    on = watched.run("%wflo trace on")
    assert f"traces to {collector.url}/v1/traces" in on.text and "without prompts and answers" in on.text
    assert watched.run("%%wflo budget=1 name=essay" + ASK).status == "ok"
    plain = watched.run(ASK)
    nested = watched.run("%%wflo budget=1\nimport wflo_nb\nwith wflo_nb.execution('graph'):" + ASK.replace("\n", "\n    "))
    loop = watched.run(
        "from openai import AsyncOpenAI\nasync with AsyncOpenAI() as client:\n"
        "    await client.chat.completions.create(model='gpt-4o-mini', messages=[{'role': 'user', 'content': 'hello'}])"
    )
    assert [plain.status, nested.status, loop.status] == ["ok"] * 3, nested.text
    assert "Traces are no longer sent" in watched.run("%wflo trace off").text
    notebook = collector.one("notebook")
    cells = sorted((s for s in collector.spans if s.name.startswith("cell ")), key=lambda s: s.start)
    assert [cell.parent for cell in cells] == [notebook.id] * 4
    assert cells[0].name == "cell essay" and cells[1].name.startswith("cell In [")
    graph = collector.one("invoke_workflow graph")
    assert graph.parent == cells[2].id
    calls = sorted(collector.named("chat gpt-4o-mini"), key=lambda s: s.start)
    assert [call.parent for call in calls] == [cells[0].id, cells[1].id, graph.id, cells[3].id]
    assert {span.trace for span in collector.spans} == {notebook.trace}
    assert all(notebook.start <= s.start <= s.end <= notebook.end for s in collector.spans)
    assert cells[0].attributes["wflo.budget.usd"] == 1.0 and cells[0].events[0][0] == "wflo.checkpoint"
    assert b"hello" not in b"".join(collector.raw)


def test_prompts_go_along_where_the_line_says_so(watched: Kernel, collector: Collector) -> None:
    before = len(collector.raw)
    assert f"traces to {collector.url}/v1/traces" in watched.run("%wflo trace on content").text
    assert "with prompts and answers" in watched.run("%wflo trace").text
    assert watched.run(ASK).status == "ok"
    watched.run("%wflo trace off")
    assert b"hello" in b"".join(collector.raw[before:])
    assert "without prompts" in watched.run(f"%wflo trace on {collector.url}").text
    assert "with prompts" in watched.run(f"%wflo trace on {collector.url} content").text
    watched.run("%wflo trace off")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("metrics of", "is no port. Did you mean off?"),
        ("metrics 9464 9465", "takes one port, or off"),
        ("metrics 70000", "Port 70000 is none"),
        ("trace onn", "Did you mean on?"),
        ("trace on localhost", "is no URL"),
        ("trace off content", "`content` behind it"),
    ],
)
def test_what_is_not_understood_is_answered_with_what_to_write(watched: Kernel, line: str, words: str) -> None:
    ran = watched.run(f"%wflo {line}")
    assert ran.status == "error" and words in ran.text


def test_unloading_ends_what_was_switched_on(watched: Kernel) -> None:
    watched.run("served = %wflo metrics 0")
    url = watched.value("served.value")
    assert watched.run("%unload_ext wflo_nb").status == "ok"
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url)
    assert watched.run("%load_ext wflo_nb").status == "ok"


def test_a_kernel_that_ends_sends_what_waits(tmp_path: Path, bill: FakeProvider) -> None:
    for collector in running():
        kernel = start(tmp_path, bill, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        try:
            kernel.run("%load_ext wflo_nb")
            kernel.run("%wflo trace on")
            assert kernel.run(ASK).status == "ok"
            kernel.client.stop_channels()
            kernel.manager.shutdown_kernel()
        finally:
            kernel.manager.cleanup_resources()
        assert [call.parent for call in collector.named("chat gpt-4o-mini")] == [
            s.id for s in collector.spans if s.name.startswith("cell ")
        ]
        assert len(collector.named("notebook")) == 1
