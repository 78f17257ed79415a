"""Whose call is it? Every way in which Python starts work, with two executions at once, through every kind of client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest
import requests

import wflo_nb
from tests.integration.conftest import ledger_calls, ledger_total
from tests.integration.wire import ASK
from wflo_nb.testing import FakeProvider

Call = Callable[[], object]
OLD_POOL = ThreadPoolExecutor(4)
OLD_POOL.submit(int).result()  # a worker that no execution has started


def plainly(call: Call) -> None:
    call()


def in_thread(call: Call) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def in_thread_of_thread(call: Call) -> None:
    in_thread(lambda: in_thread(call))


def in_timer(call: Call) -> None:
    timer = threading.Timer(0.01, call)
    timer.start()
    timer.join()


def in_old_pool(call: Call) -> None:
    OLD_POOL.submit(call).result()


def in_new_pool(call: Call) -> None:
    with ThreadPoolExecutor(1) as pool:
        list(pool.map(lambda _: call(), range(1)))


def in_pool_of_pool(call: Call) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(in_old_pool, call).result()


def in_loop_of_a_thread(call: Call) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        call()

    in_thread(lambda: asyncio.run(work()))


def by_to_thread(call: Call) -> None:
    asyncio.run(_awaited(lambda: asyncio.to_thread(call)))


def by_executor_of_the_loop(call: Call) -> None:
    asyncio.run(_awaited(lambda: asyncio.get_running_loop().run_in_executor(None, call)))


def by_executor_made_before(call: Call) -> None:
    asyncio.run(_awaited(lambda: asyncio.get_running_loop().run_in_executor(OLD_POOL, call)))


def by_task(call: Call) -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_awaited(lambda: asyncio.to_thread(call)))

    asyncio.run(work())


def by_callback(call: Call) -> None:
    async def work() -> None:
        done = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, lambda: (call(), done.set()))
        await done.wait()

    asyncio.run(work())


async def _awaited(make: Callable[[], Awaitable[object]]) -> None:
    await make()


WAYS = [
    *(plainly, in_thread, in_thread_of_thread, in_timer, in_old_pool, in_new_pool, in_pool_of_pool, in_loop_of_a_thread),
    *(by_to_thread, by_executor_of_the_loop, by_executor_made_before, by_task, by_callback),
]


@pytest.mark.parametrize("way", WAYS)
def test_work_is_charged_to_the_execution_that_started_it_while_another_runs(provider: FakeProvider, way: Callable[[Call], None]) -> None:
    both_entered, both_done = threading.Barrier(2), threading.Barrier(2)
    charged: dict[str, str] = {}

    def workflow(model: str) -> None:
        with wflo_nb.execution(model, budget_usd=1) as run:
            charged[model] = run.id
            both_entered.wait(10)
            way(lambda: requests.post(f"{provider.openai_url}/chat/completions", json={**ASK, "model": model}, timeout=10))
            both_done.wait(10)

    threads = [threading.Thread(target=workflow, args=(model,)) for model in ("gpt-4o", "gpt-4o-mini")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {row["model"]: row["execution_id"] for row in ledger_calls()} == charged and len(ledger_calls()) == 2


def test_two_workflows_in_one_loop_spend_their_own_budgets(provider: FakeProvider) -> None:
    async def call(session: aiohttp.ClientSession, model: str) -> None:
        async with session.post(f"{provider.openai_url}/chat/completions", json={**ASK, "model": model, "max_tokens": 30}) as response:
            await response.read()

    async def workflow(session: aiohttp.ClientSession, model: str, budget: str) -> Any:
        async with wflo_nb.execution(model, budget_usd=budget) as run:
            await asyncio.gather(*(call(session, model) for _ in range(5)))
        return run

    async def serve() -> list[Any]:
        async with aiohttp.ClientSession() as session:  # one client for both
            work = (workflow(session, "gpt-4o", "0.000001"), workflow(session, "gpt-4o-mini", "1"))
            return await asyncio.gather(*work, return_exceptions=True)

    refused, run = asyncio.run(serve())
    assert isinstance(refused, wflo_nb.BudgetExceededError)
    rows = ledger_calls()
    assert [row["model"] for row in rows if row["state"] == "SETTLED"] == ["gpt-4o-mini"] * 5
    assert {row["execution_id"] for row in rows if row["model"] == "gpt-4o-mini"} == {run.id}
    assert ledger_total() == provider.spent_nano == run.figures().spent_nano


def test_nested_execution_is_charged_with_its_own_threads_and_the_outer_with_all(provider: FakeProvider) -> None:
    def post() -> None:
        requests.post(f"{provider.openai_url}/chat/completions", json=ASK, timeout=10)

    with wflo_nb.execution("outer", budget_usd=1) as outer:
        in_thread(post)
        with wflo_nb.execution("inner", budget_usd="0.5") as inner:
            in_old_pool(post)
            in_thread(post)
        in_old_pool(post)
    assert [row["execution_id"] for row in ledger_calls()] == [outer.id, inner.id, inner.id, outer.id]
    assert outer.figures().spent_nano == provider.spent_nano == 2 * inner.figures().spent_nano


def test_task_that_outlives_its_execution_stays_charged_to_it_and_refused_by_it(provider: FakeProvider) -> None:
    async def post(session: aiohttp.ClientSession, go: asyncio.Event) -> int:
        await go.wait()
        async with session.post(f"{provider.openai_url}/chat/completions", json={**ASK, "max_tokens": 30}) as response:
            await response.read()
            return response.status

    async def work() -> tuple[list[str], list[Any]]:
        go = asyncio.Event()
        async with aiohttp.ClientSession() as session:
            async with wflo_nb.execution("first", budget_usd=1) as first:
                late = asyncio.create_task(post(session, go))
            async with wflo_nb.execution("spent", budget_usd=0) as spent:
                refused = asyncio.create_task(post(session, go))
            async with wflo_nb.execution("other", budget_usd=1):
                go.set()
                return [first.id, spent.id], await asyncio.gather(late, refused, return_exceptions=True)

    ids, (status, refusal) = asyncio.run(work())
    assert status == 200 and isinstance(refusal, wflo_nb.BudgetExceededError) and provider.requests == 1
    assert sorted((row["execution_id"], row["state"]) for row in ledger_calls()) == sorted(zip(ids, ["SETTLED", "REFUSED"], strict=True))


def test_answer_that_is_read_after_the_execution_or_in_another_is_charged_to_the_one_that_asked(provider: FakeProvider) -> None:
    with wflo_nb.execution("asked", budget_usd=1) as asked:
        response = requests.post(f"{provider.openai_url}/chat/completions", json={**ASK, "stream": True}, stream=True, timeout=10)
    with wflo_nb.execution("other", budget_usd=1) as other:
        assert response.content.endswith(b"data: [DONE]\n\n")
    (row,) = ledger_calls()
    assert (row["execution_id"], row["state"], row["cost_nano"]) == (asked.id, "SETTLED", provider.spent_nano)
    assert other.figures().calls == 0
