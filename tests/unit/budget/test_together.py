"""Calls that end at the same time in event loops are recorded together, and each as if it had ended alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from wflo_nb.budget.account import Account
from wflo_nb.model import Call, CallState, Usage
from wflo_nb.store import open_store
from wflo_nb.store.sqlite import SQLite
from wflo_nb.workflow.runtime import runtime

CALLS = 20


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return runtime().new_run("together", budget_nano=10**12, store=open_store(tmp_path / "x.db")).account


def reserved(account: Account) -> Call:
    call = account.reserve(account.new_call("openai", "chat", "gpt-4o", False), 100, 100)
    assert call is not None
    return call


def end_at_once(account: Account, calls: list[Call]) -> None:
    """Post the ends of calls while the ledger's thread is busy with something else."""
    free = threading.Event()
    account.ledger.post(free.wait, 10)
    for call in calls:
        account.finish_in_loop(replace(call, state=CallState.SETTLED, cost_nano=7, usage=Usage(3, 2)))
    free.set()
    account.ledger.drain()


def test_calls_that_end_at_once_wait_for_the_disk_once(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [reserved(account) for _ in range(CALLS)]
    durable: list[int] = []
    real = SQLite.transact
    monkeypatch.setattr(SQLite, "transact", lambda self, work, **more: (durable.append(1), real(self, work, **more))[1])
    end_at_once(account, calls)
    assert len(durable) == 1
    state, figures = account.store.budget(account.id), account.figures
    assert (state.spent_nano, state.held_nano) == (7 * CALLS, 0)
    assert (figures.spent_nano, figures.held_nano, figures.in_flight, figures.calls) == (7 * CALLS, 0, 0, CALLS)
    assert (figures.input_tokens, figures.output_tokens) == (3 * CALLS, 2 * CALLS)


def test_one_that_cannot_be_recorded_does_not_take_the_others_with_it(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [reserved(account) for _ in range(CALLS)]
    broken = calls[5].id
    real = SQLite._ending

    def ending(self: SQLite, call: object, cost: object) -> object:
        if call["id"] == broken:  # type: ignore[index]
            raise RuntimeError("this one breaks")
        return real(self, call, cost)  # type: ignore[arg-type]

    monkeypatch.setattr(SQLite, "_ending", ending)
    with pytest.warns(UserWarning, match="could not be recorded"):
        end_at_once(account, calls)
    state = account.store.budget(account.id)
    assert (state.spent_nano, state.held_nano) == (7 * (CALLS - 1), 100)
    assert account.figures.unconfirmed_nano == 100
    assert account.figures.in_flight == 0


def test_one_that_the_ledger_does_not_know_is_recorded_with_the_others(account: Account) -> None:
    account.begin()
    end_at_once(account, [reserved(account), account.new_call("openai", "chat", "gpt-4o", False), reserved(account)])
    assert account.store.budget(account.id).spent_nano == 21
