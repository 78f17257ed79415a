"""One cap over money, kept by a store and nested in another one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from decimal import Decimal

from wflo_nb.errors import StoreError
from wflo_nb.model import BudgetState, usd
from wflo_nb.store import Store


class Room:
    """What a budget has left as far as this process knows: what the ledger said last, less what was taken here since.

    An estimate to choose by, never to spend by: other processes take from the same budget, and two threads that count at once may
    lose a step.

    Attributes:
        nano: nano-USD; None without a cap. Whoever takes money here takes it from this, too.
    """

    def __init__(self, nano: int | None) -> None:
        self.nano = nano

    def told(self, state: BudgetState) -> None:
        """The ledger said how it is."""
        self.nano = state.left_nano


def key_of(row: str) -> str:
    """The `Budget.key` of a budget, from the id of one of its rows."""
    return row.partition("@")[0]


class Budget:
    """A cap in USD over every call that is charged to it or to a budget inside it.

    The truth is the row in the store; this object knows which row, and mirrors the cap so that a call can tell without asking
    whether it is limited at all.

    Attributes:
        id: the row's id.
        scope: what the user calls it: ``"cell"``, ``"execution"``, ``"notebook"``, ``'team "research"'``.
        parent: the budget around it, None at the root.
        cap_nano: the cap in nano-USD as known here; None only counts.
        room: what is left of it, as known here.
        beside: shared budgets (see `wflo_nb.budget.shared`) that everything in this one is charged to as well.
        chain: the budget itself and all around it: shared ones first, then from the outermost to this one. The ledger locks
            rows in this order, so it is the same for everybody.
    """

    shared = False

    def __init__(
        self,
        store: Store,
        id: str,
        scope: str,
        cap_nano: int | None = None,
        parent: Budget | None = None,
        beside: tuple[Budget, ...] = (),
    ) -> None:
        self.store = store
        self.id = id
        self.scope = scope
        self.parent = parent
        self.beside = beside
        self.cap_nano = cap_nano
        self._lock: AbstractContextManager[object] = threading.RLock()
        self._opened = False
        self.room = Room(cap_nano)
        around = parent.chain if parent else ()
        leaders = {b.key: b for b in (*around, *beside) if b.shared}
        nested = [b for b in around if not b.shared]
        self.chain: tuple[Budget, ...] = (*(leaders[key] for key in sorted(leaders)), *nested, self)

    def renew_locks(self) -> None:
        """In a forked child: a thread that held the lock does not exist there."""
        self._lock = threading.RLock()

    @property
    def key(self) -> str:
        """The id that stays the same: that of a shared budget's row changes with its period."""
        return self.id

    @property
    def cap_usd(self) -> Decimal | None:
        """The cap in USD; None only counts."""
        return None if self.cap_nano is None else usd(self.cap_nano)

    @property
    def spent_usd(self) -> Decimal:
        """Settled and unconfirmed money by the ledger at this moment, in USD."""
        return usd(self.state().spent_nano)

    @property
    def left_usd(self) -> Decimal | None:
        """What a new call may ask for by the ledger at this moment, in USD; None without a cap."""
        left = self.state().left_nano
        return None if left is None else usd(left)

    @property
    def advice(self) -> str | None:
        """What a user can do when this budget refuses a call, where there is more to say than usual."""
        return None

    def open(self) -> None:
        """Make sure that the row exists, and those around it."""
        self.open_by(self.store.open_budget)

    def open_by(self, make: Callable[[BudgetState], BudgetState]) -> bool:
        """`open`, where `make` makes the row, perhaps together with something else. False if it was there, as far as is known here."""
        if self._opened:
            return False
        for other in (*self.beside, *((self.parent,) if self.parent else ())):
            other.open()
        with self._lock:
            fresh = not self._opened
            if fresh:
                parent = self.parent.id if self.parent else self.beside[0].id if self.beside else None
                state = make(BudgetState(self.id, self.scope, self.cap_nano, parent_id=parent))
                self.cap_nano = state.cap_nano
                self.room.told(state)
                self._opened = True
        return fresh

    @property
    def turned(self) -> bool:
        """Whether the row that is current is the one of this moment, so that `turn` has nothing to do."""
        return True

    def turn(self) -> None:
        """Make the row of this moment the current one (a shared budget may have one for each month)."""

    def rows(self) -> list[str]:
        """The ids of the rows that a call made now is charged to, in the order of `chain`.

        Raises:
            StoreError: a new period has begun and its row cannot be made.
        """
        for budget in self.chain:
            budget.turn()
        return [budget.id for budget in self.chain]

    def eased(self, row: str, cap_nano: int | None) -> bool:  # noqa: ARG002 - a shared budget has a row for each period
        """Whether it may give money again since its `row` refused with that cap: it was raised or lifted, perhaps by another process."""
        if not self.shared:
            try:
                with self._lock:
                    self.cap_nano = self.store.budget(self.id).cap_nano
            except StoreError:  # then nothing is sent anyway
                return False
        return self.cap_nano is None or (cap_nano is not None and self.cap_nano > cap_nano)

    def set_cap(self, nano: int | None) -> BudgetState:
        """Raise, lower or lift the cap. A cap below what is spent refuses the next call; it takes nothing back."""
        self.open()
        with self._lock:
            state = self.store.set_cap(self.id, nano)
            self.cap_nano = state.cap_nano
            self.room.told(state)
        return state

    def state(self) -> BudgetState:
        """What the ledger has now: cap, spent, held, unconfirmed."""
        self.open()
        return self.store.budget(self.id)
