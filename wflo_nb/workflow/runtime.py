"""What one process shares: the price book, the capture at the transports, and the store that is current."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from wflo_nb import _context, _threads, config, store
from wflo_nb.budget.account import Account
from wflo_nb.budget.budget import Budget
from wflo_nb.budget.line import WAIT
from wflo_nb.capture import transports
from wflo_nb.config import Settings, UnknownModels
from wflo_nb.pricing.book import PriceBook
from wflo_nb.store import Store
from wflo_nb.workflow import handover
from wflo_nb.workflow.adapters.places import place
from wflo_nb.workflow.run import Run


class Runtime:
    """The process's one runtime.

    Attributes:
        settings: what was set from outside.
        book: prices, including those that the user declared.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.book = PriceBook()
        self._lock = threading.RLock()
        self._installed = 0
        self._unfollow: Callable[[], None] | None = None

    @property
    def store(self) -> Store:
        """The store that new runs are written to; opened at first use."""
        return store.current()

    def connect(self, where: Store | str | os.PathLike[str] | None) -> Store:
        """Write new runs to another store; runs that have begun stay where they are."""
        return store.use(where if isinstance(where, Store) else store.open_store(where, settings=self.settings))

    def install(self) -> None:
        """See every call from now on. Counted."""
        with self._lock:
            self._installed += 1
            transports.install()
            if self._unfollow is None:
                transports.install()  # once more, for `restore`
                self._unfollow = _threads.follow_threads()
                _context.be_guided(place)

    def uninstall(self) -> None:
        """The counterpart of `install`. Nothing new begins, but libraries and threads stay watched: threads, tasks and callbacks that
        a block left behind must go on being charged to it, and refused when its money is gone. All else passes unseen, since it
        belongs to no run.
        """
        with self._lock:
            if self._installed == 0:
                return
            self._installed -= 1
            transports.uninstall()
            if self._installed == 0:
                handover.withdraw()

    def restore(self) -> list[str]:
        """Leave libraries and threads as they were, if nobody watches any more.

        Returns:
            what still works for a run, by name: then everything stays watched, as after `uninstall`.
        """
        with self._lock:
            if self._installed or self._unfollow is None:
                return []
            left = _context.left_behind()
            if not left:
                transports.uninstall()
                self._unfollow()
                self._unfollow = None
                _context.be_guided(None)
            return left

    def new_run(
        self,
        name: str,
        *,
        budget_nano: int | None = None,
        scope: str = "cell",
        around: Budget | None = None,
        outer: Account | None = None,
        shared: tuple[Budget, ...] = (),
        notebook_id: str | None = None,
        kernel_id: str | None = None,
        cell: str | None = None,
        cell_id: str | None = None,
        unknown_models: UnknownModels | None = None,
        wait: float | None = None,
        book: PriceBook | None = None,
        store: Store | None = None,
    ) -> Run:
        """A run that is not in the ledger yet: it enters by `Run.begin`, or by itself at its first call."""
        inside = outer.store if outer else around.store if around else None
        return Run(
            store or inside or self.store,
            name,
            book or self.book,
            budget_nano=budget_nano,
            scope=scope,
            around=around,
            outer=outer,
            shared=shared,
            notebook_id=notebook_id,
            kernel_id=kernel_id,
            cell=cell,
            cell_id=cell_id,
            unknown_models=unknown_models or self.settings.unknown_models,
            wait=WAIT if wait is None else wait,
        )


_runtime: Runtime | None = None
_lock = threading.Lock()


def runtime() -> Runtime:
    """The process's runtime, made at first use.

    Raises:
        ConfigurationError: a ``WFLO_*`` variable has a value that cannot be used.
    """
    global _runtime
    with _lock:
        if _runtime is None:
            _runtime = Runtime(config.load())
        return _runtime
