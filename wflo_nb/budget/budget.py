"""One cap over money, kept by a store and nested in another one."""

from __future__ import annotations

import threading
from decimal import Decimal

from wflo_nb.model import BudgetState, usd
from wflo_nb.store import Store


class Budget:
    """A cap in USD over every call that is charged to it or to a budget inside it.

    The truth is the row in the store; this object knows which row, and mirrors the cap so that a call can tell without asking
    whether it is limited at all.

    Attributes:
        id: the row's id.
        scope: what the user calls it: ``"cell"``, ``"execution"``, ``"notebook"``.
        parent: the budget around it, None at the root.
    """

    def __init__(self, store: Store, id: str, scope: str, cap_nano: int | None = None, parent: Budget | None = None) -> None:
        self.store = store
        self.id = id
        self.scope = scope
        self.parent = parent
        self._cap_nano = cap_nano
        self._lock = threading.Lock()
        self._opened = False

    @property
    def chain(self) -> tuple[Budget, ...]:
        """The budget itself and all around it, outermost first: the order in which the ledger locks them."""
        return (*(self.parent.chain if self.parent else ()), self)

    @property
    def cap_nano(self) -> int | None:
        """The cap in nano-USD; None only counts."""
        return self._cap_nano

    @property
    def cap_usd(self) -> Decimal | None:
        """The cap in USD; None only counts."""
        return None if self._cap_nano is None else usd(self._cap_nano)

    @property
    def limited(self) -> bool:
        """Whether this budget or one around it has a cap."""
        return any(b.cap_nano is not None for b in self.chain)

    def open(self) -> None:
        """Make sure that the row exists, and those around it."""
        if self._opened:
            return
        if self.parent:
            self.parent.open()
        with self._lock:
            if not self._opened:
                parent = self.parent.id if self.parent else None
                state = self.store.open_budget(BudgetState(self.id, self.scope, self._cap_nano, parent_id=parent))
                self._cap_nano = state.cap_nano
                self._opened = True

    def set_cap(self, nano: int | None) -> BudgetState:
        """Raise, lower or lift the cap. A cap below what is spent refuses the next call; it takes nothing back."""
        self.open()
        with self._lock:
            state = self.store.set_cap(self.id, nano)
            self._cap_nano = state.cap_nano
        return state

    def state(self) -> BudgetState:
        """What the ledger has now: cap, spent, held, unconfirmed."""
        self.open()
        return self.store.budget(self.id)
