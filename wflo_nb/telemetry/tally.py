"""Sums of what happened in this process, in integers, for whoever shows them. Knows no telemetry library."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from wflo_nb import events
from wflo_nb.budget.ledger import renew_in_children
from wflo_nb.events import Figures
from wflo_nb.model import BudgetState, Call, CallState
from wflo_nb.telemetry import budgets, names

#: Provider and model asked for.
Of = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Sums:
    """One look at a tally.

    Attributes:
        spent: settled and unconfirmed money, in nano-USD; `unconfirmed` is the unconfirmed part of it. Both only grow.
        reconciled: the unconfirmed money of calls that were reconciled since; `corrections`: what that made of it, more or less, so that
            `spent` and these together are what the ledger says.
        held: money held for calls in flight, in nano-USD; `in_flight`: how many they are.
        calls: calls that are over, by provider, model and state; `refused`: those never sent, by provider, model and kind of refusal.
        unpriced: calls whose cost is not known and in no sum.
        budgets: the cap and what is left, in nano-USD, of every running execution with a cap and of the budgets that are watched, by
            name; the least that is left, where several have one name.
    """

    spent: dict[Of, int]
    unconfirmed: dict[Of, int]
    reconciled: dict[Of, int]
    corrections: dict[Of, int]
    held: dict[Of, int]
    in_flight: dict[Of, int]
    calls: dict[tuple[str, str, str], int]
    refused: dict[tuple[str, str, str], int]
    unpriced: dict[Of, int]
    budgets: dict[str, tuple[int, int]]


class Tally:
    """The listener."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spent: Counter[Of] = Counter()
        self._unconfirmed: Counter[Of] = Counter()
        self._reconciled: Counter[Of] = Counter()
        self._corrections: Counter[Of] = Counter()
        self._doubtful: set[str] = set()  # what others counted, others correct
        self._calls: Counter[tuple[str, str, str]] = Counter()
        self._refused: Counter[tuple[str, str, str]] = Counter()
        self._unpriced: Counter[Of] = Counter()
        self._held: dict[str, tuple[Of, int]] = {}
        self._running: dict[str, tuple[str, Figures]] = {}
        self._of: set[Of] = set()
        renew_in_children(self)

    def renew_locks(self) -> None:
        """In a forked child."""
        self._lock = threading.Lock()

    def __call__(self, event: events.Event) -> None:
        """Hear an event."""
        with self._lock:
            if isinstance(event, events.CallChanged):
                self._called(event.call)
                self._figures(event.call.execution_id, event.figures)
            elif isinstance(event, events.CallReconciled):
                self._corrected(event.before, event.after)
            elif isinstance(event, events.BudgetChanged):
                self._figures(event.execution_id, event.figures)
            elif isinstance(event, events.ExecutionStarted):
                self._running[event.execution.id] = (event.execution.workflow, event.figures)
            elif isinstance(event, events.ExecutionEnded):
                self._running.pop(event.execution.id, None)

    def _figures(self, execution_id: str, figures: Figures) -> None:
        if execution_id in self._running:
            self._running[execution_id] = (self._running[execution_id][0], figures)

    def _called(self, call: Call) -> None:
        of = (call.provider, call.model)
        self._of.add(of)
        if call.state is CallState.RESERVED:
            self._held[call.id] = (of, call.reserved_nano)
            return
        self._held.pop(call.id, None)
        if call.state is CallState.REFUSED:
            self._refused[(*of, names.error_type(call) or "_OTHER")] += 1
            return
        self._calls[(*of, call.state.value)] += 1
        if call.state is CallState.UNCONFIRMED:
            self._doubtful.add(call.id)
        if call.cost_nano is None:
            self._unpriced[of] += 1
            return
        self._spent[of] += call.cost_nano
        if call.state is CallState.UNCONFIRMED:
            self._unconfirmed[of] += call.cost_nano

    def _corrected(self, before: Call, after: Call) -> None:
        if before.id in self._doubtful:
            self._doubtful.discard(before.id)
            of, was = (before.provider, before.model), before.cost_nano or 0
            self._reconciled[of] += was
            self._corrections[of] += (after.cost_nano or 0) - was

    def sums(self) -> Sums:
        """Everything now, as one moment had it."""
        watched = budgets.states()  # outside the lock: it may ask a database
        with self._lock:
            held: Counter[Of] = Counter(dict.fromkeys(self._of, 0))
            flying: Counter[Of] = Counter(dict.fromkeys(self._of, 0))
            for of, nano in self._held.values():
                held[of] += nano
                flying[of] += 1
            return Sums(
                spent={of: self._spent[of] for of in self._of},
                unconfirmed={of: self._unconfirmed[of] for of in self._of},
                reconciled={of: self._reconciled[of] for of in self._of},
                corrections={of: self._corrections[of] for of in self._of},
                held=dict(held),
                in_flight=dict(flying),
                calls=dict(self._calls),
                refused=dict(self._refused),
                unpriced=dict(self._unpriced),
                budgets=self._budgets(watched),
            )

    def _budgets(self, watched: list[BudgetState]) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}

        def put(name: str, cap: int | None, used: int) -> None:
            if cap is not None:
                left = max(0, cap - used)
                if name not in found or left < found[name][1]:
                    found[name] = (cap, left)

        for name, figures in self._running.values():
            put(name, figures.cap_nano, figures.spent_nano + figures.held_nano)
        for state in watched:
            put(state.scope, state.cap_nano, state.spent_nano + state.held_nano)
        return found
