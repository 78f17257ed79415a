"""A notebook's cap that changes, or moves to another store, while threads and processes of the notebook go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import Kernel, start
from wflo_nb.testing import FakeProvider

SETUP = """
import multiprocessing, openai, queue, threading, time
client = openai.OpenAI()
def ask(model="gpt-4o-mini"):
    asked = [{"role": "user", "content": "a question"}]
    return client.chat.completions.create(model=model, messages=asked, max_tokens=50)
def outcome(job, *given):
    try:
        job(*given)
        return "ok"
    except BaseException as error:
        return type(error).__name__
def all_of_it():
    while True:
        ask()
todo, said = queue.Queue(), queue.Queue()
def work():
    while True:
        said.put(outcome(*todo.get()))
def by_the_thread(*job):
    todo.put(job)
    return said.get(timeout=60)
"""
THREAD = "threading.Thread(target=work, daemon=True).start()"


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, bill: FakeProvider) -> Iterator[Kernel]:
    kernel = start(tmp_path_factory.mktemp("own"), bill)
    assert kernel.run("%load_ext wflo_nb").status == "ok"
    assert kernel.run(SETUP).status == "ok"
    yield kernel
    kernel.close()


def test_what_is_left_goes_along_to_another_store_and_comes_back(own: Kernel, tmp_path: Path) -> None:
    own.run("%wflo budget notebook=0.001")
    own.run("for _ in range(50): ask()")
    own.run(f"%wflo connect {tmp_path}/other.db")
    own.run("%wflo connect default")
    assert own.run("outcome(ask)").result == "'ok'"
    own.run("%wflo connect default")  # where it is
    assert own.run("outcome(ask)").result == "'ok'"


def test_a_thread_that_was_left_behind_gets_nothing_twice(own: Kernel, bill: FakeProvider, tmp_path: Path) -> None:
    own.run("%wflo budget notebook=0.001")
    own.run(THREAD)
    before = bill.spent_nano
    own.run(f"%wflo connect {tmp_path}/other.db")
    assert own.run("outcome(all_of_it), by_the_thread(all_of_it)").result == "('BudgetExceededError', 'BudgetExceededError')"
    assert 900_000 <= bill.spent_nano - before <= 1_000_000


@pytest.mark.parametrize("team", ["", "team=research"])
def test_a_thread_that_was_left_behind_follows_the_notebooks_cap(own: Kernel, team: str) -> None:
    own.run(THREAD)
    assert own.run("by_the_thread(ask)").result == "'ok'"
    own.run(f"%wflo budget notebook=0.0001 {team}")
    assert own.run("by_the_thread(ask, 'nobody-knows-this')").result == "'UnknownModelError'"
    assert own.run("by_the_thread(all_of_it)").result == "'BudgetExceededError'"
    own.run(f"%wflo budget notebook=1 {team}")
    assert own.run("by_the_thread(ask)").result == "'ok'"


def test_a_forked_worker_goes_on_when_the_cap_is_raised(own: Kernel) -> None:
    own.run("%wflo budget notebook=0.0001")
    own.run("pool = multiprocessing.get_context('fork').Pool(1)")
    assert own.run("pool.apply(outcome, (all_of_it,))").result == "'BudgetExceededError'"
    own.run("%wflo budget notebook=1")
    assert own.run("pool.apply(outcome, (ask,))").result == "'ok'"
