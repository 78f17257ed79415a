"""Killed processes and failing stores: the hold is neither lost nor free, and no paid answer is thrown away."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls
from wflo_nb.errors import BudgetUnavailableError, StoreUnavailableError, WfloWarning
from wflo_nb.store import current, open_store
from wflo_nb.testing import FakeProvider

CALLS_AND_HANGS = """
import sys, wflo_nb
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key="x")
with wflo_nb.execution("doomed", budget_usd=1):
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}], max_tokens=100)
"""


def chat(client: Any) -> Any:
    return client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=50)


def test_hold_of_a_killed_process_is_counted_as_spent(provider: FakeProvider, state_dir: Path) -> None:
    provider.behave(delay=60)
    child = subprocess.Popen([sys.executable, "-c", CALLS_AND_HANGS, provider.openai_url])
    deadline = time.monotonic() + 60
    while not provider.requests and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    store = open_store()
    (row,) = ledger_calls(store)
    assert row["state"] == "UNCONFIRMED"
    assert row["cost_nano"] == row["reserved_nano"] >= provider.spent_nano > 0
    state = store.budget(row["execution_id"])
    assert (state.held_nano, state.spent_nano, state.unconfirmed_nano) == (0, row["cost_nano"], row["cost_nano"])
    execution = store.execution(row["execution_id"])
    assert execution.status == "FAILED"
    assert execution.error
    store.close()


def test_budgeted_call_is_not_sent_when_the_ledger_cannot_be_written(provider: FakeProvider, openai_client: Any) -> None:
    with (
        pytest.warns(WfloWarning, match="The end of execution could not be recorded"),
        pytest.raises(BudgetUnavailableError, match="no paid call may be sent"),
        wflo_nb.execution(budget_usd=1) as run,
    ):
        chat(openai_client)
        run.account.store.close()
        chat(openai_client)
    assert provider.requests == 1


def test_call_without_a_budget_goes_on_with_a_warning(provider: FakeProvider, openai_client: Any) -> None:
    with pytest.warns(WfloWarning, match="not recorded"), wflo_nb.execution() as run:
        run.account.store.close()
        assert chat(openai_client).choices
    assert run.figures().spent_nano == provider.spent_nano


def test_paid_answer_reaches_the_user_when_the_ledger_fails_after_it(
    provider: FakeProvider, openai_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(WfloWarning, match="could not be recorded"), wflo_nb.execution(budget_usd=1) as run:
        store = run.account.store

        def full(*_: object) -> None:
            raise StoreUnavailableError("the disk is full")

        monkeypatch.setattr(store, "finish_now", full)
        monkeypatch.setattr(store, "finish", full)
        assert chat(openai_client).choices
        monkeypatch.undo()
    state = current().budget(run.id)
    assert state.spent_nano + state.held_nano >= provider.spent_nano > 0


def test_five_processes_may_start_at_once_on_an_empty_folder(provider: FakeProvider, state_dir: Path) -> None:
    code = CALLS_AND_HANGS.replace("doomed", "first run")
    children = [subprocess.Popen([sys.executable, "-c", code, provider.openai_url], stderr=subprocess.PIPE) for _ in range(5)]
    failures = [child.communicate(timeout=120)[1].decode() for child in children if child.wait(120)]
    assert failures == []
    database = sqlite3.connect(state_dir / "wflo.db")
    total, calls = database.execute("SELECT sum(cost_nano), count(*) FROM llm_calls WHERE state = 'SETTLED'").fetchone()
    database.close()
    assert (total, calls) == (provider.spent_nano, 5)
