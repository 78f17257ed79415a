from __future__ import annotations

import logging

import pytest

from wflo_nb import events
from wflo_nb.events import BudgetChanged, Figures, subscribe

EVENT = BudgetChanged("exec-1", Figures())


def test_listener_hears_until_it_is_undone() -> None:
    heard: list[object] = []
    undo = subscribe(heard.append)
    events.emit(EVENT)
    undo()
    undo()
    events.emit(EVENT)
    assert heard == [EVENT]


def test_failing_listener_is_logged_and_the_others_still_hear(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: object) -> None:
        raise RuntimeError("broken listener")

    heard: list[object] = []
    undo = [subscribe(fail), subscribe(heard.append)]
    with caplog.at_level(logging.ERROR):
        events.emit(EVENT)
    for take_back in undo:
        take_back()
    assert heard == [EVENT]
    assert "broken listener" in caplog.text
