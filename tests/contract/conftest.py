"""One contract, three ways to keep it: a real SQLite file, a real PostgreSQL server, and the same server through a lease."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wflo_nb.model import BudgetState, Call, CallState, Execution, ExecutionStatus, new_id, now, now_us
from wflo_nb.store import Store, open_store


@pytest.fixture(params=["sqlite", "postgres", "leased"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the store of this test is."""
    monkeypatch.setenv("WFLO_OFFLINE", "lease" if request.param == "leased" else "refuse")
    return str(tmp_path / "store.db") if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def opened(where: str) -> Iterator[Callable[[], Store]]:
    """Opens the store of this test, as often as one likes."""
    stores: list[Store] = []

    def open_one() -> Store:
        store = open_store(where)
        # A contract that runs twice against the same database proves half of what it says.
        assert type(store._db).__name__ == ("Postgres" if where.startswith("postgresql") else "SQLite")
        assert store.local is not where.startswith("postgresql")
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Callable[[], Store]) -> Store:
    return opened()


def a_call(**changes: Any) -> Call:
    made = Call(new_id("call"), "exec-1", "openai", "chat", "gpt-4o", CallState.RESERVED, now_us(), holder="host|1|1|x")
    return replace(made, **changes)


def an_execution(id: str = "exec-1", **changes: Any) -> Execution:
    return replace(Execution(id, "a workflow", ExecutionStatus.RUNNING, now(), now()), **changes)


def a_budget(id: str = "cell", cap: int | None = 1000, parent: str | None = None) -> BudgetState:
    return BudgetState(id, "cell", cap, parent_id=parent)


def settled(call: Call, cost: int | None, **changes: Any) -> Call:
    return replace(call, state=CallState.SETTLED, cost_nano=cost, **changes)


def released(call: Call) -> Call:
    return replace(call, state=CallState.RELEASED, cost_nano=0)


def unconfirmed(call: Call) -> Call:
    return replace(call, state=CallState.UNCONFIRMED, reason="the stream was cut")
