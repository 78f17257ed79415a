"""A store on a server that is worked with through a lease: fast, in no event loop's way, and safe when the server is far or down.

Calls are admitted and finished in a spool on this machine (`wflo_nb.store.spool`), with money that the server has lent to it
(`wflo_nb.store.leasing`); a courier sends the rows in, some at a time. Whoever reads sends in first, and so sees what it wrote.

The server down: calls go on within what is leased, and are kept here; when that is used up, or has run out, the next call under
a budget is refused. Without a budget work goes on. Nothing is lost: the spool is on the disk, and the next process sends it in.
"""

from __future__ import annotations

import atexit
import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from wflo_nb.errors import StoreError, StoreUnavailableError, tell
from wflo_nb.model import BudgetState, Call, CallState, Execution, ExecutionStatus, now
from wflo_nb.store import merging, rows
from wflo_nb.store.courier import Courier
from wflo_nb.store.looking import Entry, Lease, Ran
from wflo_nb.store.places import this_boot
from wflo_nb.store.postgres import Postgres
from wflo_nb.store.records import LOCAL, Columns, Elsewhere, Shortfall
from wflo_nb.store.spool import Spool, name_of
from wflo_nb.store.store import Store

T = TypeVar("T")


class LeasedStore(Store):
    """See the module. Behaves as `Store` says, with these differences: other machines see a finished call up to a second later, and
    money that is leased to this machine and not in use as held for a few seconds; a call that is over cannot be reserved again,
    because this machine forgets what it has sent in.
    """

    def __init__(self, server: Postgres, folder: Path, url: str) -> None:
        super().__init__(server)
        name = name_of(url, server.team)
        self._spool = Spool(folder / f"{name}-{this_boot()}.db", server.team)
        self._here = self._spool.store
        self._courier = Courier(server, self._spool)
        self._mirrored: set[str] = set()
        self._begun: set[tuple[str, str | None]] = set()  # executions, each with the process that began it
        self._old = [p for p in folder.glob(f"{name}-*.db") if p != self._spool.path]
        _open.add(self)

    @staticmethod
    def has_spool(folder: Path, url: str, team: str) -> bool:
        """Whether this machine has worked with that server before, since it was started."""
        return (folder / f"{name_of(url, team)}-{this_boot()}.db").exists()

    def retire(self) -> None:
        """See `Store.retire`."""
        with contextlib.suppress(StoreError):
            self._courier.ship()
            self._courier.give_back()
        super().retire()

    def close(self) -> None:
        """Send in what is over, give back what is left, and close."""
        self._courier.close()
        self._spool.close()
        super().close()

    def flush(self) -> None:
        """Send in everything that is over.

        Raises:
            StoreUnavailableError: the server cannot be reached; nothing is lost.
        """
        if self._courier.closed:
            raise StoreUnavailableError(f"The store at {self.location} was closed. Open it again with open_store().")
        self._courier.ship()

    # -- executions and budgets ----------------------------------------------------------------------------------------------

    def begin_execution(self, e: Execution, *, holder: str, budget: BudgetState | None = None) -> BudgetState | None:
        """See `Store.begin_execution`."""
        known = None if budget is None or _is_fresh(budget) else self.open_budget(budget)
        opened = self._here.begin_with(e, holder, None if budget is None or known else self._spool.opening(budget))
        if opened is not None:
            self._mirrored.add(opened.id)
        self._begun.add((e.id, holder))
        self._joins(e.parent_id, holder)
        self._courier.touch()
        return known or opened

    def _joins(self, execution_id: str | None, holder: str | None) -> None:
        """Leave word on this machine if a process works for the execution of another one."""
        if execution_id is not None and (execution_id, holder) not in self._begun:
            self._begun.add((execution_id, holder))
            self._spool.join(now())

    def end_execution(
        self, id: str, status: ExecutionStatus, *, outputs: Any = None, error: dict[str, Any] | None = None, at: datetime | None = None
    ) -> None:
        """See `Store.end_execution`."""
        try:
            self._here.end_execution(id, status, outputs=outputs, error=error, at=at)
        except StoreUnavailableError:
            raise
        except StoreError:  # sent in and forgotten here, or begun elsewhere
            self.flush()
            super().end_execution(id, status, outputs=outputs, error=error, at=at)
        self._courier.touch()

    def execution(self, id: str) -> Execution:
        """See `Store.execution`."""
        self.flush()
        return super().execution(id)

    def open_budget(self, b: BudgetState) -> BudgetState:
        """See `Store.open_budget`. A fresh one of an execution of this machine is made known to the server with its first call."""
        if _is_fresh(b):
            state = self._spool.open(b)
        else:
            try:
                with self._courier.reach():
                    state = super().open_budget(b)
                if self._spool.open(state).cap_nano != state.cap_nano:  # another machine has changed it
                    self._courier.set_cap(b.id, state.cap_nano)
            except StoreUnavailableError as fault:
                if self._courier.closed or not fault.unreachable or self._spool.missing([b.id]):
                    raise
                state = self._here.budget(b.id)  # goes on within what is leased of it
        self._mirrored.add(b.id)
        return state

    def set_cap(self, id: str, cap_nano: int | None) -> BudgetState:
        """See `Store.set_cap`."""
        self.flush()
        with self._courier.asking:
            self._courier.sender.announce()
            state = super().set_cap(id, cap_nano)
            self._mirror([id])
            self._courier.set_cap(id, cap_nano)
        return self.budget(state.id)

    def budget(self, id: str) -> BudgetState:
        """See `Store.budget`. What this machine has leased and no call of it holds does not count as held."""
        with self._courier.asking:  # so that no lease moves between the two looks
            return self._seen(lambda: self._as_seen_here(super(LeasedStore, self).budget(id)), lambda: self._here.budget(id))

    def _seen(self, there: Callable[[], T], here: Callable[[], T]) -> T:
        """What the server has, after this machine's rows were sent in; what this machine knows, if the server cannot be reached."""
        try:
            self.flush()
            with self._courier.reach():
                self._courier.sender.announce()
                return there()
        except StoreUnavailableError as fault:
            if self._courier.closed or not fault.unreachable:
                raise
            return here()

    def _as_seen_here(self, state: BudgetState) -> BudgetState:
        return replace(state, held_nano=max(0, state.held_nano + self._spool.own().get(state.id, 0)))

    def _mirror(self, chain: Sequence[str]) -> None:
        """Make sure that the budgets are known to the spool, also those that another machine opened."""
        missing = [b for b in chain if b not in self._mirrored]
        if not missing:
            return
        if foreign := self._spool.missing(missing):
            with self._courier.reach():
                for id in foreign:
                    self._spool.open(super().budget(id))
        self._mirrored.update(missing)

    # -- the ledger ----------------------------------------------------------------------------------------------------------

    def reserve(self, call: Call, chain: Sequence[str], *, lo_nano: int, hi_nano: int, share: int = 1) -> int | Shortfall:
        """See `Store.reserve`.

        Raises:
            StoreUnavailableError: what is leased does not suffice, or has run out, and the server cannot be asked.
        """
        self._courier.touch(used=True)
        self._joins(call.execution_id, call.holder)
        try:
            return self._reserve(call, chain, lo_nano, hi_nano, share)
        except StoreUnavailableError:
            raise
        except StoreError:
            # The budget of an execution that was over, and forgotten here: a thread that was left behind is still at it.
            self._mirrored.difference_update(chain)
            return self._reserve(call, chain, lo_nano, hi_nano, share)

    def _reserve(self, call: Call, chain: Sequence[str], lo: int, hi: int, share: int) -> int | Shortfall:
        self._mirror(chain)
        self._courier.keep_valid(chain)
        held = self._from_lease(call, chain, lo, hi, share)
        if isinstance(held, int):
            return held
        try:
            return self._with_more(call, chain, lo, hi, share)
        except StoreUnavailableError:
            held = self._here.reserve(call, chain, lo_nano=lo, hi_nano=hi, share=share)
            if isinstance(held, Shortfall):
                raise
            return held

    def _with_more(self, call: Call, chain: Sequence[str], lo: int, hi: int, share: int) -> int | Shortfall:
        while True:
            with self._courier.asking:
                # Another thread may have brought enough.
                held = self._from_lease(call, chain, lo, hi, share)
                if isinstance(held, int):
                    return held
                amount = self._courier.lease(chain, lo, hi, share)
                if isinstance(amount, Shortfall):
                    held = self._here.reserve(call, chain, lo_nano=lo, hi_nano=lo)  # held already, or room was made meanwhile
                    return amount if isinstance(held, Shortfall) else held
                held = self._here.reserve(call, chain, lo_nano=amount, hi_nano=amount)
            if not isinstance(held, Shortfall):
                return held
            # Another process of this machine took it meanwhile: ask again.

    def _from_lease(self, call: Call, chain: Sequence[str], lo: int, hi: int, share: int) -> int | Shortfall | None:
        """The whole of what a call can use, if there is so much here that the others who want a share are not cut short by it."""
        if lo < hi and share > 1:
            rooms = self._spool.rooms(chain)
            if rooms and min(rooms.values()) // share < hi:
                return None
        return self._here.reserve(call, chain, lo_nano=hi, hi_nano=hi)

    def finish(self, call: Call, chain: Sequence[str] | None = None) -> None:
        """See `Store.finish`; durable on this machine on return. Correcting an UNCONFIRMED call needs the server."""
        self._finished(call, self._here.correct(call), chain)

    def finish_now(self, call: Call) -> bool:
        """See `Store.finish_now`."""
        if (call.cost_nano or 0) > call.reserved_nano or not self._here.finish_now(call):
            return False
        self._courier.touch()
        return True

    def reserve_now(self, call: Call, chain: Sequence[str], *, lo_nano: int, hi_nano: int, share: int = 1) -> int | Shortfall | None:
        """See `Store.reserve_now`."""
        joined = call.execution_id is None or (call.execution_id, call.holder) in self._begun
        if not joined or not self._courier.sure or not self._mirrored.issuperset(chain):
            return None
        self._courier.touch(used=True)
        return self._here.reserve_now(call, chain, lo_nano=lo_nano, hi_nano=hi_nano, share=share)

    def write_out(self) -> None:
        """See `Store.write_out`."""
        self._here.write_out()

    def _finished(self, call: Call, known: bool, chain: Sequence[str] | None = None) -> None:
        if known:
            if (call.cost_nano or 0) > call.reserved_nano and self._spool.overdrawn_by(call.id):
                self._courier.overdrew()
        elif not self._corrected(call):
            self.record(call, chain)
        self._courier.touch()

    def _corrected(self, call: Call) -> bool:
        try:
            self.flush()
            with self._courier.reach():
                return self.correct(call)
        except StoreUnavailableError:
            if self._courier.closed or self._spool.has(call.id):
                raise
            return False

    def record(self, call: Call, chain: Sequence[str] | None = None) -> None:
        """See `Store.record`."""
        self._joins(call.execution_id, call.holder)
        # Nothing was held for it, so nothing of a lease pays for it.
        cost = rows.cost_of(call, call.reserved_nano)
        if cost and chain is None and call.budget_id and self._spool.missing([call.budget_id]):
            with self._courier.reach():
                chain = self._ancestors(call.budget_id)
        self._mirror(chain or ())
        self._here.record(replace(call, cost_nano=cost, reserved_nano=0), chain)
        if cost:
            self._courier.overdrew()
        self._courier.touch()

    def sweep(self, holder_is_dead: Callable[[str], bool]) -> int:
        """See `Store.sweep`. Also writes off the leases of machines that fell silent, and sends in what earlier runs of this one left."""
        swept = self._here.sweep(holder_is_dead)
        self.flush()
        self._courier.renew()
        self._old = [path for path in self._old if not self._adopted(path)]
        return swept + super().sweep(holder_is_dead)

    def _adopted(self, old: Path) -> bool:
        try:
            return self._courier.adopt(old)
        except StoreUnavailableError as fault:
            if fault.unreachable:
                raise
            tell(f"What an earlier run of this machine left to be sent in cannot be read: {fault}")
            return True

    # -- looking: calls under way are on this machine, others see only that money is leased to it -----------------------------

    def calls(self, state: CallState, *, notebook: str | None = None, newest: int | None = None) -> list[Entry]:
        """See `Store.calls`."""

        def here() -> list[Entry]:
            return self._here.calls(state, notebook=notebook, newest=newest)

        def there() -> list[Entry]:
            found = super(LeasedStore, self).calls(state, notebook=notebook, newest=newest)
            return sorted(found + here(), key=lambda e: e.call.created_at, reverse=newest is not None)[:newest]

        return self._seen(there, here)

    def call(self, id: str) -> Entry | None:
        """See `Store.call`."""
        return self._here.call(id) or self._seen(lambda: super(LeasedStore, self).call(id), lambda: self._here.call(id))

    def budgets(self, ids: Sequence[str] | None = None, *, inside: str | None = None) -> list[BudgetState]:
        """See `Store.budgets`."""

        def there() -> list[BudgetState]:
            return [self._as_seen_here(b) for b in super(LeasedStore, self).budgets(ids, inside=inside)]

        with self._courier.asking:
            return self._seen(there, lambda: self._here.budgets(ids, inside=inside))

    def runs(self, ids: Sequence[str]) -> dict[str, Ran]:
        """See `Store.runs`."""
        return self._seen(lambda: {**super(LeasedStore, self).runs(ids), **self._here.runs(ids)}, lambda: self._here.runs(ids))

    def leases(self) -> list[Lease]:
        """See `Store.leases`."""
        return self._seen(lambda: super(LeasedStore, self).leases(), lambda: self._here.leases())

    def elsewhere(self, execution_id: str, *, since: datetime, holder: str) -> Elsewhere:
        """See `Store.elsewhere`. The server is asked only if a process of this machine has joined another one's execution since then,
        so that the end of every other cell waits for nobody.
        """
        if self._spool.joined_at() < since:
            return Elsewhere()
        self._spool.catch_up()
        self.flush()
        with self._courier.reach():
            found = super().elsewhere(execution_id, since=since, holder=holder)
        flying = self._here.elsewhere(execution_id, since=since, holder=holder)
        return replace(found, in_flight=found.in_flight + flying.in_flight, held_nano=found.held_nano + flying.held_nano)

    # -- reading -------------------------------------------------------------------------------------------------------------

    def read(self, table: str, *, where: Mapping[str, Any] | None = None) -> Columns:
        """See `Store.read`. Calls under way are read from this machine: others see only that money is leased to it."""
        self.flush()
        with self._courier.reach():
            self._courier.sender.announce()
            found = super().read(table, where=where)
        if table == "calls":
            return merging.joined(found, self._here.read(table, where=where))
        if table == "budgets":
            own = self._spool.own()
            found["held_nano"] = [max(0, h + own.get(id, 0)) for id, h in zip(found["id"], found["held_nano"], strict=True)]
        return found

    def aggregate(self, by: str) -> Columns:
        """See `Store.aggregate`."""
        self.flush()
        with self._courier.reach():
            found = super().aggregate(by)
        return merging.summed(found, self._here.aggregate(by))


def _is_fresh(b: BudgetState) -> bool:
    """Whether a budget is one that no other machine knows."""
    return b.id.startswith(LOCAL) and not (b.spent_nano or b.held_nano or b.unconfirmed_nano)


_open: weakref.WeakSet[LeasedStore] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for store in list(_open):
        with contextlib.suppress(StoreError):
            store._courier.close()
