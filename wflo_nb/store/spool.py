"""A machine's own ledger in front of a server: a SQLite store that holds what was leased, and what is not sent in yet.

The same tables and the same statements as any embedded store; only that a budget lends out at most ``lease_nano`` of its cap
here. All kernels of a user on one machine share one spool per server and team, so a lease serves them all. A spool lives as long
as the machine runs: after a restart a new one is begun, because a power cut may have taken the last holds with it, and the old
one is only emptied.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from wflo_nb.model import BudgetState, now
from wflo_nb.store import doors, rows
from wflo_nb.store.database import Cursor
from wflo_nb.store.holder import this_holder
from wflo_nb.store.outbox import Outbox
from wflo_nb.store.sqlite import SQLite
from wflo_nb.store.store import Store

T = TypeVar("T")

_WAITING = (
    "SELECT coalesce(sum(min(c.cost_nano, c.reserved_nano)), 0) FROM llm_calls c JOIN json_each(c.chain) b ON b.value = :id"
    " WHERE c.team_id = :team_id AND c.state <> 'RESERVED' AND c.cost_nano IS NOT NULL"
)
#: Budgets of executions that are over and sent in, when nothing is held or leased in them any more.
_OVER = (
    "SELECT id FROM budgets WHERE team_id = :team_id AND id LIKE 'exec-%' AND held_nano = 0"
    " AND coalesce(lease_nano, spent_nano) = spent_nano AND updated_at < :before AND NOT EXISTS (SELECT 1 FROM spool_ops)"
    " AND NOT EXISTS (SELECT 1 FROM workflow_executions e WHERE e.team_id = :team_id AND e.id = budgets.id)"
)
_ROOMS = "SELECT id, lease_nano - spent_nano - held_nano FROM budgets WHERE team_id = :team_id AND lease_nano IS NOT NULL"
_IN_USE = "SELECT lease_nano - spent_nano FROM budgets WHERE team_id = :team_id AND lease_nano IS NOT NULL"
#: A budget with a cap lends out here what was leased and no more: at first what is in use.
_MARK = (
    "UPDATE budgets SET lease_nano = spent_nano + held_nano"
    " WHERE team_id = :team_id AND id = :id AND cap_nano IS NOT NULL AND lease_nano IS NULL"
)
#: What is owed to the server is an entry among the operations, one for each budget.
_OWED = "SELECT amounts FROM spool_ops WHERE team_id = ? AND kind = 'owed'"
_PENDING = "SELECT op_id, kind, amounts, holder FROM spool_ops WHERE team_id = :team_id AND kind <> 'owed'"
_RAISE = "UPDATE budgets SET lease_nano = coalesce(lease_nano, 0) + :amount WHERE team_id = :team_id AND id = :id"


def name_of(url: str, team: str) -> str:
    """A name for the server and team, the same whatever password the address holds."""
    parts = urlsplit(url)
    options = sorted((k, v) for k, v in parse_qsl(parts.query) if "pass" not in k)
    text = json.dumps([parts.username, parts.hostname, parts.port, parts.path, options, team])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Spool:
    """One spool file. Thread-safe, and shared by all processes of a machine.

    Attributes:
        store: its tables, as those of any store.
        outbox: those of their rows that are to be sent in.
        id: the name that its leases carry on the server.
    """

    def __init__(self, path: Path, team: str, *, used: bool = True) -> None:
        self.path = path
        self._team = team
        self._db = SQLite(path, team, spool=True, purse=used)
        with self._db.faults:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._leave = weakref.finalize(self, doors.in_use(path) if used else int)
        self._leave.atexit = False
        self._db.prepare()
        self.store = Store(self._db)
        self.outbox = Outbox(self._db, team)
        self.id = self._named()

    def _named(self) -> str:
        machine = this_holder().partition("|")[0]

        def work(cursor: Cursor) -> str:
            fresh = f"{machine}|spool|{secrets.token_hex(6)}"
            cursor.execute("INSERT INTO wflo_meta (key, value) VALUES ('spool', :id) ON CONFLICT (key) DO NOTHING", {"id": fresh})
            return str(cursor.execute("SELECT value FROM wflo_meta WHERE key = 'spool'", {}).fetchone()[0])

        return self._db.transact(work)

    def _note_down(self, work: Callable[[Cursor], T]) -> T:
        """Run `work` as a transaction that need not wait for the disk: after a power cut a spool lends nothing out any more, and
        whatever is sent in again changes nothing. What must not be lost, how calls ended, is written by `store`.
        """
        return self._db.transact(work, durable=False)

    def door(self) -> AbstractContextManager[None]:
        """One at a time, over all processes; see `wflo_nb.store.doors`."""
        return doors.through(self.path)

    def close(self) -> None:
        """Close the file and let others have it."""
        self.store.close()
        self._leave()

    # -- leases ----------------------------------------------------------------------------------------------------------

    def rooms(self, chain: Sequence[str] | None = None) -> dict[str, int]:
        """What is left here of each leased budget (of a chain, in its order), in nano-USD."""
        names = {f"b{i}": b for i, b in enumerate(chain or ())}
        only = "" if chain is None else f" AND id IN ({', '.join(':' + n for n in names)})"
        found = {str(r[0]): int(r[1]) for r in self._db.select(_ROOMS + only, {"team_id": self._team, **names})}
        return found if chain is None else {b: found[b] for b in chain if b in found}

    def caps(self, chain: Sequence[str]) -> dict[str, int | None]:
        """The caps of the budgets of a chain, as they are known here."""
        found = self._db.look(
            f"SELECT id, cap_nano FROM budgets WHERE team_id = ? AND id IN ({','.join('?' * len(chain))})", (self._team, *chain)
        )
        return {str(r[0]): r[1] for r in found}

    def own(self) -> dict[str, int]:
        """What to add to the server's held money of each budget to see it with the eyes of this machine: what is leased and in no
        use does not count, and what calls hold of budgets without a cap is known here alone.
        """
        owed = self.owed()
        found = self._db.select(
            "SELECT id, CASE WHEN lease_nano IS NULL THEN held_nano ELSE spent_nano + held_nano - lease_nano END FROM budgets"
            " WHERE team_id = :team_id",
            {"team_id": self._team},
        )
        return {str(r[0]): int(r[1]) - owed.get(r[0], 0) for r in found}

    def uncapped(self) -> list[str]:
        """The budgets that have no cap, as far as is known here."""
        found = self._db.select("SELECT id FROM budgets WHERE team_id = :team_id AND lease_nano IS NULL", {"team_id": self._team})
        return [str(r[0]) for r in found]

    def leased(self) -> bool:
        """Whether anything is leased that has not been spent."""
        return bool(self.owed() or self._db.select(f"{_ROOMS} AND lease_nano > spent_nano LIMIT 1", {"team_id": self._team}))

    def valid_until(self) -> float:
        """When the leases run out, by the machine's monotonic clock."""
        found = self._db.select("SELECT value FROM wflo_meta WHERE key = 'valid_until'", {})
        return float(found[0][0]) if found else 0.0

    def prolong(self, until: float) -> None:
        """Note until when the leases last."""
        self._note_down(lambda cursor: _prolong(cursor, until))

    def open(self, b: BudgetState) -> BudgetState:
        """Make sure that a budget is here; a new one with nothing leased, if it has a cap."""
        return self._note_down(self.opening(b))

    def opening(self, b: BudgetState) -> Callable[[Cursor], BudgetState]:
        """The work of `open` inside a transaction."""
        key = self._key(b.id)
        fresh = replace(b, spent_nano=0, held_nano=0, unconfirmed_nano=0)
        params = {**key, "updated_at": self._db.time(now()), **rows.budget_params(fresh)}

        def work(cursor: Cursor) -> BudgetState:
            cursor.execute(rows.OPEN_BUDGET, params)
            cursor.execute(
                "UPDATE budgets SET lease_nano = 0 WHERE team_id = :team_id AND id = :id AND cap_nano IS NOT NULL AND lease_nano IS NULL",
                key,
            )
            return rows.budget_from(cursor.execute(rows.SELECT_BUDGET, key).fetchone())

        return work

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of the budgets that are not here."""
        return [id for id in ids if not self._db.select("SELECT 1 FROM budgets WHERE team_id = :team_id AND id = :id", self._key(id))]

    def _key(self, id: str) -> dict[str, str]:
        return {"team_id": self._team, "id": id}

    def budgets(self, known: set[str]) -> list[BudgetState]:
        """The budgets that are here and not among those `known`, as they are opened: with nothing spent."""
        found = self._db.select("SELECT id FROM budgets WHERE team_id = :team_id ORDER BY rowid", {"team_id": self._team})
        fresh = [self._db.select(rows.SELECT_BUDGET, self._key(id)) for (id,) in found if id not in known]
        opened = [rows.budget_from(one[0]) for one in fresh if one]
        return [BudgetState(s.id, s.scope, s.cap_nano, parent_id=s.parent_id, name=s.name, period=s.period, zone=s.zone) for s in opened]

    def intend(self, op_id: str, kind: str) -> None:
        """Note that the server is about to be asked, so that an answer that is lost can be asked for."""
        self._note_down(lambda cursor: self._note(cursor, op_id, kind, None))

    def _note(self, cursor: Cursor, op_id: str, kind: str, amounts: Mapping[str, int] | None) -> None:
        cursor.execute(
            "INSERT INTO spool_ops (team_id, op_id, holder, kind, amounts, at) VALUES (:team_id, :op_id, :holder, :kind, :amounts, :at)",
            {
                "team_id": self._team,
                "op_id": op_id,
                "holder": this_holder(),
                "kind": kind,
                "amounts": None if amounts is None else json.dumps(dict(amounts)),
                "at": self._db.time(now()),
            },
        )

    def done(self, op_id: str, lent: Mapping[str, int] | None = None, *, until: float | None = None) -> None:
        """The server has answered, perhaps with money that is lent `until` then. Does nothing the second time."""

        def work(cursor: Cursor) -> None:
            cursor.execute("DELETE FROM spool_ops WHERE team_id = :team_id AND op_id = :op_id", {"team_id": self._team, "op_id": op_id})
            lost = {}
            for budget, amount in (lent or {}).items() if cursor.rowcount else ():
                cursor.execute(_RAISE, {**self._key(budget), "amount": amount})
                if amount and not cursor.rowcount:
                    lost[budget] = amount
            if lost:  # forgotten here meanwhile
                self._note(cursor, f"{op_id}-back", "give", lost)
            if until is not None:
                _prolong(cursor, until)

        self._note_down(work)

    def pending(self) -> list[tuple[str, str, dict[str, int], str]]:
        """Operations without an answer: id, kind, amounts, the process that asked."""
        found = self._db.select(_PENDING, {"team_id": self._team})
        return [(r[0], r[1], json.loads(r[2]) if r[2] else {}, r[3]) for r in found]

    def take_idle(self, op_id: str, most: Mapping[str, int] | None = None) -> dict[str, int]:
        """Take out of the leases what is owed and held no more, and what no call holds (of some budgets, and at most so much of each),
        to be given back; noted as an operation in the same step.
        """

        def work(cursor: Cursor) -> dict[str, int]:
            owed, back = self._owed(cursor), {}
            for budget, room in cursor.execute(f"{_ROOMS} ORDER BY rowid", {"team_id": self._team}).fetchall():
                due = owed.get(budget, 0)
                freed = max(0, due + min(0, room))
                idle = max(0, room if most is None else min(room, most.get(budget, 0)))
                if freed:
                    self._note_owed(cursor, budget, due - freed)
                if idle:
                    cursor.execute(_RAISE, {**self._key(budget), "amount": -idle})
                if freed or idle:
                    back[str(budget)] = int(freed + idle)
            if back:
                self._note(cursor, op_id, "give", back)
            return back

        return self._note_down(work)

    def owed(self) -> dict[str, int]:
        """What goes back to the server as soon as no call holds it any more, by budget, in nano-USD; no call is admitted with it."""
        return _amounts(self._db.look(_OWED, (self._team,)))

    def _owed(self, cursor: Cursor) -> dict[str, int]:
        return _amounts(cursor.execute(_OWED, (self._team,)).fetchall())

    def owe(self, budget: str, excess: int) -> None:
        """Of what is in use here of a budget, owe the server as much as it has spent and held beyond its cap."""

        def work(cursor: Cursor) -> None:
            due = self._owed(cursor).get(budget, 0)
            found = cursor.execute(f"{_IN_USE} AND id = :id", self._key(budget)).fetchone()
            in_use = 0 if found is None else int(found[0]) + due
            amount = max(0, min(excess, in_use))
            if amount != due:
                cursor.execute(_RAISE, {**self._key(budget), "amount": due - amount})
                self._note_owed(cursor, budget, amount)

        self._note_down(work)

    def _note_owed(self, cursor: Cursor, budget: str, amount: int) -> None:
        op = f"owed-{budget}"
        cursor.execute("DELETE FROM spool_ops WHERE team_id = :team_id AND op_id = :op_id", {"team_id": self._team, "op_id": op})
        if amount:
            self._note(cursor, op, "owed", {budget: amount})

    def set_cap(self, op_id: str, budget: str, cap: int | None) -> dict[str, int]:
        """Note a new cap. A budget that had none gets a lease that is just what is in use here; returns what of it the server does
        not know yet: what calls hold, and what those held that are over and wait to be sent in.
        """
        key = self._key(budget)

        def work(cursor: Cursor) -> dict[str, int]:
            row = cursor.execute("SELECT lease_nano, held_nano FROM budgets WHERE team_id = :team_id AND id = :id", key).fetchone()
            cursor.execute("UPDATE budgets SET cap_nano = :cap WHERE team_id = :team_id AND id = :id", {**key, "cap": cap})
            if row is None or row[0] is not None or cap is None:
                return {}
            cursor.execute(_MARK, key)
            waiting = cursor.execute(_WAITING, key).fetchone()[0]
            held = {budget: int(row[1]) + waiting} if row[1] or waiting else {}
            if held:
                self._note(cursor, op_id, "cover", held)
            return held

        return self._note_down(work)

    def catch_up(self) -> None:
        """Wait a moment for what other processes of this machine have not entered yet."""
        self._db.catch_up()

    def has(self, call: str) -> bool:
        """Whether a call is here."""
        return bool(self._db.select("SELECT 1 FROM llm_calls WHERE team_id = :team_id AND id = :id", self._key(call)))

    def overdrawn_by(self, call: str) -> bool:
        """Whether a call cost more than was held for it, as far as is known: it may have been sent in meanwhile."""
        found = self._db.select("SELECT cost_nano > reserved_nano FROM llm_calls WHERE team_id = :team_id AND id = :id", self._key(call))
        return bool(found[0][0]) if found else True

    def join(self, at: datetime) -> None:
        """Note that a process works for an execution of another one."""

        def work(cursor: Cursor) -> None:
            cursor.execute(
                "INSERT INTO wflo_meta (key, value) VALUES ('joined', :at) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                {"at": at.isoformat()},
            )

        self._note_down(work)

    def joined_at(self) -> datetime:
        """When a process last did so."""
        found = self._db.select("SELECT value FROM wflo_meta WHERE key = 'joined'", {})
        return datetime.fromisoformat(found[0][0]) if found else datetime.fromtimestamp(0, UTC)

    def forget_budgets(self, *, unused_since: datetime) -> set[str]:
        """Forget the budgets of executions that are over, which the server has; returns their ids. Whoever needs one again, a thread
        that was left behind, brings it back from the server.
        """
        params = {"team_id": self._team, "before": self._db.time(unused_since)}

        def work(cursor: Cursor) -> set[str]:
            over = {str(r[0]) for r in cursor.execute(_OVER, params).fetchall()}
            for id in over:
                cursor.execute("DELETE FROM budgets WHERE team_id = :team_id AND id = :id", self._key(id))
            return over

        return self._note_down(work)

    @property
    def empty(self) -> bool:
        """Whether there is nothing left to send in or to wait for."""
        found = self._db.select(
            "SELECT (SELECT count(*) FROM llm_calls) + (SELECT count(*) FROM workflow_executions) + (SELECT count(*) FROM spool_ops"
            " WHERE kind <> 'owed')",
            {},
        )
        return int(found[0][0]) == 0

    def remove(self) -> None:
        """Delete the file and what lies beside it."""
        self._db.close()
        for file in self.path.parent.glob(f"{self.path.name}*"):
            with contextlib.suppress(OSError):
                file.unlink()


def _amounts(found: Sequence[rows.Row]) -> dict[str, int]:
    return {budget: amount for (text,) in found for budget, amount in json.loads(text).items()}


def _prolong(cursor: Cursor, until: float) -> None:
    cursor.execute(
        "INSERT INTO wflo_meta (key, value) VALUES ('valid_until', :until) ON CONFLICT (key) DO UPDATE SET value ="
        " CAST(max(CAST(value AS REAL), CAST(excluded.value AS REAL)) AS TEXT)",
        {"until": repr(until)},
    )
