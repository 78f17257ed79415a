"""A process is forked while its threads work on the ledger: neither side may stand still, and the sums stay exact."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wflo_nb.budget import endings
from wflo_nb.budget.account import Account
from wflo_nb.budget.shared import find, shared_budget
from wflo_nb.model import BudgetState, Call, CallState, Usage
from wflo_nb.store import Store, open_store
from wflo_nb.workflow.runtime import runtime

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")

FORKS = 30
PATIENCE = 15
COST = 7


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return runtime().new_run("forked", budget_nano=10**12, store=open_store(tmp_path / "forks.db")).account


def one_call(account: Account) -> None:
    call = account.reserve(account.new_call("openai", "chat", "gpt-4o", False), 100, 100)
    assert call is not None
    endings.finish(account, replace(call, state=CallState.SETTLED, cost_nano=COST, usage=Usage(1, 1)))


def posted_call(account: Account) -> None:
    """As an event loop does it: through the ledger's thread."""
    call: Call | None = account.ledger._submit(account.reserve, account.new_call("openai", "chat", "gpt-4o", False), 100, 100).result(
        PATIENCE
    )
    assert call is not None
    account.ledger.post(endings.finish, account, replace(call, state=CallState.SETTLED, cost_nano=COST, usage=Usage(1, 1)))
    account.ledger.drain()


def forked(work: Callable[[], object]) -> int:
    """The exit code of a child that does `work`; a child that stands still is ended by the system."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + PATIENCE + 10
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("way", [one_call, posted_call])
def test_forks_under_load_stand_still_on_neither_side(account: Account, way: Callable[[Account], None]) -> None:
    made = [0] * 4
    stop = threading.Event()

    def load(number: int) -> None:
        while not stop.is_set():
            way(account)
            made[number] += 1

    account.begin()
    threads = [threading.Thread(target=load, args=(n,), daemon=True) for n in range(len(made))]
    for thread in threads:
        thread.start()
    codes = [forked(lambda: way(account)) for _ in range(FORKS)]
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(t.is_alive() for t in threads)
    assert codes == [0] * FORKS
    assert all(made)
    state = account.store.budget(account.id)
    assert (state.spent_nano, state.held_nano) == ((sum(made) + FORKS) * COST, 0)


def test_child_does_not_wait_for_a_lock_that_a_thread_of_the_parent_held(account: Account) -> None:
    account.begin()
    result: list[int] = []
    forks = threading.Thread(target=lambda: result.append(forked(lambda: (one_call(account), posted_call(account)))))
    with account._lock, account.ledger._lock, account.line._moved:
        forks.start()
        forks.join(2 * PATIENCE + 10)
    assert result == [0]


def test_store_can_be_used_on_both_sides(account: Account) -> None:
    store: Store = account.store
    account.begin()
    one_call(account)
    assert forked(lambda: one_call(account)) == 0
    one_call(account)
    assert store.budget(account.id).spent_nano == 3 * COST


def test_child_of_a_process_that_was_reading_a_shared_budget_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "forks.db")
    team = shared_budget(team="research", budget_usd=5, store=store)
    reading, go_on = threading.Event(), threading.Event()
    budget = store.budget

    def slow(id: str) -> BudgetState:
        reading.set()
        go_on.wait(PATIENCE)
        return budget(id)

    monkeypatch.setattr(store, "budget", slow)
    thread = threading.Thread(target=team.refresh)
    thread.start()
    reading.wait(PATIENCE)
    monkeypatch.setattr(store, "budget", budget)
    try:
        assert forked(lambda: (team.set_cap(7 * 10**9), find(store, "team", "research"))) == 0
    finally:
        go_on.set()
        thread.join()
        store.close()
