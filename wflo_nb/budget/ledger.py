"""The way to the store: in place for ordinary code, through one thread for event loops.

An event loop must not wait for a disk or a database. Its reserves run in the ledger's thread while the loop goes on; its
settlements are handed to the same thread and not waited for. The thread works first in, first out, so a reserve always sees
every settlement before it. Should the process die in between, the hold is still in the store and is found as unconfirmed: the
order of things can lose a refund, never a charge.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from wflo_nb.store import Store

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class Ledger:
    """One store's queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._thread: int | None = None
        self._posted: set[Future[object]] = set()

    def _submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with self._lock:
            if self._pool is None or self._pid != os.getpid():  # a forked child has the object but not the thread
                self._pid = os.getpid()
                self._posted = set()
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="wflo-ledger", initializer=self._remember)
            return self._pool.submit(fn, *args, **kwargs)

    def _remember(self) -> None:
        self._thread = threading.get_ident()

    async def run(self, fn: Callable[P, T], undo: Callable[[T], object], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn` in the ledger's thread and wait for it; if the waiter is cancelled, `undo` the result there."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # another async library: its loop is blocked for the moment, its money is safe
            return fn(*args, **kwargs)
        future = self._submit(fn, *args, **kwargs)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            future.add_done_callback(lambda f: None if f.cancelled() or f.exception() else self.post(undo, f.result()))
            raise

    def post(self, fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run `fn` in the ledger's thread, later; nobody waits. `fn` handles its own errors."""
        future = self._submit(fn, *args, **kwargs)
        with self._lock:
            self._posted.add(future)
        future.add_done_callback(self._over)

    def _over(self, future: Future[object]) -> None:
        with self._lock:
            self._posted.discard(future)
        if not future.cancelled() and future.exception() is not None:
            _log.error("a posted ledger entry failed; its hold stays counted", exc_info=future.exception())

    def drain(self) -> bool:
        """Wait until everything posted so far is in the store. False if there was nothing to wait for."""
        if threading.get_ident() == self._thread:
            return False
        with self._lock:
            waiting = list(self._posted)
        for future in waiting:
            future.exception()
        return bool(waiting)


_ledgers: WeakKeyDictionary[Store, Ledger] = WeakKeyDictionary()
_ledgers_lock = threading.Lock()


def ledger_of(store: Store) -> Ledger:
    """The queue of a store."""
    with _ledgers_lock:
        return _ledgers.setdefault(store, Ledger())
