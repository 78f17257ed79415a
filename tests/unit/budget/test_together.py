"""Calls that end at the same time in event loops are recorded together, and each as if it had ended alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from wflo_nb.budget import endings
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
        endings.finish_in_loop(account, replace(call, state=CallState.SETTLED, cost_nano=7, usage=Usage(3, 2)))
    free.set()
    account.ledger.drain()


def test_calls_that_end_at_once_wait_for_the_disk_once(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [reserved(account) for _ in range(CALLS)]
    durable: list[int] = []
    real = SQLite.book
    monkeypatch.setattr(SQLite, "book", lambda self, work, **more: (durable.append(1), real(self, work, **more))[1])
    end_at_once(account, calls)
    account.store.write_out()
    assert len(durable) <= 2  # the second if a beat came in between
    state, figures = account.store.budget(account.id), account.figures
    assert (state.spent_nano, state.held_nano) == (7 * CALLS, 0)
    assert (figures.spent_nano, figures.held_nano, figures.in_flight, figures.calls) == (7 * CALLS, 0, 0, CALLS)
    assert (figures.input_tokens, figures.output_tokens) == (3 * CALLS, 2 * CALLS)


def test_one_that_cannot_be_recorded_does_not_keep_the_others_back_nor_its_cost(account: Account) -> None:
    calls = [reserved(account) for _ in range(CALLS)]
    calls[5] = replace(calls[5], meta={}, http_status=2**70)  # more than a column holds
    end_at_once(account, calls)
    with pytest.warns(UserWarning, match="only what it cost could be recorded"):
        account.store.write_out()
    state = account.store.budget(account.id)
    assert (state.spent_nano, state.held_nano, state.unconfirmed_nano) == (7 * CALLS, 0, 0)
    rows = account.store.read("calls")
    broken = rows["id"].index(calls[5].id)
    assert (rows["state"][broken], rows["cost_nano"][broken]) == ("SETTLED", 7)
    assert "could not be entered" in rows["reason"][broken]


def test_one_that_the_ledger_does_not_know_is_recorded_with_the_others(account: Account) -> None:
    account.begin()
    end_at_once(account, [reserved(account), account.new_call("openai", "chat", "gpt-4o", False), reserved(account)])
    assert account.store.budget(account.id).spent_nano == 21
