"""Looking at the ledger as records: what is open, in doubt or refused, whose budget lies in whose, who leased what.

Statements of our own, as on the way of a call: this also runs at the moment a call is refused. Whole tables and sums for reports are
in `wflo_nb.store.reading`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from wflo_nb.model import BudgetState, Call, CallState
from wflo_nb.store import rows

if TYPE_CHECKING:
    from wflo_nb.store.database import Database

#: Ids in one statement.
_AT_ONCE = 500
_BUDGETS = rows.SELECT_BUDGET.removesuffix(" AND id = :id")


@dataclass(frozen=True, slots=True)
class Entry:
    """A call as the ledger has it.

    Attributes:
        chain: the budgets it is charged to, root first.
    """

    call: Call
    chain: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ran:
    """The little of an execution that tells whether it still lives, and what people call it.

    Attributes:
        name: the name of the cell or block.
        at: its last sign of life in the ledger: its start, a settled call, its end.
    """

    id: str
    name: str
    status: str
    cell: str | None
    holder: str | None
    started: datetime
    at: datetime


@dataclass(frozen=True, slots=True)
class Lease:
    """Money of a budget that a machine may spend without asking again.

    Attributes:
        holder: the machine's spool.
        outstanding_nano: leased, and neither spent nor given back; a part of what the budget holds.
        lost_nano: was outstanding when the lease ran out; a part of what is unconfirmed in the budget.
    """

    budget_id: str
    holder: str
    outstanding_nano: int
    lost_nano: int
    since: datetime
    expires_at: datetime


def calls(database: Database, state: CallState, *, notebook: str | None = None, newest: int | None = None) -> list[Entry]:
    """The calls in one state, oldest first; with `newest`, that many, newest first.

    Args:
        database: of an open store.
        state: one of the states of a call.
        notebook: only those of executions of this notebook (``nb-…``).
        newest: how many at most.
    """
    # The state stands in the text: a partial index is not used for a parameter.
    sql = f"{rows.SELECT_CALL} AND state = '{state.value}'"
    params: dict[str, Any] = {"team_id": database.team}
    if notebook is not None:
        sql += " AND execution_id IN (SELECT id FROM workflow_executions WHERE team_id = :team_id AND notebook_id = :notebook)"
        params["notebook"] = notebook
    if newest is None:
        sql += " ORDER BY created_at, id"
    else:
        sql += " ORDER BY created_at DESC, id DESC LIMIT :most"
        params["most"] = newest
    return [_entry(row, database) for row in database.select(sql, params)]


def call(database: Database, id: str) -> Entry | None:
    """One call, None if there is none with this id."""
    found = database.select(f"{rows.SELECT_CALL} AND id = :id", {"team_id": database.team, "id": id})
    return _entry(found[0], database) if found else None


def _entry(row: rows.Row, database: Database) -> Entry:
    made, chain = rows.call_from(row, database)
    return Entry(made, tuple(chain))


def budgets(database: Database, ids: Sequence[str] | None = None, *, inside: str | None = None) -> list[BudgetState]:
    """The budgets with these ids, or the one called `inside` with all that lie in it, or (neither given) all of the team, by id."""
    if ids is not None:
        found = [r for part in _parts(ids) for r in _by_ids(database, _BUDGETS, part)]
    elif inside is None:
        found = database.select(_BUDGETS, {"team_id": database.team})
    else:
        # The depth bound ends a circle of parents, which only a hand-edited table can hold.
        down = (
            "WITH RECURSIVE down (id, depth) AS (SELECT CAST(:id AS text), 0 UNION ALL SELECT b.id, down.depth + 1 FROM budgets b"
            " JOIN down ON b.parent_id = down.id WHERE b.team_id = :team_id AND down.depth < 32)"
        )
        found = database.select(f"{down} {_BUDGETS} AND id IN (SELECT id FROM down)", {"team_id": database.team, "id": inside})
    return sorted((rows.budget_from(row) for row in found), key=lambda b: b.id)


def runs(database: Database, ids: Sequence[str]) -> dict[str, Ran]:
    """The executions with these ids that the ledger knows."""
    columns = "id, workflow_definition_id, status, cell, holder, created_at, updated_at"
    sql = f"SELECT {columns} FROM workflow_executions WHERE team_id = :team_id"
    found = [r for part in _parts(ids) for r in _by_ids(database, sql, part)]
    return {r[0]: Ran(r[0], r[1], r[2], r[3], r[4], database.moment(r[5]), database.moment(r[6])) for r in found}


def leases(database: Database) -> list[Lease]:
    """The leases of all machines that hold or lost money, oldest first."""
    sql = (
        "SELECT budget_id, holder, outstanding_nano, lost_nano, since, expires_at FROM budget_leases"
        " WHERE team_id = :team_id AND (outstanding_nano > 0 OR lost_nano > 0) ORDER BY since, budget_id, holder"
    )
    found = database.select(sql, {"team_id": database.team})
    return [Lease(r[0], r[1], r[2], r[3], database.moment(r[4]), database.moment(r[5])) for r in found]


def _by_ids(database: Database, select: str, ids: Sequence[str]) -> list[rows.Row]:
    named = {f"i{n}": id for n, id in enumerate(ids)}
    marks = ", ".join(f":{name}" for name in named)
    return database.select(f"{select} AND id IN ({marks})", {"team_id": database.team, **named})


def _parts(ids: Sequence[str]) -> Iterator[list[str]]:
    unique = list(dict.fromkeys(ids))
    return (unique[i : i + _AT_ONCE] for i in range(0, len(unique), _AT_ONCE))
