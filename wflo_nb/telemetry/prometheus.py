"""A page for Prometheus on loopback, served by prometheus_client from a registry of its own."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from wflo_nb import _context, events
from wflo_nb.errors import ConfigurationError, MissingDependencyError
from wflo_nb.model import CallState
from wflo_nb.telemetry import names
from wflo_nb.telemetry.tally import Tally

_HOST = "127.0.0.1"
_OF = ["provider", "model"]


class Prometheus:
    """The listener and its server.

    Attributes:
        port: where it is served on 127.0.0.1.

    Raises:
        MissingDependencyError: ``prometheus_client`` is not installed.
        ConfigurationError: the port is taken, may not be used, or is none.
    """

    def __init__(self, port: int) -> None:
        try:
            import prometheus_client
            import prometheus_client.metrics_core as families
        except ImportError:
            raise MissingDependencyError("prometheus-client", "otel") from None
        self._families = families
        self._tally = Tally()
        self._registry = prometheus_client.CollectorRegistry()
        histogram, labels = prometheus_client.Histogram, ["operation", *_OF]
        self._tokens = histogram(
            "gen_ai_client_token_usage",
            "Number of input and output tokens used.",
            [*labels, "type"],
            registry=self._registry,
            buckets=names.TOKEN_BUCKETS,
        )
        self._duration = histogram(
            "gen_ai_client_operation_duration_seconds",
            "Request sent to last byte.",
            [*labels, "error"],
            registry=self._registry,
            buckets=names.SECOND_BUCKETS,
        )
        self._first = histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "Request sent to first byte of a stream.",
            labels,
            registry=self._registry,
            buckets=names.FIRST_CHUNK_BUCKETS,
        )
        self._registry.register(self)
        with _context.within(None):  # the server's thread outlives the cell that starts it
            self._server, self._thread = _serve(prometheus_client.start_http_server, port, self._registry)
        self.port: int = self._server.server_port

    @property
    def where(self) -> str:
        """What Prometheus is to scrape."""
        return f"http://{_HOST}:{self.port}/metrics"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __call__(self, event: events.Event) -> None:
        """Hear an event."""
        self._tally(event)
        if not isinstance(event, events.CallChanged) or event.call.state in (CallState.RESERVED, CallState.REFUSED):
            return
        call = event.call
        labels = (names.operation(call), call.provider, call.model)
        if call.usage is not None:
            self._tokens.labels(*labels, "input").observe(call.usage.input_tokens)
            self._tokens.labels(*labels, "output").observe(call.usage.output_tokens)
        if call.latency_ms is not None:
            self._duration.labels(*labels, names.error_type(call) or "").observe(call.latency_ms / 1000)
        if call.ttft_ms is not None:
            self._first.labels(*labels).observe(call.ttft_ms / 1000)

    def collect(self) -> Iterator[Any]:
        """The sums as metric families: what prometheus_client asks a collector for at every scrape."""
        sums = self._tally.sums()
        counter, gauge = self._families.CounterMetricFamily, self._families.GaugeMetricFamily
        yield self._money(counter("wflo_spend_usd", "Settled and unconfirmed cost of calls, in USD.", labels=_OF), sums.spent)
        yield self._money(counter("wflo_unconfirmed_usd", "The part of it that no answer confirmed, in USD.", labels=_OF), sums.unconfirmed)
        reconciled = counter("wflo_reconciled_usd", "Unconfirmed cost of calls that were reconciled since, in USD.", labels=_OF)
        corrections = gauge("wflo_corrections_usd", "What reconciling changed, in USD: the ledger is the spend and this.", labels=_OF)
        yield self._money(reconciled, sums.reconciled)
        yield self._money(corrections, sums.corrections)
        yield self._money(gauge("wflo_held_usd", "Held for calls in flight, in USD.", labels=_OF), sums.held)
        yield self._counts(gauge("wflo_calls_in_flight", "Calls sent and not over.", labels=_OF), sums.in_flight)
        yield self._counts(counter("wflo_calls_unpriced", "Calls whose cost is not known and in no sum.", labels=_OF), sums.unpriced)
        yield self._counts(counter("wflo_calls", "Calls that are over, by how they ended.", labels=[*_OF, "state"]), sums.calls)
        yield self._counts(counter("wflo_calls_refused", "Calls that were never sent.", labels=[*_OF, "error"]), sums.refused)
        cap = gauge("wflo_budget_cap_usd", "Caps of budgets, and of running executions, in USD.", labels=["budget"])
        left = gauge("wflo_budget_left_usd", "What is left of them, in USD: the least, where several have one name.", labels=["budget"])
        for name, (capped, remaining) in sums.budgets.items():
            cap.add_metric([name], names.dollars(capped))
            left.add_metric([name], names.dollars(remaining))
        yield from (cap, left)

    @staticmethod
    def _money(family: Any, sums: dict[Any, int]) -> Any:
        for labels, nano in sums.items():
            family.add_metric(labels, names.dollars(nano))
        return family

    @staticmethod
    def _counts(family: Any, sums: dict[Any, int]) -> Any:
        for labels, count in sums.items():
            family.add_metric(labels, count)
        return family


def _serve(start: Any, port: int, registry: Any) -> Any:
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"Port {port} is none: ports go from 1 to 65535. 9464 is usual for metrics; 0 takes any free one.")
    try:
        return start(port, addr=_HOST, registry=registry)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"Port {port} of {_HOST} is in use, perhaps by the metrics of another kernel."
        elif error.errno == errno.EACCES:
            why = f"Port {port} of {_HOST} may not be used by this user (ports below 1024 are the system's)."
        else:
            why = f"Port {port} of {_HOST} cannot be used: {error.strerror or error}."
        raise ConfigurationError(f"{why} Choose another, or 0 for any free one.") from None
