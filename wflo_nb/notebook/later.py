"""A store that is opened at its first use, so that cells which call no model never wait for a database, nor fail for one."""

from __future__ import annotations

import threading
from typing import Any, cast

from wflo_nb import store
from wflo_nb.store import Store


class _Later:
    """Stands for the current store; the first question opens it and every later one goes to the same."""

    def __init__(self) -> None:
        self.opened: Store | None = None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        # A store that could not be opened is tried again: the disk may be writable by now.
        if self.opened is None:
            with self._lock:
                if self.opened is None:
                    self.opened = store.current()
        return getattr(self.opened, name)


def current_store() -> Store:
    """The store that is current when it is first asked something."""
    return cast(Store, _Later())
