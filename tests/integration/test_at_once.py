"""What a store can answer from memory, an event loop asks it in place; all else takes the way through the ledger's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import ledger_calls, ledger_total
from wflo_nb.budget import endings
from wflo_nb.budget.account import Account
from wflo_nb.capture import gate
from wflo_nb.capture.shown import Request
from wflo_nb.errors import BudgetExceededError
from wflo_nb.events import CallChanged
from wflo_nb.model import Call, CallState
from wflo_nb.store import Shortfall, Store
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime


@dataclass
class Memory:
    """What the store was asked in place, and what it does not know at once. What it answers is the real store's answer."""

    reserves: list[int | Shortfall] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    knows: Callable[[Call], bool] = lambda _: True
    breaks: BaseException | None = None


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    found = Memory()

    def reserve_now(self: Store, call: Call, chain: list[str], **how: int) -> int | Shortfall | None:
        if not found.knows(call):
            return None
        held = self.reserve(call, chain, **how)
        found.threads.add(threading.get_ident())
        found.reserves.append(held)
        if found.breaks:
            raise found.breaks
        return held

    def finish_now(self: Store, call: Call) -> bool:
        if not found.knows(call):
            return False
        self.finish(call)
        found.threads.add(threading.get_ident())
        found.finishes.append(call.id)
        if found.breaks:
            raise found.breaks
        return True

    monkeypatch.setattr(Store, "reserve_now", reserve_now)
    monkeypatch.setattr(Store, "finish_now", finish_now)
    return found


def chat(client: Any, cap: int | None = 4000, content: str = "a few words") -> Any:
    caps = {} if cap is None else {"max_tokens": cap}
    return client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": content}], **caps)


def gathered(client: Callable[[], Any], budget: object, *asks: str) -> tuple[Any, list[CallChanged]]:
    """One call to learn the price, then one for each of `asks` at the same time, inside a budget."""
    heard: list[CallChanged] = []

    async def work() -> Any:
        async with client() as one:
            with wflo_nb.execution(budget_usd=budget) as run:
                await chat(one, 10)
                await asyncio.to_thread(run.account.ledger.drain)
                undo = wflo_nb.subscribe(lambda event: heard.append(event) if isinstance(event, CallChanged) else None)
                try:
                    await asyncio.gather(*(chat(one, content=ask) for ask in asks))
                    await asyncio.to_thread(run.account.ledger.drain)
                finally:
                    undo()
            return run

    return asyncio.run(work()), heard


def counted_exactly(run: Any, provider: FakeProvider, heard: list[CallChanged], calls: int) -> None:
    """Ledger, figures and events all tell what the provider billed, and each call once."""
    figures = run.figures()
    assert provider.requests == figures.calls == calls + 1
    assert {row["state"] for row in ledger_calls()} == {"SETTLED"}
    assert provider.spent_nano == ledger_total() == figures.spent_nano == run.account.store.budget(run.id).spent_nano
    assert (figures.held_nano, figures.in_flight, run.account.store.budget(run.id).held_nano) == (0, 0, 0)
    states: dict[str, list[CallState]] = {}
    for event in heard:
        states.setdefault(event.call.id, []).append(event.call.state)
    assert list(states.values()) == [[CallState.RESERVED, CallState.SETTLED]] * calls
    assert not run.account.line.flying


def test_loop_asks_in_place_what_the_store_knows(provider: FakeProvider, async_openai: Callable[[], Any], memory: Memory) -> None:
    run, heard = gathered(async_openai, 5, *"abcdefgh")
    assert len(memory.reserves) == 8  # the first call had to look up its price, in the ledger's thread
    assert len(set(memory.finishes)) == len(memory.finishes) == 9
    assert memory.threads == {threading.get_ident()}
    counted_exactly(run, provider, heard, 8)


def test_what_the_store_does_not_know_at_once_goes_through_the_thread(
    provider: FakeProvider, async_openai: Callable[[], Any], memory: Memory
) -> None:
    turns = iter(range(1000))
    memory.knows = lambda _: next(turns) < 4  # then the line is long: who stands in it asks nobody in place
    run, heard = gathered(async_openai, 5, *"abcdefgh")
    assert 0 < len(memory.reserves) < 8
    assert 0 < len(memory.finishes) < 9
    counted_exactly(run, provider, heard, 8)


def test_what_does_not_fit_waits_and_nobody_is_overtaken(provider: FakeProvider, async_openai: Callable[[], Any], memory: Memory) -> None:
    provider.behave(delay=0.02)
    run, heard = gathered(async_openai, "0.1", *"abcdefgh")  # one hold at a time
    assert any(isinstance(held, Shortfall) for held in memory.reserves)
    assert [body["messages"][0]["content"] for body in provider.bodies[1:]] == list("abcdefgh")
    counted_exactly(run, provider, heard, 8)


@pytest.mark.usefixtures("memory")
def test_call_that_fits_does_not_overtake_one_that_waits(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    async def work() -> None:
        async with async_openai() as client:
            with wflo_nb.execution(budget_usd="0.1") as run:
                await chat(client, 10)
                provider.behave(delay=0.5)
                calls = [asyncio.create_task(chat(client, content=content)) for content in ("flies", "waits")]
                while not any(turn.waiting for turn in run.account.line.turns):
                    await asyncio.sleep(0.01)
                await asyncio.gather(*calls, chat(client, 10, "fits"))

    asyncio.run(work())
    assert [body["messages"][0]["content"] for body in provider.bodies[1:]] == ["flies", "waits", "fits"]


def test_fault_of_the_memory_loses_nothing(provider: FakeProvider, async_openai: Callable[[], Any], memory: Memory) -> None:
    memory.breaks = wflo_nb.errors.StoreError("broken for the test")
    run, heard = gathered(async_openai, 5, *"abcd")
    counted_exactly(run, provider, heard, 4)


def test_run_that_was_refused_is_not_asked_in_place(provider: FakeProvider, async_openai: Callable[[], Any], memory: Memory) -> None:
    async def work() -> None:
        async with async_openai() as client:
            with wflo_nb.execution(budget_usd="0.001"):
                for cap in (10, 4000):
                    await asyncio.gather(chat(client, cap), return_exceptions=True)
                asked = len(memory.reserves)
                with pytest.raises(BudgetExceededError, match="earlier call was refused"):
                    await chat(client, 10)
                assert len(memory.reserves) == asked

    with pytest.raises(BudgetExceededError):
        asyncio.run(work())
    assert provider.requests == 1


@pytest.fixture
def account() -> Account:
    account = runtime().new_run("at once", budget_nano=10**12).account
    account.begin()
    return account


def test_interrupted_reserve_holds_nothing(account: Account, memory: Memory) -> None:
    memory.breaks = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        account.reserve_now(account.new_call("openai", "chat", "gpt-4o", False), 100)
    assert account.store.budget(account.id).held_nano == 100
    account.ledger.drain()
    assert account.store.budget(account.id).held_nano == 0
    assert account.figures.held_nano == account.figures.in_flight == 0


def test_interrupted_end_is_recorded_once(account: Account, memory: Memory) -> None:
    call = account.reserve_now(account.new_call("openai", "chat", "gpt-4o", False), 100)
    assert call is not None
    memory.breaks = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        endings.finish_in_loop(account, call.changed(state=CallState.SETTLED, cost_nano=7))
    account.ledger.drain()
    state, figures = account.store.budget(account.id), account.figures
    assert (state.spent_nano, state.held_nano) == (figures.spent_nano, figures.held_nano) == (7, 0)
    assert (figures.calls, figures.in_flight) == (1, 0)


def test_account_that_is_not_in_the_ledger_yet_asks_through_the_thread(memory: Memory) -> None:
    account = runtime().new_run("new", budget_nano=10**12).account
    assert account.reserve_now(account.new_call("openai", "chat", "gpt-4o", False), 100) is None
    assert not memory.reserves


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "' + b"long " * 5000 + b'"}]}',
        b'{"model": "gpt-4o", "messages": [], "tools": [{"type": "web_search"}]}',
        b'{"model": "gpt-4o", "messages": [{"content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]}',
        b'{"model": "nobody-knows", "messages": []}',
        b'{"model": "gpt-4o", "messages": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b"no json",
    ],
)
def test_request_that_takes_long_or_may_be_refused_is_not_read_in_a_loop(account: Account, body: bytes) -> None:
    account.book.find("openai", "gpt-4o")
    account.store.close()  # whatever would be recorded now would fail
    request = Request("api.openai.com", "/v1/chat/completions", body)
    assert gate._understood_at_once(account, request, True) is None
    usual = Request("api.openai.com", "/v1/chat/completions", b'{"model": "gpt-4o", "messages": []}')
    assert gate._understood_at_once(account, usual, True) is not None
