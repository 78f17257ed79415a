"""Metrics for OpenTelemetry: the GenAI client histograms, and ``wflo.*`` for the money."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from wflo_nb import events
from wflo_nb.errors import MissingDependencyError
from wflo_nb.model import CallState
from wflo_nb.telemetry import names
from wflo_nb.telemetry.tally import Of, Sums, Tally

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider, Observation


class Meters:
    """The listener. One per meter provider.

    Raises:
        MissingDependencyError: ``opentelemetry-api`` is not installed.
    """

    def __init__(self, provider: MeterProvider, version: str) -> None:
        try:
            from opentelemetry.metrics import Observation
        except ImportError:
            raise MissingDependencyError("opentelemetry-api", "otel") from None
        self._observation = Observation
        self._tally: Tally | None = Tally()
        meter = provider.get_meter("wflo_nb", version)

        def histogram(name: str, unit: str, description: str, buckets: tuple[float, ...]) -> Any:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)

        client = "gen_ai.client"
        self._tokens = histogram(f"{client}.token.usage", "{token}", "Number of input and output tokens used.", names.TOKEN_BUCKETS)
        self._duration = histogram(f"{client}.operation.duration", "s", "Request sent to last byte.", names.SECOND_BUCKETS)
        self._first = histogram(
            f"{client}.operation.time_to_first_chunk", "s", "Request sent to first byte of a stream.", names.FIRST_CHUNK_BUCKETS
        )
        money, calls = "USD", "{call}"
        counter, gauge = meter.create_observable_counter, meter.create_observable_gauge
        counter("wflo.spend", [self._by_model("spent")], money, "Settled and unconfirmed cost of calls.")
        counter("wflo.unconfirmed", [self._by_model("unconfirmed")], money, "The part of it that no answer confirmed.")
        counter("wflo.reconciled", [self._by_model("reconciled")], money, "Unconfirmed cost of calls that were reconciled since.")
        balance = meter.create_observable_up_down_counter
        balance("wflo.corrections", [self._by_model("corrections")], money, "What reconciling changed: the ledger is the spend and this.")
        gauge("wflo.held", [self._by_model("held")], money, "Held for calls in flight.")
        gauge("wflo.calls.in_flight", [self._by_model("in_flight", money=False)], calls, "Calls sent and not over.")
        counter("wflo.calls.unpriced", [self._by_model("unpriced", money=False)], calls, "Calls whose cost is not known.")
        counter("wflo.calls", [self._by("calls", "wflo.state")], calls, "Calls that are over, by how they ended.")
        counter("wflo.calls.refused", [self._by("refused", "error.type")], calls, "Calls that were never sent.")
        gauge("wflo.budget.cap", [self._budgets(0)], money, "Caps of budgets, and of running executions.")
        gauge("wflo.budget.left", [self._budgets(1)], money, "What is left of them; the least, where several have one name.")

    def __call__(self, event: events.Event) -> None:
        """Hear an event."""
        tally = self._tally
        if tally is None:
            return
        tally(event)
        if not isinstance(event, events.CallChanged) or event.call.state in (CallState.RESERVED, CallState.REFUSED):
            return
        call = event.call
        attributes = names.shared_attributes(call)
        if call.usage is not None:
            plain = {name: value for name, value in attributes.items() if name != "error.type"}
            self._tokens.record(call.usage.input_tokens, plain | {"gen_ai.token.type": "input"})
            self._tokens.record(call.usage.output_tokens, plain | {"gen_ai.token.type": "output"})
        if call.latency_ms is not None:
            self._duration.record(call.latency_ms / 1000, attributes)
        if call.ttft_ms is not None:
            self._first.record(call.ttft_ms / 1000, attributes)

    def close(self) -> None:
        """Say nothing more. A meter's instruments cannot be taken back."""
        self._tally = None

    def _look(self) -> Sums | None:
        return None if self._tally is None else self._tally.sums()

    def _by_model(self, field: str, *, money: bool = True) -> Callable[[Any], Iterator[Observation]]:
        def observe(_: Any) -> Iterator[Observation]:
            sums = self._look()
            found: dict[Of, int] = getattr(sums, field) if sums else {}
            for (provider, model), value in found.items():
                yield self._observation(names.dollars(value) if money else value, _labels(provider, model))

        return observe

    def _by(self, field: str, label: str) -> Callable[[Any], Iterator[Observation]]:
        def observe(_: Any) -> Iterator[Observation]:
            sums = self._look()
            found: dict[tuple[str, str, str], int] = getattr(sums, field) if sums else {}
            for (provider, model, value), count in found.items():
                yield self._observation(count, _labels(provider, model) | {label: value})

        return observe

    def _budgets(self, which: int) -> Callable[[Any], Iterator[Observation]]:
        def observe(_: Any) -> Iterator[Observation]:
            sums = self._look()
            for name, both in (sums.budgets if sums else {}).items():
                yield self._observation(names.dollars(both[which]), {"wflo.budget": name})

        return observe


def _labels(provider: str, model: str) -> dict[str, str]:
    return {"gen_ai.provider.name": provider, "gen_ai.request.model": model}
