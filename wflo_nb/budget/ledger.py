"""The way to the store: in place for ordinary code, through one thread for event loops.

An event loop must not wait for a disk or a database. Its reserves run in the ledger's thread while the loop goes on; its
settlements are handed to the same thread and not waited for. The thread works first in, first out, so a reserve there always sees
every settlement before it. Should the process die in between, the hold is still in the store and is found as unconfirmed: the
order of things can lose a refund, never a charge.

What a store can answer from memory it is asked in place, also by an event loop (`Account.reserve_now`, `_finished_at_once`). Such a
reserve may be ahead of settlements that were posted before it. It then sees less money than there is, never more, and what does not
fit takes the way through the thread.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import functools
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from wflo_nb.budget import loops
from wflo_nb.errors import StoreError, StoreUnavailableError
from wflo_nb.store import Store, patience

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


#: Where locks are held, or figures are half changed.
_MONEY = (
    "opentelemetry.sdk",
    "prometheus_client",
    "wflo_nb.budget",
    "wflo_nb.capture.gate",
    "wflo_nb.events",
    "wflo_nb.pricing",
    "wflo_nb.report",
    "wflo_nb.snapshot",
    "wflo_nb.store",
    "wflo_nb.telemetry",
)


def within_money() -> bool:
    """Whether this is called from inside our own work on money or on the store.

    The garbage collector closes abandoned streams in whichever thread it happens to run, so perhaps in the middle of a
    transaction of ours, which would then wait for itself.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__", "").startswith(_MONEY):
            return True
    return False


class Ledger:
    """One store's queue.

    Attributes:
        postponed: what was left for later, and is done by `tidy`.
        unwritten: what the store did not take, and is written by `catch_up`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._thread: int | None = None
        self._posted: set[Future[object]] = set()
        self.postponed: deque[Callable[[], object]] = deque()
        self._together: dict[Callable[[list[Any]], object], list[Any]] = {}
        self.unwritten: deque[Callable[[], object]] = deque()
        self._writing = threading.RLock()
        renew_in_children(self)

    def renew_locks(self) -> None:
        """In a forked child, which has the object but not the thread: what was posted before is the parent's to do."""
        self._lock = threading.Lock()
        self._pool = self._thread = None
        self._posted = set()
        self._together = {}
        self.postponed = deque()
        self.unwritten = deque()
        self._writing = threading.RLock()

    def _submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="wflo-ledger", initializer=self._remember)
            return self._pool.submit(_waited_for, time.monotonic(), functools.partial(fn, *args, **kwargs))

    def _remember(self) -> None:
        self._thread = threading.get_ident()

    async def run(self, fn: Callable[P, T], undo: Callable[[T], object], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn` in the ledger's thread and in this context, and wait for it; if the waiter is cancelled, `undo` the result there."""
        wait = loops.waiter()
        if wait is None:  # a loop that nobody knows how to sleep in: it is blocked for the moment, its money is safe
            return fn(*args, **kwargs)
        future = self._submit(functools.partial(contextvars.copy_context().run, fn, *args, **kwargs))
        try:
            return await wait(future)
        except BaseException:  # cancelled, in the words of its library; or its loop was closed and forgot it
            future.add_done_callback(lambda f: None if f.cancelled() or f.exception() else self.post(undo, f.result()))
            raise

    def post(self, fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run `fn` in the ledger's thread, later; nobody waits. `fn` handles its own errors."""
        future = self._submit(fn, *args, **kwargs)
        with self._lock:
            self._posted.add(future)
        future.add_done_callback(self._over)

    def post_together(self, fn: Callable[[list[T]], object], item: T) -> None:
        """Run `fn` in the ledger's thread with a list of `item` and what else was posted for it until then."""
        with self._lock:
            waiting = self._together.setdefault(fn, [])
            waiting.append(item)
            if len(waiting) > 1:
                return
        self.post(self._run_together, fn)

    def _run_together(self, fn: Callable[[list[T]], object]) -> None:
        with self._lock:
            items = self._together.pop(fn)
        fn(items)

    def _over(self, future: Future[object]) -> None:
        with self._lock:
            self._posted.discard(future)
        if not future.cancelled() and future.exception() is not None:
            _log.error("a posted ledger entry failed; its hold stays counted", exc_info=future.exception())

    def drain(self) -> bool:
        """Wait until everything posted so far is in the store. False if there was nothing to wait for."""
        tidied = self.tidy()
        if threading.get_ident() == self._thread:
            return tidied
        with self._lock:
            waiting = list(self._posted)
        for future in waiting:
            future.exception()
        return tidied or bool(waiting)

    def later(self, fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run `fn` when the work on money that is going on is done. Takes no lock, so it may be called anywhere."""
        self.postponed.append(functools.partial(fn, *args, **kwargs))

    def tidy_soon(self) -> None:
        """`tidy` in the ledger's thread: for event loops."""
        if self.postponed:
            self.post(self.tidy)

    def tidy(self) -> bool:
        """Do what was left for later. False if there was nothing."""
        done = False
        while self.postponed:
            try:
                work = self.postponed.popleft()
            except IndexError:  # another thread was quicker
                break
            try:
                work()
            except Exception:
                _log.exception("a ledger entry that was left for later failed; its hold stays counted")
            done = True
        return done

    def keep(self, write: Callable[[], object]) -> None:
        """Something that the store did not take, to be written when it can be. `write` may be called more than once."""
        self.unwritten.append(write)

    def catch_up(self) -> None:
        """Write what was kept, in the same order, so that what follows sees it.

        Raises:
            StoreUnavailableError: it still cannot be written.
        """
        if not self.unwritten:
            return
        with self._writing:
            while self.unwritten:
                try:
                    self.unwritten[0]()
                except StoreUnavailableError:
                    raise
                except StoreError:
                    _log.exception("a ledger entry that was kept cannot be written")
                self.unwritten.popleft()


def _waited_for(since: float, work: Callable[[], T]) -> T:
    patience.waiting.since = since
    try:
        return work()
    finally:
        patience.waiting.since = None


class Renewed(Protocol):
    """What has locks."""

    def renew_locks(self) -> None:
        """In a forked child: threads that held the locks do not exist there, and would never give them back."""


_renewed: WeakSet[Renewed] = WeakSet()


def renew_in_children(one: Renewed) -> None:
    """Renew its locks in every child that is forked from here."""
    _renewed.add(one)


def _after_fork_in_child() -> None:
    global _ledgers_lock
    _ledgers_lock = threading.Lock()
    for one in list(_renewed):
        one.renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


_ledgers: WeakKeyDictionary[Store, Ledger] = WeakKeyDictionary()
_ledgers_lock = threading.Lock()


@atexit.register
def _last_chance() -> None:
    """What a store did not take is written if that is back by now: nobody will ask for it any more."""
    for ledger in list(_ledgers.values()):
        with contextlib.suppress(StoreError):
            ledger.catch_up()


def ledger_of(store: Store) -> Ledger:
    """The queue of a store."""
    with _ledgers_lock:
        return _ledgers.setdefault(store, Ledger())
