"""A run: one tracked cell, block or workflow, from its beginning to its edge, where a refusal always comes out."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Literal

from wflo_nb import _context, telemetry
from wflo_nb.budget import endings
from wflo_nb.budget.account import Account
from wflo_nb.budget.budget import Budget
from wflo_nb.budget.elsewhere import gather
from wflo_nb.config import UnknownModels
from wflo_nb.credentials import masked
from wflo_nb.errors import BudgetExceededError, ConfigurationError, WfloError
from wflo_nb.events import Figures
from wflo_nb.model import MAX_NANO, Execution, ExecutionStatus, new_id, now, usd
from wflo_nb.pricing.book import PriceBook
from wflo_nb.store import Store
from wflo_nb.workflow import handover


def _told(error: BaseException) -> dict[str, object]:
    """An error as the ledger keeps it: ours in full, others short and without what looks like a key."""
    if isinstance(error, WfloError):
        return {"type": type(error).__name__, "message": str(error)}
    try:
        said = masked(str(error)) or _WORDLESS.get(type(error).__name__, "It gave no reason.")
    except Exception as broken:  # its own code: the user must see the error, not this
        said = f"It cannot be told: its str raises {type(broken).__name__}."
    return {"type": type(error).__name__, "message": said}


#: Errors that come without words.
_WORDLESS = {
    "CancelledError": "The task that ran it was cancelled.",
    "GeneratorExit": "It was closed before its end.",
    "KeyboardInterrupt": "It was interrupted.",
    "TimeoutError": "It took too long.",
}


State = Literal["running", "done", "failed", "stopped"]


class Run:
    """The user's handle on one execution.

    Attributes:
        account: its money; every call made while the run is entered is charged to it.
        state: ``"running"``, then ``"done"``, ``"failed"``, or ``"stopped"`` when a budget or the user ended the spending.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        book: PriceBook,
        *,
        budget_nano: int | None,
        scope: str,
        around: Budget | None,
        outer: Account | None,
        shared: tuple[Budget, ...],
        notebook_id: str | None,
        kernel_id: str | None,
        cell: str | None,
        cell_id: str | None,
        unknown_models: UnknownModels,
        wait: float,
    ) -> None:
        at = now()
        execution = Execution(
            new_id("exec"),
            name,
            ExecutionStatus.RUNNING,
            at,
            at,
            budget_nano=budget_nano,
            parent_id=outer.id if outer else None,
            notebook_id=notebook_id,
            kernel_id=kernel_id,
            cell=cell,
            cell_id=cell_id,
        )
        self.account = Account(
            store,
            execution,
            book,
            scope=scope,
            around=around,
            outer=outer,
            shared=shared,
            unknown_models=unknown_models,
            wait=wait,
        )
        self.state: State = "running"
        self._ended = False
        self._forks = handover.forks()
        self._surfaced: BudgetExceededError | None = None

    @property
    def id(self) -> str:
        """``exec-…``."""
        return self.account.id

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.account.execution.workflow

    @property
    def begun(self) -> bool:
        """Whether it is in the ledger: a run without a call may never be."""
        return self.account.begun

    @property
    def spent_usd(self) -> Decimal:
        """Settled and unconfirmed money so far, in USD."""
        return usd(self.figures().spent_nano)

    @property
    def budget_usd(self) -> Decimal | None:
        """Its own cap in USD, None if it has none."""
        cap = self.figures().cap_nano
        return None if cap is None else usd(cap)

    @property
    def remaining_usd(self) -> Decimal | None:
        """What a new call may still ask for of its own cap, in USD; None without a cap."""
        f = self.figures()
        return None if f.cap_nano is None else usd(max(0, f.cap_nano - f.spent_nano - f.held_nano))

    def figures(self) -> Figures:
        """Money and counts now."""
        return self.account.figures

    def begin(self) -> None:
        """Enter the ledger now.

        Raises:
            BudgetUnavailableError: it has a budget and the ledger cannot be reached.
        """
        self.account.begin()

    @property
    def ticket(self) -> str:
        """What `wflo_nb.join` needs in another process. Processes started while the run is entered find it in their environment
        (``WFLO_JOIN``); give it to others yourself: workers that were started before, or on other machines.
        """
        return handover.ticket(self.account)

    def enter(self) -> Callable[[], None]:
        """Charge calls made from here to this run, and let processes started from here join it; returns what leaves it."""
        leave, take_back, surface = _context.enter(self.account), handover.offer(self.account), telemetry.enter(self.id)

        def left() -> None:
            surface()
            leave()
            take_back()

        return left

    def stop(self) -> None:
        """Send nothing more. Calls in flight finish and are settled."""
        self.account.stop()

    def set_budget(self, nano: int) -> None:
        """Raise or lower the cap while it runs, to so many nano-USD. Raising it lets calls through again after a refusal.

        Raises:
            ConfigurationError: not a whole number of zero or more, or the run was started without a budget.
        """
        if isinstance(nano, bool) or not isinstance(nano, int) or not 0 <= nano <= MAX_NANO:
            raise ConfigurationError(
                f"A budget of {nano!r} cannot be set. Give a whole number of nano-USD from 0 to {MAX_NANO}; 2_000_000_000 are 2 USD."
            )
        self.account.set_cap(nano)

    def end(self, error: BaseException | None = None, *, outputs: object = None) -> BudgetExceededError | None:
        """Close the run, once, with what is to be kept of its result.

        Returns:
            the refusal that the user must see now, because something in between swallowed it; None if there was none or
            `error` already is one.
        """
        if self._ended:
            return self._surfaced
        self._ended = True
        if self.begun and handover.joined(self.account, self._forks):
            gather(self.account)
        refusal = self.account.refusal
        shown = isinstance(error, BudgetExceededError)
        if refusal is None and self.figures().stopped == "user" and self.figures().refused and not shown:
            refusal = BudgetExceededError("Stopped by you: no further call was sent.", execution_id=self.id, spent_usd=self.spent_usd)
        for stop in (error, refusal):
            if isinstance(stop, BudgetExceededError):
                self.account.show_delivered(stop)  # also what came in after the call was refused
        cause = error or refusal
        self.state = "stopped" if shown or refusal else "failed" if error else "done"
        status = ExecutionStatus.FAILED if cause is not None else ExecutionStatus.COMPLETED
        endings.end(self.account, status, outputs=outputs, error=_told(cause) if cause is not None else None)
        self._surfaced = None if shown or not isinstance(error, Exception | None) else refusal
        return self._surfaced
