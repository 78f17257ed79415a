"""The transactions of a purse: money is drawn from the budgets, ended calls are booked, what is not needed goes back.

A purse (`wflo_nb.store.purse`) is a lease of one process on an embedded ledger: a part of its budgets that it may spend without
asking the file for every call (``budget_leases``, held by the purse). After each booking

    outstanding lease of a budget = holds of calls that are in no table yet + rooms that the purse keeps,

and that is not counted forward but computed anew from what the purse says it needs and what the table says it has, so that an interrupt
at any moment is mended by the next booking. Notes have numbers; the table knows the last one that is booked, and none is booked twice.

A purse whose process is no more is closed by whoever looks next: its calls are in its journal, the rest goes back to the budgets.
After a restart of the machine the journal may lack its last lines, so the rest counts as spent and unconfirmed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wflo_nb.errors import StoreError
from wflo_nb.model import BudgetState, Call, CallState, now_us
from wflo_nb.store import journal, rows
from wflo_nb.store.places import this_boot
from wflo_nb.store.records import Shortfall

if TYPE_CHECKING:
    from wflo_nb.store.sqlite import SQLite

_KILLED = "the process that made this call ended before its answer was recorded; the whole hold counts as spent"
#: Of what is left after a hold, a purse draws no more than this part ahead.
_PART = 4

_PURSES = "SELECT key, value FROM wflo_meta WHERE key >= 'purse:' AND key < 'purse;'"
_BOOKED = "SELECT value FROM wflo_meta WHERE key = ?"
_KEEP = "INSERT INTO wflo_meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_HAD = "SELECT budget_id, outstanding_nano FROM budget_leases WHERE team_id = ? AND holder = ?"
_LEASE = (
    "INSERT INTO budget_leases (team_id, budget_id, holder, outstanding_nano, lost_nano, since, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (team_id, budget_id, holder) DO UPDATE SET outstanding_nano = excluded.outstanding_nano,"
    " lost_nano = lost_nano + excluded.lost_nano"
)
_RETURNED = "DELETE FROM budget_leases WHERE team_id = ? AND holder = ? AND outstanding_nano = 0 AND lost_nano = 0"
# What was spent beyond its hold was not taken out of a spool's lease, so it widens the lease that it is counted in.
_CREDIT = (
    "UPDATE budgets SET held_nano = held_nano + ?, spent_nano = spent_nano + ?, unconfirmed_nano = unconfirmed_nano + ?,"
    " lease_nano = lease_nano + ?, updated_at = ? WHERE team_id = ? AND id = ?"
)
_ADD_COST = "UPDATE workflow_executions SET cost_nano = cost_nano + ?, updated_at = ? WHERE team_id = ? AND id = ?"
_THERE = "SELECT 1 FROM llm_calls WHERE team_id = ? AND id = ?"
_STATE = rows.CALL_COLUMNS.index("state")
_INSERT = rows.INSERT_CALL + " ON CONFLICT (team_id, id) DO NOTHING"
#: How many ended calls one statement enters: few different texts, because preparing one takes as long as entering a dozen rows.
_TOGETHER = (64, 16, 4, 1)


@dataclass(eq=False, slots=True)
class Flight:
    """A call that holds money.

    Attributes:
        id, execution: of the call.
        call: as it was when it was reserved; None when it is over, so that nothing is kept which is not needed.
        stored: whether its hold is in the tables, or about to be, and so no longer a part of the purse's lease; `entered`: whether it
            is there for certain.
        number: of its note.
        since: when the purse took it, by the monotonic clock.
    """

    id: str
    execution: str
    chain: tuple[str, ...]
    held: int
    call: Call | None
    number: int = 0
    since: float = 0.0
    stored: bool = False
    entered: bool = False


@dataclass(eq=False, slots=True)
class Ended:
    """A call that is over: its row, as `rows.call_values` makes it, and what it adds to the sums.

    Plain values and no record: thousands of them wait here, and the garbage collector looks through records again and again.

    Attributes:
        number: of its note.
    """

    flight: Flight
    row: tuple[Any, ...]
    cost: int | None
    number: int

    @property
    def unsure(self) -> bool:
        """Whether nobody knows how it ended."""
        return bool(self.row[_STATE] == "UNCONFIRMED")


@dataclass(slots=True)
class Batch:
    """What a booking is to bring about.

    Attributes:
        key: the purse's.
        ended: calls that are over.
        flights: calls under way whose holds are to be seen by everybody, each with its row.
        needed: what of the lease the purse goes on to need, by budget.
        number: of the last note among these.
    """

    key: str
    ended: Sequence[Ended] = ()
    flights: Sequence[tuple[Flight, dict[str, Any]]] = ()
    needed: Mapping[str, int] = field(default_factory=dict)
    number: int = 0


class _Sums:
    """What changes in each budget and execution."""

    def __init__(self) -> None:
        self.held: dict[str, int] = defaultdict(int)
        self.spent: dict[str, int] = defaultdict(int)
        self.doubt: dict[str, int] = defaultdict(int)
        self.beyond: dict[str, int] = defaultdict(int)
        self.costs: dict[str, int] = defaultdict(int)

    def spend(self, one: Ended, held: int) -> None:
        cost, unsure = one.cost or 0, one.unsure
        for id in one.flight.chain:
            self.spent[id] += cost
            self.beyond[id] += max(0, cost - held)
            self.doubt[id] += cost if unsure else 0
        self.costs[one.flight.execution] += cost

    def write(self, cursor: sqlite3.Cursor, team: str, at: int) -> None:
        for id in sorted({*self.held, *self.spent}):
            changes = (self.held[id], self.spent[id], self.doubt[id], self.beyond[id])
            if any(changes):
                cursor.execute(_CREDIT, (*changes, at, team, id))
        for execution, cost in self.costs.items():
            if cost:
                cursor.execute(_ADD_COST, (cost, at, team, execution))


def row_of(flight: Flight, db: SQLite) -> dict[str, Any]:
    """The row of a call under way."""
    if flight.call is None:
        raise StoreError(f"Call {flight.id} is over.")
    made = rows.call_params(flight.call, db.team, flight.chain, db)
    made.update(state="RESERVED", reserved_nano=flight.held, cost_nano=None, settled_at=None)
    return made


def key_of(purse: str) -> str:
    """Under which a purse is listed."""
    return f"purse:{purse}"


def begin(cursor: sqlite3.Cursor, purse: str, path: Path) -> None:
    """List a purse with its journal, so that others can close it."""
    cursor.execute(_KEEP, (key_of(purse), _listing(path.name, 0)))


def _listing(name: str, number: int) -> str:
    return json.dumps({"journal": name, "booked": number, "boot": this_boot()})


def draw(
    cursor: sqlite3.Cursor, db: SQLite, purse: str, flight: Flight, lo: int, hi: int, share: int, room: int, ahead: int
) -> tuple[int, int] | int | Shortfall:
    """Hold money for a call, as `Store.reserve` says, and perhaps some for the next ones.

    Args:
        cursor: of the transaction.
        db: the ledger.
        purse: its id.
        flight: the call; becomes `stored` if nothing was drawn ahead.
        lo: the least that makes sense.
        hi: the most that it can cost.
        share: how many calls want a part of what is left.
        room: what the purse has left on this chain; it counts as left.
        ahead: how much the purse would like to have left afterwards.

    Returns:
        the hold of the call and the room of the chain, or what is short; the hold alone if the call was held or over before.
    """
    chain, team = flight.chain, db.team
    marks = ",".join("?" * len(chain))
    columns = "id, scope, coalesce(lease_nano, cap_nano), spent_nano, held_nano, unconfirmed_nano, parent_id"
    found = {
        r[0]: BudgetState(*r)
        for r in cursor.execute(f"SELECT {columns} FROM budgets WHERE team_id = ? AND id IN ({marks})", (team, *chain))
    }
    if len(found) != len(chain):
        raise rows.missing_budget([b for b in chain if b not in found])
    known = cursor.execute("SELECT reserved_nano FROM llm_calls WHERE team_id = ? AND id = ?", (team, flight.id)).fetchone()
    if known is not None:
        return int(known[0])
    levels = [
        BudgetState(b.id, b.scope, b.cap_nano, b.spent_nano, b.held_nano - room, b.unconfirmed_nano, b.parent_id)
        for b in map(found.get, chain)
        if b
    ]
    amount = rows.grant(levels, lo, hi, share)
    if isinstance(amount, Shortfall):
        return amount
    left = min((b.left_nano for b in levels if b.left_nano is not None), default=None)
    extra = ahead if left is None else min(ahead, (left - amount) // _PART)
    if extra < max(1, amount) or amount < hi:  # so little is left that others should have it
        extra = 0
    flight.held, flight.stored, flight.entered = amount, not extra, not extra
    at = db.clock(now_us())
    sums = _Sums()
    for id in chain:
        sums.held[id] = amount + extra - room
    if flight.stored:
        cursor.execute(_INSERT, row_of(flight, db))
    _lend(cursor, team, purse, dict.fromkeys(chain, extra - room + (0 if flight.stored else amount)), at)
    sums.write(cursor, team, at)
    return amount, extra


def _lend(cursor: sqlite3.Cursor, team: str, purse: str, more: Mapping[str, int], at: int) -> None:
    had = dict(cursor.execute(_HAD, (team, purse)).fetchall())
    for id, amount in more.items():
        if amount:
            cursor.execute(_LEASE, (team, id, purse, had.get(id, 0) + amount, 0, at, at))


def book(cursor: sqlite3.Cursor, db: SQLite, purse: str, batch: Batch) -> bool:
    """Enter what a purse has to say, and take back what it does not need any more. Said again, it changes nothing.

    Returns:
        whether the purse still has what it says that it needs; False if somebody closed it.
    """
    team, at = db.team, db.clock(now_us())
    listed = cursor.execute(_BOOKED, (batch.key,)).fetchone()
    before = json.loads(listed[0]) if listed else None
    had = dict(cursor.execute(_HAD, (team, purse)).fetchall())
    sums = _Sums()
    _enter_ends(cursor, db, [one for one in batch.ended if before is None or one.number > before["booked"]], sums)
    for flight, row in batch.flights:
        if cursor.execute(_INSERT, row).rowcount:  # its hold is its own now, and no part of the lease
            for id in flight.chain:
                sums.held[id] += flight.held
    for id in {*had, *batch.needed}:
        was = had.get(id, 0)
        wanted = min(was, batch.needed.get(id, 0))  # what the purse does not have it cannot keep
        if wanted != was:
            sums.held[id] += wanted - was
            cursor.execute(_LEASE, (team, id, purse, wanted, 0, at, at))
    cursor.execute(_RETURNED, (team, purse))
    sums.write(cursor, team, at)
    if before is not None and batch.number > before["booked"]:
        cursor.execute(_KEEP, (batch.key, _listing(before["journal"], batch.number)))
    return before is not None and all(had.get(id, 0) >= amount for id, amount in batch.needed.items())


def end(cursor: sqlite3.Cursor, purse: str) -> None:
    """A purse that has nothing any more is listed no longer."""
    cursor.execute("DELETE FROM wflo_meta WHERE key = ?", (key_of(purse),))


@functools.cache
def _together(number: int) -> str:
    """The statement that enters so many calls, or none of them if one is there already."""
    row = f"({', '.join('?' * len(rows.CALL_COLUMNS))})"
    return f"INSERT INTO llm_calls ({', '.join(rows.CALL_COLUMNS)}) VALUES {', '.join([row] * number)}"


def _enter_ends(cursor: sqlite3.Cursor, db: SQLite, ends: Sequence[Ended], sums: _Sums) -> None:
    """Several rows by one statement where that can be: the driver lets other threads in at every statement, and each time it has to
    wait for them.
    """
    once = {one.flight.id: one for one in reversed(ends) if not one.flight.stored}  # an interrupt may have an end taken down twice
    fresh = [*reversed(once.values())]
    single = [one for one in ends if one.flight.stored]
    while fresh:
        number = next(n for n in _TOGETHER if n <= len(fresh))
        some, fresh = fresh[:number], fresh[number:]
        try:
            cursor.execute(_together(number), list(itertools.chain.from_iterable(one.row for one in some)))
        except sqlite3.IntegrityError:
            single += some
            continue
        for one in some:
            sums.spend(one, one.flight.held)
    for one in single:
        _enter(cursor, db, one, sums)


def _enter(cursor: sqlite3.Cursor, db: SQLite, one: Ended, sums: _Sums) -> None:
    row = dict(zip(rows.CALL_COLUMNS, one.row, strict=True))
    if not one.flight.stored and cursor.execute(_INSERT, row).rowcount:
        sums.spend(one, one.flight.held)
    elif (
        not db.ending(row, lambda _: one.cost)(cursor) and cursor.execute(_INSERT, row).rowcount
    ):  # somebody deleted the row: nothing is held for it
        sums.spend(one, 0)


def booked(db: SQLite) -> dict[str, int]:
    """The number of the last note that is booked, by the key of its purse."""
    return {str(key): int(json.loads(value)["booked"]) for key, value in purses(db)}


def behind(db: SQLite, mine: set[str]) -> dict[str, int]:
    """The purses of other processes that know of calls that are over and not booked: key, and the number of the last such note."""
    found = {}
    for key, value in purses(db):
        if key in mine:
            continue
        with contextlib.suppress(OSError, ValueError):
            listing = json.loads(value)
            noted = [int(n[1]) for n in journal.notes(db.path.with_name(str(listing["journal"]))) if n and n[0] == "over"]
            if noted and max(noted) > listing["booked"]:
                found[str(key)] = int(max(noted))
    return found


# -- purses of processes that are no more ------------------------------------------------------------------------------------


def left_behind(listed: Iterable[rows.Row], dead: Callable[[str], bool]) -> list[tuple[str, dict[str, Any]]]:
    """Of the purses that are `listed`, those that are nobody's any more: id and listing."""
    found = []
    for key, value in listed:
        purse = str(key).removeprefix("purse:")
        if dead(purse):
            with contextlib.suppress(ValueError):
                found.append((purse, json.loads(value)))
    return found


def purses(db: SQLite) -> list[rows.Row]:
    """All purses that are open on a file."""
    return db.look(_PURSES)


def close(db: SQLite, purse: str, listing: Mapping[str, Any], *, killed: bool = True) -> int:
    """Enter what a purse has noted down that nobody has any more, and give back, or write off, what it had left. What was under way is in
    doubt if its process was `killed`, and still under way if that has only forgotten the purse. Returns how many calls are in doubt.
    """
    path = db.path.with_name(str(listing["journal"]))
    whole = listing.get("boot") == this_boot()

    def work(cursor: sqlite3.Cursor) -> int:
        row = cursor.execute(_BOOKED, (key_of(purse),)).fetchone()
        if row is None:  # somebody was quicker
            return 0
        booked = json.loads(row[0])["booked"]
        ended, lost, readable = _read(db, path, booked)
        at = db.clock(now_us())
        rest = dict(cursor.execute(_HAD, (db.team, purse)).fetchall())
        entered = {one for one in (*ended, *lost) if cursor.execute(_THERE, (db.team, one.flight.id)).fetchone()}
        for one in entered:
            one.flight.stored = True  # its hold is a row's own: if it was under way, it is found as any other call of a dead process
        lost = [one for one in lost if one not in entered]
        for one in {*ended, *lost} - entered:
            for id in one.flight.chain:
                rest[id] = rest.get(id, 0) - (min(one.cost or 0, one.flight.held) if one in ended else one.flight.held)
        flights = [] if killed else [(one.flight, row_of(one.flight, db)) for one in lost]
        lost = lost if killed else []
        book(cursor, db, purse, Batch(key_of(purse), (*ended, *lost), flights))
        if not (whole and readable) and not db.spool:  # a spool's lease runs out on its server
            _write_off(cursor, db.team, purse, rest, at)
        end(cursor, purse)
        return len(lost)

    swept = db.book(work)
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".new").unlink(missing_ok=True)
    return swept


def _write_off(cursor: sqlite3.Cursor, team: str, purse: str, rest: Mapping[str, int], at: int) -> None:
    for id, amount in rest.items():
        if amount > 0:
            cursor.execute(_CREDIT, (0, amount, amount, 0, at, team, id))
            cursor.execute(_LEASE, (team, id, purse, 0, amount, at, at))


def _read(db: SQLite, path: Path, booked: int) -> tuple[list[Ended], list[Ended], bool]:
    """The calls in a journal that are not booked: over, and still under way; and whether every line could be read."""
    flights: dict[str, Flight] = {}
    ended: dict[str, Ended] = {}
    readable = True
    try:
        lines = list(journal.notes(path))
    except OSError:
        return [], [], False
    for line in lines:
        try:
            if line is None:  # its process was killed while it wrote this, so nothing followed from it
                break
            if line[0] == "held":
                flight = _flight(line)
                flights[flight.id] = flight
            else:
                one = _ended(line, flights)
                ended.setdefault(one.flight.id, one)
        except (TypeError, ValueError, KeyError, IndexError):
            readable = False
    lost = [unconfirmed(flight, db, _KILLED, 2**62) for id, flight in flights.items() if id not in ended]
    return [one for one in ended.values() if one.number > booked], lost, readable


def held_note(flight: Flight) -> list[Any]:
    """What a journal says of a hold: as little as will do, since it may have to fit on a disk that is nearly full."""
    c = flight.call
    if c is None:
        raise StoreError(f"Call {flight.id} is over.")
    return [
        "held", flight.number, c.id, flight.held, flight.chain, c.execution_id, c.budget_id, c.provider, c.api, c.model, c.stream,
        c.cell, c.cell_id, c.step, c.holder, c.created_us, flight.stored,
    ]  # fmt: skip


def _flight(line: Sequence[Any]) -> Flight:
    _, number, id, held, chain, execution, budget, provider, api, model, stream, cell, cell_id, step, holder, created, stored = line
    call = Call(
        id, execution, provider, api, model, CallState.RESERVED, int(created),
        budget_id=budget, stream=stream, cell=cell, cell_id=cell_id, step=step, holder=holder,
    )  # fmt: skip
    return Flight(id, execution, tuple(chain), int(held), call, int(number), stored=bool(stored))


def ended_note(one: Ended) -> list[Any]:
    """What a journal says of a call that is over."""
    flight = one.flight
    return ["over", one.number, flight.id, flight.execution, flight.chain, flight.held, one.cost, flight.stored, one.row]


def _ended(line: Sequence[Any], flights: Mapping[str, Flight]) -> Ended:
    _, number, id, execution, chain, held, cost, stored, row = line
    if len(row) != len(rows.CALL_COLUMNS):
        raise ValueError("a note of another version")
    flight = flights.get(id) or Flight(id, execution, tuple(chain), int(held), None)
    flight.stored = flight.stored or bool(stored)
    return Ended(flight, tuple(row), cost, int(number))


def unconfirmed(flight: Flight, db: SQLite, reason: str, number: int) -> Ended:
    """A call of which nobody knows how it ended."""
    row = row_of(flight, db)
    cost = None if not flight.held else flight.held  # nothing held means that no price is known
    row.update(state=CallState.UNCONFIRMED.value, reason=reason, settled_at=db.clock(now_us()), cost_nano=cost)
    return Ended(flight, tuple(row.values()), cost, number)


#: What is needed of a row.
_BARE = frozenset(
    ["team_id", "id", "execution_id", "budget_id", "state", "stream", "reserved_nano", "cost_nano", "created_at", "settled_at", "chain"]
)


def bare(one: Ended, reason: str) -> Ended:
    """A call that is over, with little in its row but what it cost: the rest of it cannot be entered."""
    kept = {c: value if c in _BARE else None for c, value in zip(rows.CALL_COLUMNS, one.row, strict=True)}
    return Ended(one.flight, tuple({**kept, "provider": "", "api": "", "model": "", "reason": reason}.values()), one.cost, one.number)
