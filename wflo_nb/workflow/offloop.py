"""Work that an event loop must not wait for: ours in threads of our own, a user's plain code in the loop's.

The loop's own threads are the user's: all of them may be waiting for something that happens after what is to be noted here.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from wflo_nb.budget.ledger import renew_in_children

T = TypeVar("T")


class Lane:
    """Threads of ours, started as they are needed."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self.renew_locks()
        renew_in_children(self)

    def renew_locks(self) -> None:
        """In a forked child, which has none of the threads."""
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def pool(self) -> ThreadPoolExecutor:
        """Made at first use."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._most, thread_name_prefix=self._name)
            return self._pool


#: What may wait until calls give money back.
WAITING = Lane("wflo-waiting", 64)
#: All else, what gives it back above all: it must never stand behind those who wait for it.
NOTING = Lane("wflo-noting", 8)


async def aside(work: Callable[..., T], *args: object, lane: Lane = NOTING, undo: Callable[[T], object] | None = None) -> T:
    """Do what may wait for a disk in a thread, in this context; in place where no asyncio loop runs.

    If nobody waits for it any more, what is to be noted is noted all the same, and what it gives is undone by `undo`; what waits may be
    left out if it has not begun. `asyncio.run` ends after it.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # another async library: its loop waits
        return work(*args)
    future = lane.pool.submit(contextvars.copy_context().run, _answered, work, *args)
    waiter = asyncio.wrap_future(future, loop=loop)
    try:
        return await (waiter if lane is WAITING else asyncio.shield(waiter))
    except (asyncio.CancelledError, GeneratorExit):  # the latter: its loop was closed and forgot it
        over = threading.Event()

        def ended(future: Future[T]) -> None:
            try:
                if undo is not None and not (future.cancelled() or future.exception()):
                    undo(future.result())
            finally:
                over.set()

        future.add_done_callback(ended)
        if not over.is_set():
            with suppress(RuntimeError):  # the loop, or its pool, is closed
                loop.run_in_executor(None, over.wait)
        raise


async def off_the_loop(work: Callable[..., T], *args: object) -> T:
    """Do a user's work in a thread of the loop's, in this context; in place where no asyncio loop runs."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return work(*args)
    return await loop.run_in_executor(None, functools.partial(contextvars.copy_context().run, _answered, work, *args))


def _answered(work: Callable[..., T], *args: object) -> T:
    """What work answers. Nothing that waits for it could be given a StopIteration: there it is what it is in a generator."""
    try:
        return work(*args)
    except StopIteration as stop:
        raise RuntimeError("a plain function that runs off the event loop raised StopIteration") from stop
