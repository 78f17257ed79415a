"""A task waits for the ledger's thread, and its loop goes on: asyncio's and trio's alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from queue import SimpleQueue
from typing import Any

import pytest
import trio

from wflo_nb.budget import loops
from wflo_nb.budget.ledger import Ledger

Run = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]
BOTH = pytest.mark.parametrize("run", [lambda work: asyncio.run(work()), trio.run], ids=["asyncio", "trio"])


async def _beside(run: Callable[[], Awaitable[object]], meanwhile: Callable[[], object]) -> None:
    """Await the one while the loop does the other."""
    if asyncio._get_running_loop() is not None:
        task = asyncio.ensure_future(run())
        await asyncio.sleep(0)
        meanwhile()
        await task
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(0.05)
        meanwhile()


@BOTH
def test_the_loop_goes_on(run: Run) -> None:
    ledger, moved = Ledger(), threading.Event()
    got = []

    async def ask() -> None:
        got.append(await ledger.run(lambda: moved.wait(10), lambda _: None))

    run(lambda: _beside(ask, moved.set))
    assert got == [True], "else the loop stood still, and the wait timed out"


@BOTH
def test_an_error_is_the_waiters(run: Run) -> None:
    def broken() -> None:
        raise ValueError("no")

    async def ask() -> None:
        with pytest.raises(ValueError, match="no"):
            await Ledger().run(broken, lambda _: None)

    run(ask)


@BOTH
def test_what_comes_of_it_for_a_waiter_who_is_gone_is_undone(run: Run) -> None:
    ledger, begun, go = Ledger(), threading.Event(), threading.Event()
    undone: SimpleQueue[str] = SimpleQueue()

    def work() -> str:
        begun.set()
        go.wait(10)
        return "money"

    async def in_asyncio() -> None:
        task = asyncio.ensure_future(ledger.run(work, undone.put))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def in_trio() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ledger.run, work, undone.put)
            await trio.to_thread.run_sync(begun.wait, 10)
            nursery.cancel_scope.cancel()

    run(in_trio if run is trio.run else in_asyncio)
    assert undone.empty()
    go.set()
    assert undone.get(timeout=10) == "money"


def test_in_a_loop_that_nobody_knows_it_is_done_in_place() -> None:
    assert loops.here() is None and loops.waiter() is None
    with pytest.raises(StopIteration) as done:
        Ledger().run(threading.get_ident, lambda _: None).send(None)
    assert done.value.value == threading.get_ident()
