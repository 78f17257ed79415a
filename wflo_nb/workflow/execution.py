"""``with wflo_nb.execution(budget_usd=2):`` – the same guarantee with no notebook."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from wflo_nb import _context
from wflo_nb import store as stores
from wflo_nb.budget.account import Account
from wflo_nb.budget.line import seconds
from wflo_nb.budget.shared import sharing
from wflo_nb.config import UnknownModels
from wflo_nb.errors import BudgetExceededError, ConfigurationError, tell
from wflo_nb.model import nano_from_usd
from wflo_nb.pricing.book import PriceBook
from wflo_nb.store import Store
from wflo_nb.workflow.offloop import aside
from wflo_nb.workflow.run import Run
from wflo_nb.workflow.runtime import runtime

T = TypeVar("T")


class execution:  # noqa: N801 - used like a function
    """Track every LLM call of a block, and never spend more than its budget.

    Args:
        name: what the block is called in reports.
        budget_usd: the cap in USD over every call that the block makes, through any SDK, thread or task; None only tracks.
        unknown_models: ``"refuse"`` (default) or ``"allow"`` calls whose price is not known, under a budget.
        wait: how many seconds a call that does not fit may wait for calls in flight to give money back (30 by default); 0 refuses
            at once.
        prices: prices for this block, by model: ``{"my-model": {"input": 0.5, "output": 1.5}}``, USD per million tokens.
        store: where to record: a `Store`, a path, a ``postgresql://`` URL; None for the current one.
        team, user: a shared budget (or two) that the block is charged to as well, by name; ``user=True`` is this login name. One that
            does not exist yet is created with `budget_usd` as its cap; one that does keeps its own (see `wflo_nb.shared_budget`).
        per: ``"day"``, ``"week"``, ``"month"`` or ``"year"``: the period of a shared budget that is created here.
        tz: the IANA time zone in which that period turns over (UTC).

    Works with ``with`` and ``async with`` and gives the `Run`. A block inside another one spends the outer budget too.

    Raises:
        BudgetExceededError: at the end of the block at the latest, if a call was refused, even if something swallowed it.
        BudgetUnavailableError: the ledger cannot be reached, so nothing may be spent.
        ConfigurationError: a bad argument.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        budget_usd: object = None,
        unknown_models: UnknownModels | None = None,
        wait: float | None = None,
        prices: Mapping[str, Mapping[str, Any]] | None = None,
        store: Store | str | os.PathLike[str] | None = None,
        team: str | None = None,
        user: str | bool | None = None,
        per: str | None = None,
        tz: str | None = None,
    ) -> None:
        if not isinstance(name, str | None):
            raise ConfigurationError(f"execution({name!r}): the first argument is a name. A budget is execution(budget_usd={name!r}).")
        if not isinstance(prices, Mapping | None):
            raise ConfigurationError(f"prices={prices!r} is not understood. Write prices={{'my-model': {{'input': 0.5, 'output': 1.5}}}}.")
        self._name = name or "execution"
        self._scope = f'execution "{name}"' if name else "execution"
        self._sharing = sharing(team=team, user=user or None, per=per, tz=tz)
        self._budget_nano = None if budget_usd is None else nano_from_usd(budget_usd, "budget_usd")
        if unknown_models not in (None, "refuse", "allow"):
            raise ConfigurationError(f"unknown_models={unknown_models!r} is not understood. Use 'refuse' or 'allow'.")
        self._unknown_models = unknown_models
        self._wait = None if wait is None else seconds(wait)
        self._prices = prices
        self._store = store
        self._run: Run | None = None
        self._leave: Callable[[], None] | None = None
        self._said: list[str] = []

    def _book(self) -> PriceBook | None:
        if not self._prices:
            return None
        book = PriceBook(runtime().book)
        for model, rates in self._prices.items():
            try:
                book.declare(model, **rates)
            except TypeError:  # no mapping, or other keys than those of a price
                right = f"prices={{{model!r}: {{'input': 0.5, 'output': 1.5}}}}"
                raise ConfigurationError(
                    f"The price {rates!r} of {model} is not understood. Write {right}, in USD per million tokens."
                ) from None
        return book

    def _made(self, scope: object) -> Run:
        """The run inside `scope`, entered in the ledger: may take a while if that is far."""
        run = self.prepared(scope)
        self.enter_ledger(run)
        self._run = run
        return run

    def enter_ledger(self, run: Run) -> None:
        """Enter what was `prepared`."""
        run.begin()
        for sentence in self._said:
            tell(sentence)

    def prepared(self, scope: object) -> Run:
        """The run inside `scope`, not entered anywhere."""
        if self._run is not None:
            raise ConfigurationError("This execution was entered already. Make a new one for each block: with wflo_nb.execution(…).")
        outer = scope if isinstance(scope, Account) else None
        store = self._store if self._store is None or isinstance(self._store, Store) else stores.at(self._store)
        if outer is not None and store is not None and store is not outer.store:
            raise ConfigurationError("A block inside another one shares its budget, so it cannot have a store of its own.")
        process = runtime()
        place = store or (outer.store if outer else process.store)
        shared, said = self._sharing.budgets(place, self._budget_nano) if self._sharing else ((), [])
        run = process.new_run(
            self._name,
            budget_nano=self._budget_nano,
            scope=self._scope,
            outer=outer,
            shared=shared,
            notebook_id=outer.execution.notebook_id if outer else None,
            kernel_id=outer.execution.kernel_id if outer else None,
            cell=outer.execution.cell if outer else None,
            cell_id=outer.execution.cell_id if outer else None,
            unknown_models=self._unknown_models or (outer.unknown_models if outer else None),
            wait=self._wait if self._wait is not None or outer is None else outer.wait,
            book=self._book() or (outer.book if outer else None),
            store=place,
        )
        self._said = said
        return run

    def _entered(self, run: Run) -> Run:
        runtime().install()
        self._leave = run.enter()
        return run

    def __enter__(self) -> Run:
        return self._entered(self._made(lies_in()))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        run = self._left()
        if run is not None:
            self._over(run.end(error), error)

    def _left(self) -> Run | None:
        leave, self._leave = self._leave, None
        if leave is None or self._run is None:
            return None
        leave()
        runtime().uninstall()
        return self._run

    @staticmethod
    def _over(refusal: BudgetExceededError | None, error: BaseException | None) -> None:
        if refusal is not None:
            raise refusal from error

    async def __aenter__(self) -> Run:
        scope = lies_in()  # here: a thread does not tell which task it works for
        return self._entered(await aside(self._made, scope, undo=lambda run: run.end(asyncio.CancelledError())))

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        run = self._left()
        if run is not None:
            self._over(await aside(run.end, error), error)


def lies_in() -> object:
    """What a block that begins here lies in: the execution around it, or that of the step around it if it has a budget of its own."""
    scope = _context.around()
    return scope.payer() if isinstance(scope, Account) else scope
