"""In which order those who listen hear of an execution and its calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import wflo_nb
from wflo_nb.budget import endings
from wflo_nb.events import CallChanged, Event, ExecutionEnded, ExecutionStarted
from wflo_nb.workflow.runtime import runtime


@pytest.fixture
def listen() -> Iterator[Callable[[Callable[[Event], object]], None]]:
    undo: list[Callable[[], None]] = []
    yield lambda listener: undo.append(wflo_nb.subscribe(listener))
    for one in undo:
        one()


def one_call(account: Any) -> None:
    endings.release(account, account.reserve(account.new_call("openai", "chat", "gpt-4o-mini", False), 0, 0))


def test_nobody_hears_of_a_call_before_its_execution(listen: Callable[[Callable[[Event], object]], None]) -> None:
    account = runtime().new_run("lazy").account  # enters the ledger with its first call, as a cell does
    called, heard, threads = threading.Event(), list[type](), list[threading.Thread]()

    def slow(event: Event) -> None:
        if isinstance(event, ExecutionStarted):
            threads.append(threading.Thread(target=one_call, args=(account,)))
            threads[0].start()
            called.wait(0.5)  # long enough for a call that does not wait
        elif isinstance(event, CallChanged):
            called.set()

    listen(slow)
    listen(lambda event: heard.append(type(event)))
    one_call(account)
    threads[0].join()
    endings.end(account, wflo_nb.model.ExecutionStatus.COMPLETED)
    assert heard[0] is ExecutionStarted
    assert heard[1:-1] == [CallChanged] * 4
    assert heard[-1] is ExecutionEnded


def test_execution_is_told_and_recorded_after_the_one_that_it_lies_in(listen: Callable[[Callable[[Event], object]], None]) -> None:
    started: list[str] = []
    listen(lambda event: started.append(event.execution.workflow) if isinstance(event, ExecutionStarted) else None)
    outer = runtime().new_run("cell")  # that has made no call of its own yet
    leave = outer.enter()
    with wflo_nb.execution("graph") as inner:
        one_call(inner.account)
    leave()
    outer.end()
    assert started == ["cell", "graph"]
    frame = wflo_nb.report.executions()
    assert frame["workflow"].tolist() == started
    assert frame["parent_id"].tolist()[1] == frame["id"].tolist()[0]
    assert frame["status"].tolist() == ["COMPLETED"] * 2
