"""The store: what every room asks for, in terms of the model. The database below is SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from wflo_nb.errors import ExecutionNotFoundError
from wflo_nb.model import MAX_NANO, BudgetState, Call, CallState, Execution, ExecutionStatus, now, now_us
from wflo_nb.store import looking, rows
from wflo_nb.store.database import Cursor
from wflo_nb.store.looking import Entry, Lease, Ran
from wflo_nb.store.records import Columns, Elsewhere, Shortfall
from wflo_nb.store.snapshots import Snapshots

_KILLED = "the process that made this call ended before its answer was recorded; the whole hold counts as spent"
_KILLED_EXECUTION = {"type": "ProcessEnded", "message": "The process ended (killed, crashed or restarted) before this execution did."}


class Store(Snapshots):
    """A ledger of executions, calls and budgets, and a shelf of snapshots, in one place.

    * Thread-safe and synchronous. After a fork both processes may go on using it.
    * Every write carries the id of what it writes and may be repeated: the second time changes nothing.
    * What a method has written survives this process, however it is killed, and is on the disk when the method returns. The exceptions
      are on SQLite: the end of a call (`finish`), and the beginning and the end of an execution with its own budget, are on the disk a
      second later at most. A power cut in between counts what was set aside of shared budgets as spent.
    * Money is integer nano-USD. At every instant ``spent + held <= cap`` holds for every budget, unless a price bound was wrong:
      recording what was spent never asks the cap.
    * Errors are `StoreError` and its kin; a fault of the database is `StoreUnavailableError`.

    Attributes:
        location: where it is, as shown to users; never a password.
        team: the ``team_id`` of everything this store reads and writes.
        local: True for a file on this machine, False for a server that may be slow to answer.
    """

    # -- executions ------------------------------------------------------------------------------------------------

    def begin_execution(self, e: Execution, *, holder: str, budget: BudgetState | None = None) -> BudgetState | None:
        """Enter an execution; `holder` is the process that runs it (see `wflo_nb.store.holder`). Its own `budget`, if it has one, is
        opened with it, and returned as `open_budget` does.
        """
        return self.begin_with(e, holder, None if budget is None else self._opening(budget))

    def begin_with(self, e: Execution, holder: str, opening: Callable[[Cursor], BudgetState] | None) -> BudgetState | None:
        """`begin_execution`, with what opens its budget."""
        params = rows.execution_params(e, self.team, holder, self._db)

        def work(cursor: Cursor) -> BudgetState | None:
            self._db.take_turns(cursor, [e.id])
            state = None if opening is None else opening(cursor)
            cursor.execute(rows.INSERT_EXECUTION, params)
            return state

        return self._db.transact(work, durable=False)

    def end_execution(
        self, id: str, status: ExecutionStatus, *, outputs: Any = None, error: dict[str, Any] | None = None, at: datetime | None = None
    ) -> None:
        """Say how an execution ended. Its cost is not touched: calls keep it.

        Raises:
            ExecutionNotFoundError: it was never entered.
        """
        params = self._key(
            id=id, status=status.value, outputs=rows.to_json(outputs), error=rows.to_json(error), updated_at=self._db.time(at or now())
        )
        if self._write(rows.END_EXECUTION, params, durable=False) == 0:
            raise self._no_execution(id)

    def execution(self, id: str) -> Execution:
        """One execution, with its cost so far.

        Raises:
            ExecutionNotFoundError: there is none with this id.
        """
        row = self._one(rows.SELECT_EXECUTION, id=id)
        if row is None:
            raise self._no_execution(id)
        return rows.execution_from(row, self._db)

    def _no_execution(self, id: str) -> ExecutionNotFoundError:
        return ExecutionNotFoundError(f"No execution {id} is in the store {self.location}. `%wflo report` lists those that are.")

    # -- budgets ---------------------------------------------------------------------------------------------------

    def open_budget(self, b: BudgetState) -> BudgetState:
        """Create a budget if there is none with this id, and return what the store holds. An existing one keeps its cap and its sums."""
        # Others count on a shared one, even if nothing is ever held in it.
        return self._db.transact(self._opening(b), durable=b.name is not None)

    def _opening(self, b: BudgetState) -> Callable[[Cursor], BudgetState]:
        params = self._key(**rows.budget_params(b), updated_at=self._db.time(now()))

        def work(cursor: Cursor) -> BudgetState:
            cursor.execute(rows.OPEN_BUDGET, params)
            return rows.budget_from(cursor.execute(rows.SELECT_BUDGET, {"team_id": self.team, "id": b.id}).fetchone())

        return work

    def set_cap(self, id: str, cap_nano: int | None) -> BudgetState:
        """Raise, lower or (None) take away a cap. A cap below what is spent stops new calls and changes no sum.

        Raises:
            StoreError: there is no such budget.
        """

        def work(cursor: Cursor) -> rows.Row | None:
            cursor.execute(rows.SET_CAP, self._key(id=id, cap_nano=cap_nano, updated_at=self._db.time(now())))
            found: rows.Row | None = cursor.execute(rows.SELECT_BUDGET, self._key(id=id)).fetchone()
            return found

        row = self._db.transact(work)
        if row is None:
            raise rows.missing_budget([id])
        return rows.budget_from(row)

    def budget(self, id: str) -> BudgetState:
        """A budget at this moment.

        Raises:
            StoreError: there is no such budget.
        """
        row = self._one(rows.SELECT_BUDGET, id=id)
        if row is None:
            raise rows.missing_budget([id])
        return rows.budget_from(row)

    # -- the ledger ------------------------------------------------------------------------------------------------

    def reserve(self, call: Call, chain: Sequence[str], *, lo_nano: int, hi_nano: int, share: int = 1) -> int | Shortfall:
        """Hold money for a call that is about to be sent, in one atomic step over a whole chain of budgets.

        What is left is the least that any budget of the chain has left. The hold is a `share`-th of it, at least `lo_nano` and at
        most `hi_nano`. The same call asked again by the same process, while it is under way, gets the same answer and is held once.

        Args:
            call: entered as RESERVED, whatever its state says.
            chain: ids of budgets, root first; empty for a call that is only tracked.
            lo_nano: the least that makes sense (the input alone, or the caller's own output cap).
            hi_nano: the most the call can cost.
            share: how many calls want a part of what is left.

        Returns:
            The nano-USD that are now held on every level, or a `Shortfall` with nothing held.

        Raises:
            StoreError: a budget of the chain was never opened.
        """
        ids = tuple(dict.fromkeys(chain))
        lo_nano, hi_nano = min(lo_nano, MAX_NANO), min(hi_nano, MAX_NANO)
        if (purse := self._db.purse) is not None:
            held: int | Shortfall | None = purse.hold(call, ids, lo_nano, hi_nano, share)
            if held is None:
                held = purse.draw(call, ids, lo_nano, hi_nano, share)
            if held is not None:
                return held
        params = rows.call_params(call, self.team, ids, self._db)
        params["state"] = CallState.RESERVED.value
        params["cost_nano"] = None
        params["settled_at"] = None
        return self._db.reserve(params, ids, lo_nano, hi_nano, share)

    def finish(self, call: Call, chain: Sequence[str] | None = None) -> None:
        """Record how a call ended.

        A RESERVED call becomes SETTLED (its cost is spent), RELEASED (nothing is) or UNCONFIRMED (the whole hold is); an UNCONFIRMED
        one may still be corrected to SETTLED or RELEASED. Anything else changes nothing. The cap is never asked. The budgets are
        those the hold was made in. A call that the store does not know is recorded as `record` does: no paid answer is lost.

        Raises:
            StoreError: the call's state is RESERVED.
        """
        if not self.correct(call):
            self.record(call, chain)

    def finish_all(self, calls: Sequence[Call]) -> None:
        """`finish` for several calls."""
        for call in calls:
            self.finish(call)

    def correct(self, call: Call) -> bool:
        """`finish`, for a call that the store knows; False, and nothing done, if it does not."""
        purse = self._db.purse
        return (purse is not None and purse.finish(call)) or self._db.finish(*self._ended(call))

    def reserve_now(self, call: Call, chain: Sequence[str], *, lo_nano: int, hi_nano: int, share: int = 1) -> int | Shortfall | None:
        """`reserve`, where it can be answered from memory, in microseconds and without the database.

        Returns:
            what `reserve` would; None, and nothing held, if only `reserve` can tell.
        """
        purse = self._db.purse
        return None if purse is None else purse.hold(call, tuple(dict.fromkeys(chain)), lo_nano, min(hi_nano, MAX_NANO), share)

    def finish_now(self, call: Call) -> bool:
        """`finish`, where memory is enough, in microseconds and without the database. Whoever asks this store later sees the call as
        over. False, and nothing done, if only `finish` can.
        """
        purse = self._db.purse
        return purse is not None and purse.finish(call, at_once=True)

    def write_out(self) -> None:
        """See to it that everything that is over is on the disk, and that what this process has set aside is free again."""
        if (purse := self._db.purse) is not None:
            purse.write_out()
            purse.sync()

    def _ended(self, call: Call) -> tuple[dict[str, Any], Callable[[int], int | None]]:
        rows.cost_of(call, 0)
        params = rows.call_params(call, self.team, None, self._db)
        if params["settled_at"] is None:
            params["settled_at"] = self._db.time(now())
        return params, lambda reserved: rows.cost_of(call, reserved)

    def record(self, call: Call, chain: Sequence[str] | None = None) -> None:
        """Enter a call that is over and never held money (refused, or seen only afterwards). What it cost is added to its execution
        and to the budgets of `chain` (by default: `call.budget_id` and its ancestors).
        """
        cost = rows.cost_of(call, call.reserved_nano)
        if chain is None:
            # Also of a call whose cost nobody knows yet: it may be told later, and then counts in them.
            chain = self._ancestors(call.budget_id) if call.budget_id and cost != 0 else ()
        params = rows.call_params(call, self.team, chain, self._db)
        params["cost_nano"] = cost
        if params["settled_at"] is None:
            params["settled_at"] = self._db.time(now())
        self._db.record(params, list(chain))

    def _ancestors(self, budget: str) -> list[str]:
        return [str(r[0]) for r in self._db.select(rows.ANCESTORS, self._key(id=budget))]

    def elsewhere(self, execution_id: str, *, since: datetime, holder: str) -> Elsewhere:
        """What processes other than `holder` did for an execution (begun at `since`) and for those inside it."""
        self._db.catch_up()
        key = self._key(id=execution_id, since=self._db.time(since), holder=holder)
        found = {str(r[0]): [int(n) for n in r[1:]] for r in self._db.select(rows.ELSEWHERE, key)}
        nothing = [0] * 6
        settled, unsure = found.get("SETTLED", nothing), found.get("UNCONFIRMED", nothing)
        flying, refused = found.get("RESERVED", nothing), found.get("REFUSED", nothing)
        reasons = self._db.select(rows.REFUSED_ELSEWHERE, key) if refused[0] else []
        told = [(self._db.document(meta), str(words)) for words, meta in reasons if meta]
        short = [(meta.get("refused") or {}, words) for meta, words in told if meta.get("error") == "BudgetExceededError"]
        return Elsewhere(
            calls=settled[0] + unsure[0],
            in_flight=flying[0],
            refused=refused[0],
            unpriced=settled[0] - settled[1] + unsure[0] - unsure[1],
            spent_nano=settled[2] + unsure[2],
            held_nano=flying[3],
            unconfirmed_nano=unsure[2],
            input_tokens=settled[4] + unsure[4],
            output_tokens=settled[5] + unsure[5],
            short_of_money=tuple((facts.get("budget"), words) for facts, words in short if "stopped" not in facts),
        )

    def sweep(self, holder_is_dead: Callable[[str], bool]) -> int:
        """Settle the affairs of processes that are no more; returns how many holds were found.

        A hold becomes UNCONFIRMED: nobody knows whether its call was answered, so it counts as spent. Running executions become FAILED.
        """
        swept = 0
        for (holder,) in self._db.select(rows.HOLDERS, self._key()):
            if not holder_is_dead(holder):
                continue
            open_calls = f"{rows.SELECT_CALL} AND state = 'RESERVED' AND holder = :holder"
            for row in self._db.select(open_calls, self._key(holder=holder)):
                call, _ = rows.call_from(row, self._db)
                self.finish(replace(call, state=CallState.UNCONFIRMED, reason=_KILLED, settled_us=now_us()))
                swept += 1
            self._write(
                rows.ABANDON_EXECUTIONS,
                self._key(holder=holder, error=rows.to_json(_KILLED_EXECUTION), updated_at=self._db.time(now())),
            )
        return swept

    # -- reading ---------------------------------------------------------------------------------------------------

    def calls(self, state: CallState, *, notebook: str | None = None, newest: int | None = None) -> list[Entry]:
        """The calls in one state as records, with the budgets they are charged to; see `wflo_nb.store.looking.calls`."""
        return looking.calls(self._db, state, notebook=notebook, newest=newest)

    def call(self, id: str) -> Entry | None:
        """One call, None if there is none with this id."""
        return looking.call(self._db, id)

    def budgets(self, ids: Sequence[str] | None = None, *, inside: str | None = None) -> list[BudgetState]:
        """These budgets, or one and all that lie in it, or all; see `wflo_nb.store.looking.budgets`."""
        return looking.budgets(self._db, ids, inside=inside)

    def runs(self, ids: Sequence[str]) -> dict[str, Ran]:
        """What these executions are called and whether they live."""
        return looking.runs(self._db, ids)

    def leases(self) -> list[Lease]:
        """The leases of all machines that hold or lost money."""
        return looking.leases(self._db)

    def read(self, table: str, *, where: Mapping[str, Any] | None = None) -> Columns:
        """A whole table as plain columns, oldest first; see `wflo_nb.store.reading.read`."""
        from wflo_nb.store import reading  # SQLAlchemy, at first use

        return reading.read(self._db, table, where)

    def aggregate(self, by: str) -> Columns:
        """Costs summed per group; see `wflo_nb.store.reading.aggregate`."""
        from wflo_nb.store import reading

        return reading.aggregate(self._db, by)
