"""The transactions of a purse: money is drawn from the budgets, ended calls are booked, what is not needed goes back.

A purse (`wflo_nb.store.purse`) is a lease of one process on an embedded ledger: a part of its budgets that it may spend without
asking the file for every call (``budget_leases``, held by the purse). After each booking

    outstanding lease of a budget = holds of calls that are in no table yet + rooms that the purse keeps,

and that is not counted forward but computed anew from what the purse says it needs and what the table says it has, so that an interrupt
at any moment is mended by the next booking. Notes have numbers; the table knows the last one that is booked, and none is booked twice.
"""

from __future__ import annotations

import functools
import itertools
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wflo_nb.errors import StoreError
from wflo_nb.model import BudgetState, Call, now_us
from wflo_nb.store import rows
from wflo_nb.store.places import this_boot
from wflo_nb.store.records import Shortfall

if TYPE_CHECKING:
    from wflo_nb.store.sqlite import SQLite

#: Of what is left after a hold, a purse draws no more than this part ahead.
_PART = 4

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
_LEFT = "coalesce(b.lease_nano, b.cap_nano) - b.spent_nano - b.held_nano"
_ADD_COST = "UPDATE workflow_executions SET cost_nano = cost_nano + ?, updated_at = ? WHERE team_id = ? AND id = ?"
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
    had = outstanding(cursor, team, purse)
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
    had = outstanding(cursor, team, purse)
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


def last_booked(cursor: sqlite3.Cursor, purse: str) -> int | None:
    """The number of the last note of a purse that is booked; None if it is listed no longer."""
    row = cursor.execute(_BOOKED, (key_of(purse),)).fetchone()
    return None if row is None else int(json.loads(row[0])["booked"])


def outstanding(cursor: sqlite3.Cursor, team: str, purse: str) -> dict[str, int]:
    """What the tables say that a purse has, by budget."""
    return dict(cursor.execute(_HAD, (team, purse)).fetchall())


def left(db: SQLite, ids: Iterable[str]) -> dict[str, int | None]:
    """What is left of budgets for those who hold nothing yet; None where there is no cap."""
    wanted = sorted(ids)
    marks = ",".join("?" * len(wanted))
    found = db.look(f"SELECT id, {_LEFT} FROM budgets b WHERE team_id = ? AND id IN ({marks})", (db.team, *wanted))
    return {str(id): nano for id, nano in found}


def left_and_lent(db: SQLite, purse: str, budget: str) -> tuple[int | None, int]:
    """What is left of a budget, None without a cap, and what lies in purses other than this one."""
    ((left, theirs),) = db.look(
        f"SELECT {_LEFT}, (SELECT coalesce(sum(outstanding_nano), 0) FROM budget_leases l WHERE l.team_id = b.team_id AND"
        " l.budget_id = b.id AND l.holder <> ?) FROM budgets b WHERE team_id = ? AND id = ?",
        (purse, db.team, budget),
    )
    return left, theirs


def write_off(cursor: sqlite3.Cursor, team: str, purse: str, rest: Mapping[str, int], at: int) -> None:
    """Count as spent, and in doubt, what is left of a purse."""
    for id, amount in rest.items():
        if amount > 0:
            cursor.execute(_CREDIT, (0, amount, amount, 0, at, team, id))
            cursor.execute(_LEASE, (team, id, purse, 0, amount, at, at))


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


def bare(one: Ended, reason: str) -> Ended:
    """A call that is over, with little in its row but what it cost: the rest of it cannot be entered."""
    row = rows.bare(dict(zip(rows.CALL_COLUMNS, one.row, strict=True)), reason)
    return Ended(one.flight, tuple(row.values()), one.cost, one.number)
