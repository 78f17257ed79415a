"""Budgets that outlive executions (a notebook's, a team's), looked up in the ledger whenever somebody looks at the metrics."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from wflo_nb.errors import WfloError
from wflo_nb.model import BudgetState

_log = logging.getLogger(__name__)

Read = Callable[[], Iterable[BudgetState]]

_lock = threading.Lock()
_readers: tuple[Read, ...] = ()


def watch(read: Read) -> Callable[[], None]:
    """Show the budgets that `read` gives; it is asked in the thread of the one who looks. Returns its own undo."""
    global _readers
    with _lock:
        _readers = (*_readers, read)

    def undo() -> None:
        global _readers
        with _lock:
            _readers = tuple(one for one in _readers if one is not read)

    return undo


def states() -> list[BudgetState]:
    """All of them as the ledger has them now; without those that cannot be asked."""
    found: list[BudgetState] = []
    for read in _readers:
        try:
            found += read()
        except WfloError as error:
            _log.warning("budgets are missing in the metrics: %s", error)
    return found
