"""The event loops that calls are awaited in: asyncio's, and trio's where a program brought it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Wait(Protocol):
    """How a task waits for the future of another thread, which goes on should the task be cancelled."""

    def __call__(self, future: Future[T], /) -> Awaitable[T]: ...


def here() -> object | None:
    """The event loop that runs in this thread, or what stands for trio's; None if none does."""
    loop = asyncio._get_running_loop()  # None where there is none, which `get_running_loop` raises an error for
    return _trio_token() if loop is None else loop


def waiter() -> Wait | None:
    """How the task that runs here waits; None in a loop of another library."""
    if asyncio._get_running_loop() is not None:
        return _wait_in_asyncio
    return None if _trio_token() is None else _wait_in_trio


async def _wait_in_asyncio(future: Future[T]) -> T:
    waited = asyncio.wrap_future(future)
    waited.add_done_callback(_heard)
    return await asyncio.shield(waited)


def _heard(future: asyncio.Future[Any]) -> None:
    """Its error is the waiter's. If that was cancelled, it is nobody's, and the loop must not complain that nobody heard of it."""
    if not future.cancelled():
        future.exception()


async def _wait_in_trio(future: Future[T]) -> T:
    trio: Any = sys.modules["trio"]
    token, done = trio.lowlevel.current_trio_token(), trio.Event()

    def tell(_: Future[Any]) -> None:
        with suppress(trio.RunFinishedError):  # nobody waits any more
            token.run_sync_soon(done.set)

    future.add_done_callback(tell)
    await done.wait()
    return future.result()


async def sleep_in_trio(seconds: float) -> bool:
    """Sleep, if trio runs here. False, at once, if it does not."""
    if _trio_token() is None:
        return False
    trio: Any = sys.modules["trio"]
    await trio.sleep(seconds)
    return True


def _trio_token() -> object | None:
    trio: Any = sys.modules.get("trio.lowlevel")  # importing it takes longer than the rest of us
    if trio is None:
        return None
    try:
        return trio.current_trio_token()  # type: ignore[no-any-return]
    except (RuntimeError, AttributeError):  # it does not run in this thread; it is just being imported
        return None
