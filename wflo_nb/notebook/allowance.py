"""What the cells of one session may spend: the notebook's own budget, and the shared ones that it is charged to beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from wflo_nb.budget.budget import Budget
from wflo_nb.budget.shared import Sharing
from wflo_nb.errors import StoreError
from wflo_nb.model import BudgetState
from wflo_nb.notebook.later import current_store
from wflo_nb.notebook.view import money
from wflo_nb.store import Store


class Allowance:
    """The budgets around a session's cells.

    Attributes:
        budget: the notebook's own, with the shared ones that ``notebook=…`` named beside it. Another object after each change of those
            and of the store: threads that were left behind go on with the one before.
    """

    def __init__(self, session_id: str, store: Callable[[], Store]) -> None:
        self._session_id = session_id
        self._store = store
        self._sharing: Sharing | None = None
        self._shared: dict[str, Budget] = {}
        self.budget = self._own()

    def _own(self, beside: tuple[Budget, ...] = ()) -> Budget:
        return Budget(current_store(), f"nb:{self._session_id}", "notebook", beside=beside)

    def beside(self, store: Store | None, sharing: Sharing | None, cap_nano: int | None = None) -> tuple[tuple[Budget, ...], list[str]]:
        """The shared budgets that are meant, in `store` or the present one, and what the user should be told of them.

        Raises:
            ConfigurationError: one does not exist and there is no cap to create it with, or it has another period.
        """
        budgets, said = sharing.budgets(store or self._store(), cap_nano) if sharing is not None else ((), [])
        self._shared.update({budget.key: budget for budget in budgets})
        return budgets, said

    def shared(self) -> list[Budget]:
        """The shared budgets that cells of this session are or were charged to."""
        return list(self._shared.values())

    def states(self) -> list[BudgetState]:
        """The budgets with a cap that this notebook is charged to, as the ledger has them now."""
        all_ = {budget.key: budget for budget in (*self.budget.chain, *self.shared())}
        return [budget.state() for budget in all_.values() if budget.cap_nano is not None]

    def tighter(self, shared: tuple[Budget, ...], own_nano: int | None) -> list[str]:
        """What a cell must say when a shared budget or the notebook's ends before its own."""
        said = []
        for budget in (*shared, *self.budget.chain):
            state = budget.state() if budget.cap_nano is not None else None
            if state is None or state.left_nano is None or (own_nano is not None and own_nano <= state.left_nano):
                continue
            whose = "The notebook's budget" if budget is self.budget else f"The budget of {state.scope}"
            said.append(f"{whose} of {money(state.cap_nano)} has {money(state.left_nano)} left, and this cell cannot spend more.")
        return said

    def set_cap(self, nano: int | None, sharing: Sharing | None = None) -> list[str]:
        """Set or lift the cap over the whole notebook.

        With `sharing`, cells that start from now on are charged to those shared budgets too (``notebook=10 team=research``); one that
        does not exist is created with the same cap. Returns what the user should be told.

        Raises:
            ConfigurationError: see `beside`.
        """
        said: list[str] = []
        if sharing is not None:
            beside, said = self.beside(None, sharing, nano)
            self._sharing = sharing
            self.budget.set_cap(nano)  # threads that were left behind go on with the old one
            self.budget = self._own(beside)
        self.budget.set_cap(nano)
        return said

    def move(self, fresh: Store, connect: Callable[[Store], Store]) -> tuple[str, str]:
        """Go on in another store, which `connect` makes the present one. What was left of the cap goes along, so that switching stores
        never buys more. Returns where that store is, and what the user should be told.
        """
        beside, _ = self.beside(fresh, self._sharing)
        left, said = self._taken_along()
        location = connect(fresh).location
        self.budget = self._own(beside)
        self.budget.open()
        if left is not None:
            there = self.budget.state()  # the notebook may have been here before
            self.budget.set_cap(there.spent_nano + there.held_nano + left)
        self._shared = {budget.key: budget for budget in beside}
        return location, said

    def _taken_along(self) -> tuple[int | None, str]:
        """What is left of the notebook's cap. It is taken out of the present store, where threads that still work for it find nothing."""
        cap = self.budget.cap_nano
        if cap is None:
            return None, ""
        try:
            here = self.budget.state()
        except StoreError:  # perhaps the very reason for the switch
            return cap, f" The old store cannot be read, so the notebook's cap of {money(cap)} starts anew."
        cap = cap if here.cap_nano is None else here.cap_nano
        with suppress(StoreError):
            here = self.budget.set_cap(here.spent_nano + here.held_nano)  # what they took in between is in it
        left = max(0, cap - here.spent_nano - here.held_nano)
        return left, f" The notebook's budget goes on with the {money(left)} that were left of {money(cap)}."
