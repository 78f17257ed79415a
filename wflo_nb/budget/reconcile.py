"""Settling by evidence what the ledger is in doubt about.

A call whose outcome is unknown counts as spent at its full hold. Somebody may know better: the provider's dashboard, or its support.
What they say corrects the ledger once, in the call, its execution and every budget it was charged to; it cannot be undone.

    from wflo_nb.budget.reconcile import reconcile, unconfirmed

    for entry in unconfirmed(store):
        print(entry.call.id, entry.call.model, entry.call.reason)
    reconcile(store, "call-…", cost_usd="0.0012")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from wflo_nb import events
from wflo_nb.errors import ConfigurationError, PricingError, StoreError, WfloError, format_usd
from wflo_nb.model import Call, CallState, Usage, microseconds, nano_from_usd, now, usd
from wflo_nb.pricing.book import ModelPrice, PriceBook
from wflo_nb.store import Store
from wflo_nb.store.holder import is_dead, is_here, told
from wflo_nb.store.looking import Entry, Ran

#: An execution of another machine that gave no sign of life for so long may be over.
SILENT = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a call: one of these. Make it with `evidence`, which checks it.

    Attributes:
        cost_nano: what the provider billed.
        free: the provider did not bill it.
        usage: what the provider counted; it is priced by the book.
        dead: the process that held the money is over; what it spent stays unknown.
    """

    cost_nano: int | None = None
    free: bool = False
    usage: Usage | None = None
    dead: bool = False

    def __str__(self) -> str:
        if self.cost_nano is not None:
            return f"billed {format_usd(usd(self.cost_nano))}"
        if self.usage is not None:
            return f"{self.usage.input_tokens:,} tokens in, {self.usage.output_tokens:,} out"
        return "not billed" if self.free else "its process is over"


def evidence(
    *, cost_usd: object = None, free: bool = False, usage: Usage | Mapping[str, object] | None = None, dead: bool = False
) -> Evidence:
    """What is known about a call, checked.

    Args:
        cost_usd: what the provider billed, in USD; fractions of a nano-dollar are rounded up.
        free: the provider did not bill it.
        usage: what the provider counted: a `Usage`, or its fields with or without ``_tokens``: ``{"input": 123, "output": 45}``.
        dead: only that the process is over.

    Raises:
        ConfigurationError: not exactly one of them, or a value that cannot be.
    """
    given = [
        name for name, value in (("cost", cost_usd is not None), ("free", free), ("usage", usage is not None), ("dead", dead)) if value
    ]
    if len(given) != 1:
        found = f"{' and '.join(given)} together say" if given else "nothing says"
        raise ConfigurationError(f"{found} what became of the call. Give one: cost=0.0012 (USD), free, usage input=… output=…, or dead.")
    nano = None
    if cost_usd is not None:
        nano = nano_from_usd(cost_usd, "cost", up=True)
    if usage is not None and not isinstance(usage, Usage):
        usage = _usage(usage)
    return Evidence(nano, free, usage, dead)


def _usage(given: Mapping[str, object]) -> Usage:
    counts: dict[str, int] = {}
    for name, value in given.items():
        key = name if name.endswith("_tokens") else f"{name}_tokens"
        if key not in Usage.__slots__:
            known = ", ".join(f"{k.removesuffix('_tokens')}=…" for k in Usage.__slots__)
            raise ConfigurationError(f"{name}= is no count of tokens. Use {known}.")
        text = str(value).replace("_", "").replace(",", "")
        if isinstance(value, bool) or not text.isdecimal():
            raise ConfigurationError(f"{name}={value!s} is not a whole number of tokens.")
        counts[key] = int(text)
    if "input_tokens" not in counts or "output_tokens" not in counts:
        raise ConfigurationError("A usage needs both counts: usage input=123 output=45.")
    parts = counts.get("cache_read_tokens", 0) + counts.get("cache_write_tokens", 0)
    if parts > counts["input_tokens"] or counts.get("reasoning_tokens", 0) > counts["output_tokens"]:
        raise ConfigurationError(
            "input includes cache_read and cache_write, and output includes reasoning: a part is larger than its whole."
        )
    return Usage(**counts)


@dataclass(frozen=True, slots=True)
class Hold:
    """Money held by a process that cannot be judged from here.

    Attributes:
        run: the execution of the call, None if the ledger does not know it.
        silent_since: its last sign of life.
    """

    entry: Entry
    run: Ran | None
    silent_since: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """One call before and after."""

    before: Call
    after: Call

    @property
    def difference_nano(self) -> int:
        """How much more (or less, negative) counts as spent, in nano-USD."""
        return (self.after.cost_nano or 0) - _counted(self.before)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reconciliation would change. Nothing has happened yet.

    Attributes:
        problems: call id → why it cannot be changed as told.
    """

    changes: tuple[Change, ...]
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def difference_nano(self) -> int:
        """How much more (or less, negative) will count as spent, in nano-USD."""
        return sum(c.difference_nano for c in self.changes)


def unconfirmed(store: Store) -> list[Entry]:
    """The calls whose outcome is unknown, oldest first. Each counts as spent at its full hold."""
    return store.calls(CallState.UNCONFIRMED)


def sweep(store: Store) -> int:
    """Make the holds of dead processes of this machine unconfirmed; returns how many there were."""
    return store.sweep(is_dead)


def silent_holds(store: Store, silent: timedelta = SILENT) -> list[Hold]:
    """Holds of other machines whose executions gave no sign of life for a while, oldest first. Whether they live cannot be told here."""
    held = [e for e in store.calls(CallState.RESERVED) if e.call.holder is None or not is_here(e.call.holder)]
    runs = store.runs([e.call.execution_id for e in held])
    found = []
    for entry in held:
        run = runs.get(entry.call.execution_id)
        since = max(entry.call.created_at, run.at) if run else entry.call.created_at
        if now() - since >= silent:
            found.append(Hold(entry, run, since))
    return found


def only(
    entries: Iterable[Entry],
    *,
    model: str | None = None,
    cell: str | None = None,
    execution: str | None = None,
    older: timedelta | None = None,
) -> list[Entry]:
    """Those of a model, a cell, an execution, or at least so old."""

    def fits(call: Call) -> bool:
        return (
            (model is None or model in (call.model, call.answered_model))
            and (cell is None or call.cell == cell)
            and (execution is None or call.execution_id == execution)
            and (older is None or now() - call.created_at >= older)
        )

    return [entry for entry in entries if fits(entry.call)]


def plan(entries: Sequence[Entry], what: Evidence, book: PriceBook | None = None) -> Plan:
    """What `what` would make of these calls. Reads and writes nothing.

    Args:
        entries: calls as the ledger has them.
        what: what is known about each of them.
        book: prices for a usage; by default those of the table.
    """
    book = book or PriceBook()
    changes, problems = [], {}
    for entry in entries:
        try:
            changes.append(Change(entry.call, _after(entry.call, what, book)))
        except WfloError as error:
            problems[entry.call.id] = str(error)
    return Plan(tuple(changes), problems)


def carry_out(store: Store, planned: Plan, progress: Callable[[int, int], object] | None = None) -> Plan:
    """Do it; each call is changed once, whoever else does the same at the same time. It cannot be undone.

    Args:
        store: where the calls are.
        planned: what to do.
        progress: told how many of how many are done, after each.

    Returns:
        what was done, and why the rest was not.

    Raises:
        StoreError: the ledger cannot be used; what was done before stays done.
    """
    done, problems = [], dict(planned.problems)
    for number, change in enumerate(planned.changes, 1):
        store.finish(change.after)
        entry = store.call(change.after.id)
        if entry is None or (entry.call.state, entry.call.cost_nano) != (change.after.state, change.after.cost_nano):
            problems[change.after.id] = f"Call {change.after.id} was changed by somebody else in the meantime: {_stands(entry)}."
        else:
            done.append(change)
            events.emit(events.CallReconciled(change.before, change.after))
        if progress is not None:
            progress(number, len(planned.changes))
    return Plan(tuple(done), problems)


def reconcile(
    store: Store,
    call_id: str,
    *,
    cost_usd: object = None,
    free: bool = False,
    usage: Usage | Mapping[str, object] | None = None,
    dead: bool = False,
    book: PriceBook | None = None,
) -> Call:
    """Settle one call by what is known about it; see `evidence`. Returns it as the ledger has it then. It cannot be undone.

    Raises:
        ConfigurationError: there is no such call, it is not in doubt, or what is told cannot be.
        UnknownModelError: a usage of a model that has no price.
        StoreError: the ledger cannot be used, or somebody else settled the call at the same moment.
    """
    what = evidence(cost_usd=cost_usd, free=free, usage=usage, dead=dead)
    sweep(store)
    change = Change(before := in_ledger(store, call_id).call, _after(before, what, book or PriceBook()))
    done = carry_out(store, Plan((change,)))
    if done.problems:
        raise StoreError(done.problems[call_id])
    return in_ledger(store, call_id).call


def in_ledger(store: Store, call_id: str) -> Entry:
    """A call by its id.

    Raises:
        ConfigurationError: there is none.
    """
    entry = store.call(call_id)
    if entry is None:
        raise ConfigurationError(f"No call {call_id} is in the store {store.location}. `%wflo reconcile` lists those in doubt.")
    return entry


def _after(call: Call, what: Evidence, book: PriceBook) -> Call:
    _check(call, what)
    at = now()
    note = {"at": at.isoformat(), "by": str(what), "was_nano": _counted(call), "was": call.reason}
    told_now: dict[str, Any] = {"settled_us": microseconds(at), "meta": {**call.meta, "reconciled": note}}
    if what.dead:
        words = f"{told(call.holder)} was declared to be over; the whole hold counts as spent"
        return replace(call, state=CallState.UNCONFIRMED, cost_nano=call.reserved_nano, reason=words, **told_now)
    if what.free:
        after = replace(call, state=CallState.RELEASED, cost_nano=0, **told_now)
    elif what.usage is not None:
        cost = _price(call, book).cost(what.usage, **_circumstances(call))
        # A usage in tokens does not say how often tools ran that are billed per use: the most counts.
        cost = replace(cost, nano_usd=cost.nano_usd + int((call.meta.get("asked") or {}).get("uses_nano", 0)))
        after = replace(
            call,
            state=CallState.SETTLED,
            cost_nano=cost.nano_usd,
            usage=what.usage,
            price_source=cost.price_source,
            price_date=cost.price_date,
            **told_now,
        )
    else:
        after = replace(
            call,
            state=CallState.SETTLED,
            cost_nano=what.cost_nano,
            price_source="told by the user",
            price_date=f"{at:%Y-%m-%d}",
            **told_now,
        )
    _not_below(after, call, book)
    return replace(after, reason=f"reconciled: {what} (it was unconfirmed: {call.reason or 'no reason was kept'})")


def _check(call: Call, what: Evidence) -> None:
    if call.state is CallState.RESERVED:
        if call.holder is not None and is_here(call.holder) and not is_dead(call.holder):
            raise ConfigurationError(f"Call {call.id} is in flight: {told(call.holder)} is alive and will settle it.")
        if not what.dead:
            raise ConfigurationError(
                f"Call {call.id} is held by {told(call.holder)}, which cannot be judged from here. If that process is over, say so first: "
                f"`%wflo reconcile {call.id} dead`."
            )
    elif call.state is not CallState.UNCONFIRMED:
        raise ConfigurationError(f"Call {call.id} is not in doubt: {_stands(Entry(call, ()))}. Only unconfirmed calls can be reconciled.")
    elif what.dead:
        raise ConfigurationError(f"Call {call.id} is unconfirmed already. Say what it cost: cost=…, free, or usage input=… output=….")


def _not_below(after: Call, call: Call, book: PriceBook) -> None:
    """What the provider itself reported for a call is the least that it cost."""
    if call.usage is None:
        return
    try:
        least = _price(call, book).cost(call.usage, **_circumstances(call)).nano_usd
    except PricingError:
        return
    if (after.cost_nano or 0) < least:
        raise ConfigurationError(
            f"Call {call.id} cannot have cost {format_usd(usd(after.cost_nano or 0))}: the provider reported {call.usage.input_tokens:,} "
            f"tokens in and {call.usage.output_tokens:,} out for it, which are {format_usd(usd(least))}."
        )


def _price(call: Call, book: PriceBook) -> ModelPrice:
    """As a finished call is priced: by the model that the answer named, unless a price was declared for the one asked for."""
    found = None
    for model in (call.model, call.answered_model):
        if model is not None and (found is None or found.source != "declared"):
            with suppress(PricingError):
                found = book.find(call.provider, model)
    return found or book.find(call.provider, call.model)


def _circumstances(call: Call) -> dict[str, Any]:
    """What besides the tokens decides the price, as far as the call's record tells."""
    asked = call.meta.get("asked") or {}
    return {"media": bool(asked.get("media")), "regional": bool(asked.get("regional")), "service_tier": asked.get("tier")}


def _counted(call: Call) -> int:
    """What a call counts as spent now; a hold is not spent."""
    return (call.cost_nano or 0) if call.state is not CallState.RESERVED else 0


def _stands(entry: Entry | None) -> str:
    if entry is None:
        return "it is not in the ledger"
    call = entry.call
    return f"it is {call.state.value} at {format_usd(None if call.cost_nano is None else usd(call.cost_nano))}"
