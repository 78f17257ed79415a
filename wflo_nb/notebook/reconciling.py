"""``%wflo reconcile``: what is in doubt, and what somebody knows about it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from wflo_nb.budget import reconcile as room
from wflo_nb.budget.reconcile import Evidence, Plan
from wflo_nb.errors import ConfigurationError
from wflo_nb.model import now, usd
from wflo_nb.notebook.options import pairs
from wflo_nb.notebook.tables import Answer, Said, Table
from wflo_nb.notebook.tree import machine
from wflo_nb.notebook.view import duration, money
from wflo_nb.pricing.book import PriceBook
from wflo_nb.store import Store
from wflo_nb.store.holder import told
from wflo_nb.store.looking import Entry

COUNTS = ("input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning")
FILTERS = ("model", "cell", "execution", "older")
#: Rows of a list; the rest is counted.
_SHOWN = 50
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_HOW = (
    ("%wflo reconcile call-… cost=0.0012", "what the provider billed, in USD"),
    ("%wflo reconcile call-… free", "the provider did not bill it"),
    ("%wflo reconcile call-… usage input=123 output=45", "what the provider counted"),
    ("%wflo reconcile all [model=… cell=… older=2h] free", "many at once; asks first"),
)
_FINAL = "Until then each counts at its full hold. What is settled cannot be undone."


def listed(store: Store) -> Table:
    """The calls in doubt, and holds and leases that cannot be judged from here. Holds of dead processes of this machine are swept first."""
    swept = room.sweep(store)
    entries = room.unconfirmed(store)
    below = [*_silent(store), *_lost(store)]
    if not entries:
        words = "No call is unconfirmed: what every call cost is known."
        return Table((), [], items=[], note=words if not below else f"{words} But:", below=below)
    doubt = sum(e.call.cost_nano or 0 for e in entries)
    more = f" The {_SHOWN} newest are shown; %wflo report calls lists all." if len(entries) > _SHOWN else ""
    found = f" {swept} of them are holds of processes that ended, found just now." if swept else ""
    title = f"{len(entries)} unconfirmed {_calls(len(entries))}: {money(doubt)} counted as spent.{found}{more}"
    rows = [_row(e) for e in entries[-_SHOWN:]]
    columns = ("call", "age", "model", "counted", "cell", "reason")
    return Table(columns, rows, items=[e.call for e in entries], title=title, note=_FINAL, below=[*below, Answer([], [], _HOW)])


def _row(e: Entry) -> tuple[object, ...]:
    c = e.call
    age = duration((now() - c.created_at).total_seconds())
    return c.id, age, c.model, None if c.cost_nano is None else usd(c.cost_nano), c.cell, c.reason


def _silent(store: Store) -> list[Table]:
    holds = room.silent_holds(store)
    if not holds:
        return []
    rows = [
        (
            h.entry.call.id,
            usd(h.entry.call.reserved_nano),
            h.entry.call.model,
            h.run.name if h.run else None,
            told(h.entry.call.holder),
            h.entry.call.created_at,
            f"{duration((now() - h.silent_since).total_seconds())} ago",
        )
        for h in holds
    ]
    note = (
        "Whether these processes live cannot be judged from here. If one is over: %wflo reconcile call-… dead makes its hold unconfirmed."
    )
    columns = ("call", "held", "model", "run", "by", "since", "last sign of life")
    return [Table(columns, rows, items=[h.entry.call for h in holds], title="Held by other machines that fell silent", note=note)]


def _lost(store: Store) -> list[Table]:
    lost = [lease for lease in store.leases() if lease.lost_nano]
    if not lost:
        return []
    rows = [(lease.budget_id, usd(lease.lost_nano), machine(lease.holder), lease.expires_at) for lease in lost]
    note = (
        "What these machines spent of it is told by themselves when they come back; until then all of it counts as spent. What a process "
        "had set aside when its machine lost its power stays counted."
    )
    return [Table(("budget", "unconfirmed", "machine", "ran out"), rows, items=lost, title="Leases that ran out", note=note)]


def reconcile(store: Store, book: PriceBook, words: Sequence[str]) -> Said | Table:
    """Carry out what the words behind ``%wflo reconcile`` say.

    Raises:
        ConfigurationError: they cannot be understood, or do not fit the call.
    """
    targets = [w for w in words if w == "all" or w.startswith("call-")]
    rest = [w for w in words if w not in targets]
    if not targets or ("all" in targets and len(targets) > 1):
        raise ConfigurationError(f"%wflo reconcile: name calls by their ids, or all of them: {_HOW[0][0]}, {_HOW[3][0]}.")
    certain = "--yes" in rest
    what, filters = _understood([w for w in rest if w != "--yes"])
    if targets != ["all"]:
        if filters:
            raise ConfigurationError(
                f"%wflo reconcile: {next(iter(filters))}= chooses among all: %wflo reconcile all {next(iter(filters))}=… …"
            )
        room.sweep(store)
        planned = room.plan([room.in_ledger(store, id) for id in targets], what, book)
        if len(targets) == 1 and planned.problems:
            raise ConfigurationError(planned.problems[targets[0]])
        return _done(store, room.carry_out(store, planned), what)
    return _all(store, book, what, filters, words, certain)


def _all(store: Store, book: PriceBook, what: Evidence, filters: dict[str, Any], words: Sequence[str], certain: bool) -> Said | Table:
    if what.dead:
        entries = [h.entry for h in room.silent_holds(store)]
    else:
        room.sweep(store)
        entries = room.unconfirmed(store)
    planned = room.plan(room.only(entries, **filters), what, book)
    if not planned.changes and not planned.problems:
        return Said("No call in doubt fits that; nothing was changed.", planned)
    if not certain:
        return _would(planned, what, words)
    return _done(store, room.carry_out(store, planned, _progress()), what)


def _would(planned: Plan, what: Evidence, words: Sequence[str]) -> Table:
    count = len(planned.changes)
    title = f"Nothing has changed yet. {count} {_calls(count)} would be {what}: {_difference(planned.difference_nano)}."
    rows = [
        (c.before.id, c.before.model, c.before.cell, _usd(c.before.cost_nano), _usd(c.after.cost_nano)) for c in planned.changes[:_SHOWN]
    ]
    more = f" {count - _SHOWN} more are not shown." if count > _SHOWN else ""
    line = " ".join(f'"{w}"' if " " in w else w for w in words)
    note = f"{more} {_problems(planned)} To do it: %wflo reconcile {line} --yes. It cannot be undone.".strip()
    return Table(("call", "model", "cell", "counted", "would be"), rows, items=[planned], title=title, note=note)


def _done(store: Store, done: Plan, what: Evidence) -> Said:
    count = len(done.changes)
    words = f"{count} {_calls(count)}: {what}. {_difference(done.difference_nano)}." if count else "Nothing was changed."
    left = len(room.unconfirmed(store))
    rest = f" {left} {_calls(left)} {'is' if left == 1 else 'are'} still unconfirmed." if left else " Nothing is unconfirmed any more."
    return Said(f"{words}{' ' + _problems(done) if done.problems else ''}{rest} This cannot be undone.", done)


def _understood(words: Sequence[str]) -> tuple[Evidence, dict[str, Any]]:
    flags = [w for w in words if w in ("free", "dead", "usage")]
    given = pairs([w for w in words if w not in flags], ("cost", *COUNTS, *FILTERS), "%wflo reconcile")
    filters: dict[str, Any] = {k: v for k, v in given.items() if k in FILTERS}
    counts = {k: v for k, v in given.items() if k in COUNTS}
    if counts and "usage" not in flags:
        raise ConfigurationError("%wflo reconcile: say what the counts are: usage input=123 output=45.")
    if "older" in filters:
        filters["older"] = _span(filters["older"])
    usage = counts if "usage" in flags else None
    return room.evidence(cost_usd=given.get("cost"), free="free" in flags, usage=usage, dead="dead" in flags), filters


def _span(text: str) -> timedelta:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise ConfigurationError(f"older={text} is no span of time. Write older=30min, older=2h or older=1d.")
    return timedelta(seconds=float(found[1]) * _UNITS[found[2]])


def _progress() -> Callable[[int, int], object]:
    """Tells once a second how far a long list is."""
    told_at = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= 1:
            told_at = time.monotonic()
            sys.stdout.write(f"{done:,} of {of:,} calls\n")
            sys.stdout.flush()

    return tell


def _problems(planned: Plan) -> str:
    if not planned.problems:
        return ""
    first = next(iter(planned.problems.values()))
    return f"{len(planned.problems)} cannot be changed: {first}"


def _difference(nano: int) -> str:
    if nano == 0:
        return "what counts as spent stays the same"
    return f"{money(abs(nano))} {'more' if nano > 0 else 'less'} counts as spent"


def _usd(nano: int | None) -> Any:
    return None if nano is None else usd(nano)


def _calls(count: int) -> str:
    return "call" if count == 1 else "calls"
