"""Streams that nobody reads to the end, warnings made errors, forks: the money of a call finds its end all the same."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls, ledger_total
from wflo_nb.budget.ledger import Ledger
from wflo_nb.budget.line import Turn
from wflo_nb.capture.exchange import Exchange
from wflo_nb.capture.transports import httpx as httpx_transport
from wflo_nb.errors import BudgetExceededError
from wflo_nb.store import rows
from wflo_nb.testing import FakeProvider


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Garbage is collected only where a test says so."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def abandon(client: Any) -> None:
    """Begin to read a stream, and forget it. It stays in the memory until the collector comes: SDKs make a cycle of it."""
    stream = client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=60, stream=True)
    next(iter(stream))


def test_abandoned_stream_that_is_collected_within_our_own_transaction_is_settled_after_it(
    provider: FakeProvider, openai_client: Any, monkeypatch: pytest.MonkeyPatch, no_collector: None
) -> None:
    grant = rows.grant

    def collecting(*args: Any) -> Any:
        monkeypatch.setattr(rows, "grant", grant)
        gc.collect()
        return grant(*args)

    def work() -> None:
        with wflo_nb.execution(budget_usd=1) as run:
            abandon(openai_client)
            monkeypatch.setattr(rows, "grant", collecting)
            openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=6000)  # more than was drawn ahead
            figures.append(run.figures())

    figures: list[Any] = []
    thread = threading.Thread(target=work, daemon=True)  # were it to wait for itself, it would wait for ever
    thread.start()
    thread.join(30)
    assert [(f.held_nano, f.in_flight, f.calls) for f in figures] == [(0, 0, 2)]
    assert [row["state"] for row in ledger_calls()] == ["UNCONFIRMED", "SETTLED"]
    assert ledger_total() == figures[0].spent_nano >= provider.spent_nano


@pytest.mark.parametrize("in_loop", [False, True])
def test_stream_that_nobody_began_to_read_is_settled_when_it_is_collected(
    provider: FakeProvider, openai_client: Any, async_openai: Callable[[], Any], in_loop: bool
) -> None:
    async def begin() -> None:
        await async_openai().chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=60, stream=True)
        gc.collect()

    with wflo_nb.execution(budget_usd=1) as run:
        if in_loop:
            asyncio.run(begin())
        else:
            openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=60, stream=True)
        gc.collect()
        run.account.ledger.drain()
        assert run.figures().in_flight == 0
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED" and run.account.store.budget(run.id).held_nano == 0


def test_answer_is_delivered_and_recorded_where_warnings_are_errors(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=16_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with wflo_nb.execution(budget_usd="0.01") as run:
            assert openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT).choices
    assert run.figures().spent_nano == ledger_total() == provider.spent_nano > 0


def test_fault_that_nobody_foresaw_does_not_cost_the_user_an_answer(
    provider: FakeProvider, openai_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(wflo_nb.errors.WfloWarning, match="could not be recorded"), wflo_nb.execution(budget_usd=1) as run:
        monkeypatch.setattr(run.account.store, "finish_now", lambda *_: 1 / 0)
        monkeypatch.setattr(run.account.store, "finish", lambda *_: 1 / 0)
        assert openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=60).choices
    assert run.figures().held_nano == 0


@pytest.mark.parametrize("step", ["reserve", "finish", "reserve_now", "finish_now"])
@pytest.mark.parametrize("done", [True, False])
def test_interrupt_in_the_middle_of_our_own_work_leaves_no_hold(
    provider: FakeProvider, openai_client: Any, monkeypatch: pytest.MonkeyPatch, step: str, done: bool
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(store, step, real)
        if done:
            real(*args, **kwargs)
        raise KeyboardInterrupt

    with wflo_nb.execution(budget_usd=1) as run:
        store = run.account.store
        if step in ("reserve", "finish"):  # as where nothing can be answered from memory
            monkeypatch.setattr(store, f"{step}_now", lambda *_, **__: None)
        else:
            openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=60)  # asks for more than it needs
            openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=60)
        real = getattr(store, step)
        monkeypatch.setattr(store, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=60)
    state, figures = store.budget(run.id), run.figures()
    assert (state.held_nano, figures.held_nano, figures.in_flight) == (0, 0, 0)
    assert state.spent_nano == figures.spent_nano == ledger_total() == provider.spent_nano


@pytest.mark.parametrize("in_loop", [False, True])
@pytest.mark.parametrize("place", [(Turn, "served"), (Exchange, "announce"), (Turn, "__exit__"), (httpx_transport, "_incoming")])
def test_interrupt_between_the_hold_and_the_answer_leaves_no_hold(
    provider: FakeProvider,
    openai_client: Any,
    async_openai: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[Any, str],
    in_loop: bool,
) -> None:
    owner, name = place

    def interrupted(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(owner, name, real)
        real(*args, **kwargs)
        raise KeyboardInterrupt

    asked: dict[str, Any] = {"model": "gpt-4o", "messages": PROMPT, **({} if name == "announce" else {"max_tokens": 60})}

    async def ask_in_loop() -> None:
        async with async_openai() as client:
            await client.chat.completions.create(**asked)

    with wflo_nb.execution(budget_usd=1) as run:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            if in_loop:
                asyncio.run(ask_in_loop())
            else:
                openai_client.chat.completions.create(**asked)
    state, figures = run.account.store.budget(run.id), run.figures()
    assert (state.held_nano, figures.held_nano, figures.in_flight) == (0, 0, 0)
    assert state.spent_nano == figures.spent_nano == ledger_total() >= provider.spent_nano
    (row,) = ledger_calls()
    assert row["state"] == ("UNCONFIRMED" if name == "_incoming" else "RELEASED")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_does_not_wait_for_what_its_parent_has_posted() -> None:
    ledger = Ledger()
    ledger.post(time.sleep, 0.5)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(int(ledger.drain()))
    assert os.waitpid(child, 0)[1] == 0
    assert ledger.drain()


def test_stop_is_for_calls_without_a_price_too(provider: FakeProvider, openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError, match="you stopped"), wflo_nb.execution(budget_usd=1, unknown_models="allow") as run:
        run.stop()
        openai_client.chat.completions.create(model="my-own-model-7b", messages=PROMPT)
    assert provider.requests == 0
