"""Threads, tasks and pools that outlive the block they were made in: whom their calls are charged to, and that they are seen."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest

from tests.integration.conftest import PROMPT, ledger_calls, wflo_nb
from wflo_nb.errors import BudgetExceededError
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime


def asking(client: Any) -> Any:
    """A function that calls, whatever it is given, and says how that went."""

    def ask(_: object = None) -> str:
        try:
            client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=100)
        except BudgetExceededError:
            return "refused"
        return "sent"

    return ask


def test_pool_of_an_earlier_block_spends_the_budget_of_the_block_that_uses_it(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=100)
    process = runtime()
    process.install()  # as the notebook does, between its cells, too
    try:
        with wflo_nb.execution("earlier") as earlier:
            pool = ThreadPool(2)
        with pytest.raises(BudgetExceededError), wflo_nb.execution("later", budget_usd="0.005") as later:
            said = pool.map(asking(openai_client), range(30))
        assert 0 < provider.spent_nano <= 5_000_000
        assert said.count("sent") == provider.requests < 30
        assert {row["execution_id"] for row in ledger_calls()} == {later.id} and earlier.figures().calls == 0
        pool.terminate()
    finally:
        process.uninstall()


def test_pool_module_that_is_loaded_within_a_block_is_followed() -> None:
    code = """
import sys
import wflo_nb
from wflo_nb import _context
with wflo_nb.execution("first") as first:
    assert "multiprocessing.pool" not in sys.modules, "this must be its first import"
    from multiprocessing.pool import ThreadPool
    pool = ThreadPool(1)
    assert pool.apply(_context.current) is first.account
    with wflo_nb.execution("second") as second:
        assert pool.apply(_context.current) is second.account
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_thread_that_a_block_left_behind_is_charged_to_it_and_stops_where_its_money_ends(
    provider: FakeProvider, openai_client: Any
) -> None:
    provider.behave(tokens=100)
    go, said = threading.Event(), []

    def later() -> None:
        go.wait(30)
        said.extend(asking(openai_client)() for _ in range(9))

    with wflo_nb.execution(budget_usd="0.005") as run:
        thread = threading.Thread(target=later)
        thread.start()
    go.set()
    thread.join()
    assert said[0] == "sent" and said[-1] == "refused"
    assert run.figures().spent_nano == provider.spent_nano <= 5_000_000
    asking(openai_client)()  # outside of it all
    assert {row["execution_id"] for row in ledger_calls()} == {run.id}, "what belongs to no block is not recorded"


def test_task_that_a_block_left_behind_is_charged_to_it(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    async def work() -> Any:
        go = asyncio.Event()
        async with async_openai() as client:

            async def later() -> None:
                await go.wait()
                await client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=100)

            async with wflo_nb.execution(budget_usd=0) as run:
                task = asyncio.create_task(later())
            go.set()
            with pytest.raises(BudgetExceededError):
                await task
        return run

    run = asyncio.run(work())
    assert run.figures().refused == 1 and provider.requests == 0
