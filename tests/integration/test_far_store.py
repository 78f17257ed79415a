"""An event loop goes on while the ledger is waited for, at both edges of a block."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

import wflo_nb
from wflo_nb import WfloWorkflow
from wflo_nb.errors import ConfigurationError
from wflo_nb.store import Store, open_store


class Waits:
    """Makes a method of a store wait until somebody lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        usual = getattr(Store, name)

        def waiting(store: Store, *args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            assert self.go_on.wait(30), "the event loop that was to let this go on stands still"
            return usual(store, *args, **kwargs)

        monkeypatch.setattr(Store, name, waiting)

    async def from_the_loop(self) -> None:
        """Let it go on, as a task of the same loop."""
        while not self.reached.is_set():
            await asyncio.sleep(0.001)
        self.go_on.set()


@pytest.mark.parametrize("edge", ["begin_execution", "end_execution"])
def test_the_loop_goes_on_at(edge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "far.db")
    slow = Waits(monkeypatch, edge)

    async def main() -> str:
        other = asyncio.create_task(slow.from_the_loop())
        async with wflo_nb.execution("far", budget_usd=1, store=store) as run:
            await asyncio.sleep(0)
        await other
        return run.id

    assert store.execution(asyncio.run(main())).status == "COMPLETED"
    store.close()


def test_a_block_that_is_cancelled_while_it_begins_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "far.db")
    slow = Waits(monkeypatch, "begin_execution")

    async def block() -> None:
        async with wflo_nb.execution("far", budget_usd=1, store=store):
            raise AssertionError("it was cancelled before")

    async def main() -> None:
        task = asyncio.create_task(block())
        await asyncio.to_thread(slow.reached.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slow.go_on.set()

    asyncio.run(main())
    assert store.read("executions")["status"] == ["FAILED"]
    store.close()


def test_blocks_that_are_cancelled_while_they_wait_for_their_end_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "far.db")
    slow = Waits(monkeypatch, "end_execution")

    async def work() -> int:
        return 1

    async def main() -> None:
        many = [asyncio.create_task(WfloWorkflow("far", store=store).execute(work)) for _ in range(40)]  # more than there are threads
        await asyncio.to_thread(slow.reached.wait, 30)
        await asyncio.sleep(0.5)
        for task in many:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        slow.go_on.set()

    asyncio.run(main())
    assert "RUNNING" not in store.read("executions")["status"]
    store.close()


def test_an_async_block_is_entered_once(tmp_path: Path) -> None:
    async def main() -> None:
        block = wflo_nb.execution("once", store=tmp_path / "a.db")
        async with block:
            pass
        with pytest.raises(ConfigurationError, match="entered already"):
            await block.__aenter__()

    asyncio.run(main())
