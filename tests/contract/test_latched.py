"""After a refusal nothing more is sent, and what eases it is found, whatever happened to the ledger and its rows meanwhile."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import an_execution
from tests.postgres import Server
from wflo_nb.budget import endings, shared
from wflo_nb.budget.account import Account
from wflo_nb.config import Settings
from wflo_nb.errors import BudgetExceededError
from wflo_nb.model import Call, CallState
from wflo_nb.pricing.book import PriceBook
from wflo_nb.store import open_store


def a_priced_call(account: Account) -> Call:
    return replace(account.new_call("openai", "chat", "gpt-4o", False), price_source="a table")


def test_a_call_after_a_refusal_is_refused_alike_when_the_server_is_down(own_postgres: Server, tmp_path: Path) -> None:
    store = open_store(own_postgres.url, settings=Settings(state_dir=tmp_path, offline="refuse"))
    account = Account(store, an_execution(budget_nano=1000), PriceBook(), scope="cell", wait=0)
    with pytest.raises(BudgetExceededError):
        account.reserve(a_priced_call(account), 2000, 2000)
    own_postgres.stop()
    try:
        with pytest.raises(BudgetExceededError):
            account.reserve(a_priced_call(account), 2000, 2000)
        assert account.figures.refused == 2
    finally:
        own_postgres.start()


@pytest.mark.parametrize("turned", [False, True], ids=["in time", "as it turns"])
def test_a_new_period_lets_a_run_go_on_that_was_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turned: bool) -> None:
    clock = [datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)]
    monkeypatch.setattr(shared, "now", lambda: clock[0])
    store = open_store(tmp_path / "store.db")
    shared.shared_budget(team="research", budget_usd=1, per="month", tz="UTC", store=store)
    account = Account(store, an_execution(), PriceBook(), scope="cell", shared=(shared.find(store, "team", "research"),))
    call = account.reserve(a_priced_call(account), 10**9, 10**9)
    assert call is not None
    endings.finish(account, replace(call, state=CallState.SETTLED, cost_nano=10**9))
    reserve = store.reserve

    def and_another_thread_turns(*asked: Any, **how: Any) -> Any:
        got = reserve(*asked, **how)
        if turned:
            clock[0] = datetime(2026, 12, 1, tzinfo=UTC)
            thread = threading.Thread(target=lambda: account.innermost and account.innermost.rows())
            thread.start()
            thread.join()
        return got

    monkeypatch.setattr(store, "reserve", and_another_thread_turns)
    with pytest.raises(BudgetExceededError):
        account.reserve(a_priced_call(account), 10**8, 10**8)
    monkeypatch.undo()
    monkeypatch.setattr(shared, "now", lambda: datetime(2026, 12, 1, 0, 0, 5, tzinfo=UTC))
    again = account.reserve(a_priced_call(account), 10**8, 10**8)
    assert again is not None and again.reserved_nano == 10**8
    store.close()
