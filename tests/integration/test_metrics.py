"""Metrics of real SDK calls: what an OTLP collector receives, and what Prometheus would scrape."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

import wflo_nb
from tests.collector import Collector, Point, running
from tests.integration.conftest import PROMPT, ledger_calls, ledger_total
from wflo_nb import telemetry
from wflo_nb.budget.reconcile import reconcile
from wflo_nb.errors import BudgetExceededError
from wflo_nb.model import usd
from wflo_nb.store import current
from wflo_nb.telemetry import names
from wflo_nb.testing import FakeProvider

MODEL = "gpt-4o-mini"
OF = {"provider": "openai", "model": MODEL}
GEN_AI_OF = {"gen_ai.provider.name": "openai", "gen_ai.request.model": MODEL}


@pytest.fixture
def collector() -> Iterator[Collector]:
    yield from running()


@pytest.fixture
def page() -> Iterator[str]:
    off = telemetry.enable(prometheus_port=0)
    assert off.prometheus_url is not None
    yield off.prometheus_url
    off()


Scrape = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(url: str) -> Scrape:
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found: Scrape, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def ask(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=PROMPT, **more)


def nano(dollars: float) -> int:
    return round(dollars * 1e9)


def some_calls(client: Any, provider: FakeProvider) -> None:
    """Three settled calls, one of them streamed; one refused by the provider; one of unknown outcome; one refused by a budget."""
    with wflo_nb.execution("essay", budget_usd=1):
        ask(client)
        ask(client)
        list(ask(client, stream=True))
        for status in (429, 500):
            provider.next(status=status)
            with pytest.raises(Exception, match=str(status)):
                ask(client.with_options(max_retries=0))
    with pytest.raises(BudgetExceededError), wflo_nb.execution("poor", budget_usd="0.000001"):
        ask(client, max_tokens=500)


def test_a_scrape_says_what_the_ledger_says(page: str, provider: FakeProvider, openai_client: Any) -> None:
    some_calls(openai_client, provider)
    found, rows = scrape(page), ledger_calls()
    assert nano(value(found, "wflo_spend_usd_total", **OF)) == ledger_total()
    unconfirmed = [row for row in rows if row["state"] == "UNCONFIRMED"]
    assert nano(value(found, "wflo_unconfirmed_usd_total", **OF)) == unconfirmed[0]["cost_nano"] > 0
    assert ledger_total() - unconfirmed[0]["cost_nano"] == provider.spent_nano
    ended = {state: value(found, "wflo_calls_total", **OF, state=state) for state in ("SETTLED", "RELEASED", "UNCONFIRMED")}
    assert ended == {"SETTLED": 3, "RELEASED": 1, "UNCONFIRMED": 1}
    assert value(found, "wflo_calls_refused_total", **OF, error="BudgetExceededError") == 1
    assert value(found, "wflo_held_usd", **OF) == 0 and value(found, "wflo_calls_in_flight", **OF) == 0
    both = {"operation": "chat", **OF}
    billed = {"input": sum(b.usage.input_tokens for b in provider.bill), "output": sum(b.usage.output_tokens for b in provider.bill)}
    for kind, tokens in billed.items():
        assert value(found, "gen_ai_client_token_usage_sum", **both, type=kind) == tokens
        assert value(found, "gen_ai_client_token_usage_count", **both, type=kind) == 3
    seconds = [row["latency_ms"] / 1000 for row in rows if row["state"] == "SETTLED"]
    assert value(found, "gen_ai_client_operation_duration_seconds_sum", **both, error="") == pytest.approx(sum(seconds))
    assert value(found, "gen_ai_client_operation_duration_seconds_count", **both, error="429") == 1
    assert value(found, "gen_ai_client_operation_time_to_first_chunk_seconds_count", **both) == 1
    assert not [key for key in found if key[0].startswith("wflo_budget")], "no execution with a cap is running"


def test_what_is_reconciled_is_corrected_where_it_was_counted(
    page: str, collector: Collector, provider: FakeProvider, openai_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    off = telemetry.enable(otlp_endpoint=collector.url, logs=True)
    client = openai_client.with_options(max_retries=0)
    with wflo_nb.execution("essay", budget_usd=1):
        ask(client)
        for _ in range(3):
            provider.next(status=500)
            with pytest.raises(Exception, match="500"):
                ask(client)
    doubtful = [row for row in ledger_calls() if row["state"] == "UNCONFIRMED"]
    store = current()
    reconcile(store, doubtful[0]["id"], free=True)
    reconcile(store, doubtful[1]["id"], cost_usd=usd(doubtful[1]["reserved_nano"] + 5))
    found = scrape(page)
    counted = nano(value(found, "wflo_spend_usd_total", **OF))
    assert counted + nano(value(found, "wflo_corrections_usd", **OF)) == ledger_total()
    in_doubt = nano(value(found, "wflo_unconfirmed_usd_total", **OF)) - nano(value(found, "wflo_reconciled_usd_total", **OF))
    assert in_doubt == doubtful[2]["cost_nano"] > 0
    assert telemetry.flush()
    for name, metric in (("wflo.spend", "wflo_spend_usd_total"), ("wflo.corrections", "wflo_corrections_usd")):
        assert nano(by(collector.metric(name)).value) == nano(value(found, metric, **OF))
    assert "chat gpt-4o-mini reconciled" in caplog.text
    off()


def test_what_others_counted_others_correct(provider: FakeProvider, openai_client: Any) -> None:
    provider.next(status=500)
    with wflo_nb.execution("essay", budget_usd=1), pytest.raises(Exception, match="500"):
        ask(openai_client.with_options(max_retries=0))
    off = telemetry.enable(prometheus_port=0)  # too late to count it
    assert off.prometheus_url is not None
    reconcile(current(), ledger_calls()[0]["id"], free=True)
    assert ("wflo_corrections_usd", frozenset(OF.items())) not in scrape(off.prometheus_url)
    off()


def test_a_scrape_during_a_call_shows_its_hold_and_what_is_left(page: str, provider: FakeProvider, openai_client: Any) -> None:
    seen: list[Scrape] = []
    arrived, go = threading.Event(), threading.Event()
    real = provider.take_behaviour

    def look() -> Any:
        arrived.set()
        assert go.wait(20)
        return real()

    provider.take_behaviour = look  # type: ignore[method-assign]
    with wflo_nb.execution("essay", budget_usd=1) as run:
        thread = threading.Thread(target=ask, args=(openai_client,), kwargs={"max_tokens": 100})
        thread.start()
        assert arrived.wait(20)
        seen.append(scrape(page))
        go.set()
        thread.join()
        seen.append(scrape(page))
        held = ledger_calls()[0]["reserved_nano"]
        spent = nano(float(run.spent_usd))
    during, after = seen
    assert held > spent > 0
    assert nano(value(during, "wflo_held_usd", **OF)) == held and value(during, "wflo_calls_in_flight", **OF) == 1
    assert nano(value(during, "wflo_budget_left_usd", budget="essay")) == 10**9 - held
    assert nano(value(after, "wflo_budget_left_usd", budget="essay")) == 10**9 - spent
    assert value(after, "wflo_budget_cap_usd", budget="essay") == 1.0 and value(after, "wflo_held_usd", **OF) == 0


def test_an_unpriced_call_is_counted_and_costs_nothing_known(page: str, openai_client: Any) -> None:
    with wflo_nb.execution("essay"):
        openai_client.chat.completions.create(model="nobody-knows-it", messages=PROMPT)
    found = scrape(page)
    assert value(found, "wflo_calls_unpriced_total", provider="openai", model="nobody-knows-it") == 1
    assert value(found, "wflo_spend_usd_total", provider="openai", model="nobody-knows-it") == 0


def test_sums_are_exact_where_floats_would_drift() -> None:
    from wflo_nb import events
    from wflo_nb.model import Call, CallState, now_us
    from wflo_nb.telemetry.tally import Tally

    tally = Tally()
    for index in range(1000):
        call = Call(f"call-{index}", "exec-1", "openai", "chat", MODEL, CallState.SETTLED, now_us(), cost_nano=100_000_001)
        tally(events.CallChanged(call, events.Figures()))
    assert tally.sums().spent == {("openai", MODEL): 100_000_001_000}


def test_the_page_is_on_loopback_only_and_goes_when_it_is_switched_off(openai_client: Any) -> None:
    off = telemetry.enable(prometheus_port=0)
    url = off.prometheus_url
    assert url is not None and url.startswith("http://127.0.0.1:")
    off()
    with pytest.raises(OSError, match="refused"):
        scrape(url)


def by(points: list[Point], **labels: object) -> Point:
    wanted = {name.replace("__", "."): value for name, value in labels.items()}
    (found,) = [p for p in points if wanted.items() <= p.attributes.items()]
    return found


def test_a_collector_receives_the_metrics_of_the_conventions(collector: Collector, provider: FakeProvider, openai_client: Any) -> None:
    off = telemetry.enable(otlp_endpoint=collector.url)
    some_calls(openai_client, provider)
    assert telemetry.flush()
    rows = ledger_calls()
    tokens = collector.metric("gen_ai.client.token.usage")
    billed = {"input": sum(b.usage.input_tokens for b in provider.bill), "output": sum(b.usage.output_tokens for b in provider.bill)}
    for kind, sum_ in billed.items():
        point = by(tokens, gen_ai__token__type=kind)
        assert (point.value, point.count, point.unit, tuple(point.bounds)) == (sum_, 3, "{token}", names.TOKEN_BUCKETS)
        server = {"server.address": "127.0.0.1", "server.port": urlsplit(provider.url).port}
        wanted = {**GEN_AI_OF, **server, "gen_ai.operation.name": "chat", "gen_ai.response.model": MODEL, "gen_ai.token.type": kind}
        assert point.attributes == wanted
    durations = collector.metric("gen_ai.client.operation.duration")
    settled = by([p for p in durations if "error.type" not in p.attributes])
    assert settled.count == 3 and settled.unit == "s" and tuple(settled.bounds) == names.SECOND_BUCKETS
    assert settled.value == pytest.approx(sum(row["latency_ms"] / 1000 for row in rows if row["state"] == "SETTLED"))
    assert {p.attributes["error.type"] for p in durations if p is not settled} == {"429", "500"}
    assert by(collector.metric("gen_ai.client.operation.time_to_first_chunk")).count == 1
    spend = by(collector.metric("wflo.spend"))
    assert (nano(spend.value), spend.unit, spend.attributes) == (ledger_total(), "USD", GEN_AI_OF)
    assert by(collector.metric("wflo.calls.refused")).attributes["error.type"] == "BudgetExceededError"
    assert {p.attributes["wflo.state"]: p.value for p in collector.metric("wflo.calls")} == {"SETTLED": 3, "RELEASED": 1, "UNCONFIRMED": 1}
    assert by(collector.metric("wflo.held")).value == 0
    off()
    assert not collector.metric("wflo.budget.left")
