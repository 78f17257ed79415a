"""A hold is an upper bound, so a burst waits for what earlier calls give back, instead of being refused with money left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls
from wflo_nb.budget import line
from wflo_nb.budget.account import Account
from wflo_nb.budget.line import Line
from wflo_nb.errors import BudgetExceededError, ConfigurationError
from wflo_nb.model import nano_from_usd
from wflo_nb.testing import FakeProvider


def chat(client: Any, cap: int = 4000) -> Any:
    return client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=cap)


@pytest.fixture
def in_flight(provider: FakeProvider, openai_client: Any) -> Iterator[Callable[[], None]]:
    """Puts one slow call on its way, from a thread that is over when the test is."""
    threads: list[threading.Thread] = []

    def send() -> None:
        threads.append(threading.Thread(target=chat, args=(openai_client,)))
        threads[0].start()
        while not provider.requests:
            time.sleep(0.01)

    yield send
    for thread in threads:
        thread.join()


def test_fifty_gathered_calls_all_run_when_their_true_cost_fits(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    provider.behave(delay=0.01)

    async def work() -> None:
        async with async_openai() as client:
            with wflo_nb.execution(budget_usd="0.2"):  # holds of 0.07 each: two at a time
                await asyncio.gather(*(chat(client) for _ in range(50)))

    asyncio.run(work())
    assert provider.requests == 50
    assert {row["state"] for row in ledger_calls()} == {"SETTLED"}


def test_threads_wait_their_turn_too(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution(budget_usd="0.1"):  # one hold at a time
        threads = [threading.Thread(target=chat, args=(openai_client,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert provider.requests == 12


def test_wait_of_zero_refuses_at_once(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    provider.behave(delay=0.3)

    async def work() -> None:
        async with async_openai() as client:
            with wflo_nb.execution(budget_usd="0.1", wait=0):
                await asyncio.gather(*(chat(client) for _ in range(5)), return_exceptions=True)

    with pytest.raises(BudgetExceededError):
        asyncio.run(work())
    assert provider.requests == 1


def test_call_that_could_never_fit_does_not_wait(provider: FakeProvider, openai_client: Any, in_flight: Callable[[], None]) -> None:
    provider.behave(delay=1.5)
    with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd="0.1"):
        in_flight()
        chat(openai_client, cap=16_000)
    assert sum(row["state"] == "SETTLED" for row in ledger_calls()) == 0  # the refusal came while the first was still in flight


def test_wait_ends_in_a_refusal_when_no_money_comes_back_in_time(
    provider: FakeProvider, openai_client: Any, in_flight: Callable[[], None]
) -> None:
    provider.behave(delay=2.0)
    with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd="0.1", wait=0.5):
        in_flight()
        chat(openai_client)
    assert provider.requests == 1


def test_calls_that_wait_are_served_in_the_order_they_came(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    provider.behave(delay=0.02)

    async def work() -> None:
        async with async_openai() as client:
            await asyncio.to_thread(int)  # the SDK's first call starts a thread of its own; later ones arrive in order
            with wflo_nb.execution(budget_usd="0.1"):
                await chat(client)
                asks = [{"role": "user", "content": f"number {i}"} for i in range(8)]
                await asyncio.gather(*(client.chat.completions.create(model="gpt-4o", messages=[a], max_tokens=4000) for a in asks))

    asyncio.run(work())
    order = [body["messages"][0]["content"] for body in provider.bodies[1:]]
    assert order == [f"number {i}" for i in range(8)]


def test_cancelled_waiter_leaves_the_line_and_holds_nothing(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    provider.behave(delay=0.5)

    async def work() -> None:
        async with async_openai() as client:
            with wflo_nb.execution(budget_usd="0.1") as run:
                first = asyncio.create_task(chat(client))
                while not provider.requests:
                    await asyncio.sleep(0.01)
                waiting, last = asyncio.create_task(chat(client)), asyncio.create_task(chat(client))
                await asyncio.sleep(0.1)
                waiting.cancel()
                await asyncio.gather(first, last)
            assert run.figures().held_nano == 0
            assert len(run.account.line) == 0

    asyncio.run(work())
    assert provider.requests == 2


@pytest.mark.parametrize("budget", ["1", "0.0001"])
def test_call_that_is_cancelled_while_the_ledger_is_asked_leaves_nothing_behind(
    provider: FakeProvider,
    async_openai: Callable[[], Any],
    budget: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked, go_on, real = threading.Event(), threading.Event(), Account._hold

    def slow(self: Account, *what: Any) -> Any:
        asked.set()
        go_on.wait(30)
        return real(self, *what)

    async def work() -> None:
        async with async_openai() as client:
            with wflo_nb.execution(budget_usd=1):
                await chat(client)  # the price is known from here on
            monkeypatch.setattr(Account, "_hold", slow)
            monkeypatch.setattr(Account, "reserve_now", lambda *_: None)
            with contextlib.suppress(BudgetExceededError), wflo_nb.execution(budget_usd=budget, wait=0) as run:
                task = asyncio.create_task(chat(client))
                await asyncio.to_thread(asked.wait, 30)
                task.cancel()
                await asyncio.wait([task])
                go_on.set()
                await asyncio.to_thread(lambda: run.account.ledger._submit(run.account.ledger.drain).result())
                await asyncio.to_thread(run.account.ledger.drain)
            ours, figures = run.account.line, run.figures()
            assert not ours.flying and not ours.held and not ours.turns
            assert (figures.held_nano, figures.spent_nano, figures.in_flight) == (0, 0, 0)

    asyncio.run(work())
    gc.collect()
    assert provider.requests == 1
    assert "never retrieved" not in caplog.text


def test_plain_call_inside_a_loop_does_not_wait_for_tasks_that_it_keeps_from_moving(
    provider: FakeProvider, openai_client: Any, async_openai: Callable[[], Any]
) -> None:
    async def plain(delay: float) -> None:
        await asyncio.sleep(delay)
        chat(openai_client, cap=10)

    async def work() -> None:
        async with async_openai() as client:
            await chat(client)
            with wflo_nb.execution(budget_usd="0.1", wait=3600):
                await asyncio.gather(chat(client, cap=10), plain(0))  # the task is about to ask
                provider.behave(delay=0.5)
                asks = [asyncio.create_task(chat(client)) for _ in range(3)]
                await asyncio.gather(plain(0.2), *asks)  # two tasks wait for money

    asyncio.run(asyncio.wait_for(work(), 60))
    assert provider.requests == 7


def test_plain_call_does_not_wait_for_answers_that_its_own_loop_would_have_to_read(
    provider: FakeProvider, openai_client: Any, async_openai: Callable[[], Any]
) -> None:
    provider.behave(delay=0.5)

    async def work() -> None:
        async with async_openai() as client:
            with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd="0.1", wait=3600) as run:
                first = asyncio.create_task(chat(client))
                while not provider.requests:
                    await asyncio.sleep(0.01)
                try:
                    chat(openai_client)
                finally:
                    await first
            assert not run.account.line.flying

    asyncio.run(work())
    assert provider.requests == 1


def test_plain_call_does_not_wait_for_answers_that_trio_would_have_to_read(
    provider: FakeProvider, openai_client: Any, async_openai: Callable[[], Any]
) -> None:
    provider.behave(delay=0.5)

    async def work() -> None:
        with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd="0.1", wait=3600) as run:
            async with async_openai() as client, trio.open_nursery() as nursery:
                nursery.start_soon(chat, client)
                while not provider.requests:
                    await trio.sleep(0.01)
                with contextlib.suppress(BudgetExceededError):  # the block says it once more at its end
                    chat(openai_client)
        assert not run.account.line.flying

    trio.run(work)
    assert provider.requests == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_does_not_stand_behind_those_who_wait_in_the_parent(
    provider: FakeProvider, openai_client: Any, in_flight: Callable[[], None]
) -> None:
    provider.behave(delay=1.0)
    with wflo_nb.execution(budget_usd="0.1", wait=3600) as run:
        in_flight()
        waiting = threading.Thread(target=chat, args=(openai_client,))
        waiting.start()
        while not any(turn.waiting for turn in run.account.line.turns):
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            with run.account.line.turn(1) as turn:
                os._exit(0 if turn.first else 1)
        assert os.waitpid(child, 0)[1] == 0
        waiting.join()


def test_loop_of_a_library_that_nobody_knows_is_not_waited_in() -> None:
    with Line().turn(3600) as turn:
        with pytest.raises(StopIteration):
            turn.wait_in_loop().send(None)
        assert turn.over


def test_loop_of_trio_goes_on_while_calls_wait(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    provider.behave(delay=0.05)

    async def work() -> None:
        with wflo_nb.execution(budget_usd="0.1"):  # one hold at a time
            async with async_openai() as client, trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(chat, client)

    trio.run(work)
    assert provider.requests == 6
    assert {row["state"] for row in ledger_calls()} == {"SETTLED"}


def test_call_that_trio_cancels_while_it_waits_holds_nothing(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    provider.behave(delay=0.5)

    async def work() -> None:
        with wflo_nb.execution(budget_usd="0.1") as run:
            async with async_openai() as client, trio.open_nursery() as nursery:
                nursery.start_soon(chat, client)
                while not provider.requests:
                    await trio.sleep(0.01)
                with trio.move_on_after(0.1) as scope:
                    await chat(client)
                assert scope.cancelled_caught
            run.account.ledger.drain()
            assert not run.account.line.held and not run.account.line.turns

    trio.run(work)
    assert provider.requests == 1
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"]


def test_stopping_the_run_ends_the_waiting(provider: FakeProvider, openai_client: Any, in_flight: Callable[[], None]) -> None:
    provider.behave(delay=1.0)
    with pytest.raises(BudgetExceededError, match="you stopped"), wflo_nb.execution(budget_usd="0.1", wait=60) as run:
        in_flight()
        threading.Timer(0.2, run.stop).start()
        chat(openai_client)
    assert provider.requests == 1


def test_raised_budget_serves_those_who_wait(provider: FakeProvider, openai_client: Any, in_flight: Callable[[], None]) -> None:
    provider.behave(delay=1.0)
    with wflo_nb.execution(budget_usd="0.1", wait=60) as run:
        in_flight()
        threading.Timer(0.2, run.set_budget, [nano_from_usd(1)]).start()
        chat(openai_client)
    assert provider.requests == 2


@pytest.fixture
def endless_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lets others join the line first does so for ever."""
    monkeypatch.setattr(line, "_QUIET", 3600.0)
    monkeypatch.setattr(line, "_GATHERED", 3600.0)


def asks_at_once(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.usefixtures("endless_gathering")
def test_call_with_a_cap_of_its_own_lets_nobody_join_first(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution(budget_usd="0.1"):
        asks_at_once(lambda: chat(openai_client, cap=10))
    assert provider.requests == 1


@pytest.mark.usefixtures("endless_gathering")
def test_call_without_a_cap_lets_nobody_join_first_while_there_is_enough(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution(budget_usd=5):
        asks_at_once(lambda: openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT))
    assert provider.requests == 1


@pytest.mark.usefixtures("endless_gathering")
@pytest.mark.filterwarnings("ignore:A call to gpt-4o names no output limit")
def test_plain_call_inside_a_loop_lets_nobody_join_first(provider: FakeProvider, openai_client: Any) -> None:
    async def work() -> None:
        openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT)

    with wflo_nb.execution(budget_usd="0.1"):
        asks_at_once(lambda: asyncio.run(work()))
    assert provider.requests == 1


@pytest.mark.usefixtures("endless_gathering")
def test_call_that_is_cancelled_while_it_lets_others_join_holds_nothing(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    async def work() -> None:
        async with async_openai() as client:
            with wflo_nb.execution(budget_usd="0.1") as run:
                one = asyncio.create_task(client.chat.completions.create(model="gpt-4o", messages=PROMPT))
                while not any(turn.gathering for turn in run.account.line.turns):
                    await asyncio.sleep(0.01)
                one.cancel()
                await asyncio.wait([one])
                assert one.cancelled()
            assert run.figures().held_nano == len(run.account.line) == 0

    asyncio.run(work())
    assert provider.requests == 0


@pytest.mark.parametrize("bad", [-1, "soon", True, float("inf"), float("nan")])
def test_wait_that_is_no_number_of_seconds_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="wait="):
        wflo_nb.execution(wait=bad)
