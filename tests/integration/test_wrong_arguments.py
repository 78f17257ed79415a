"""What is wrong is said where it is written, with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import wflo_nb
from wflo_nb.errors import ConfigurationError

anything: Any = 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: wflo_nb.execution(anything), r"budget_usd=5"),
        (lambda: wflo_nb.execution(prices=anything), "prices="),
        (lambda: wflo_nb.WfloWorkflow("w", per_agent_budgets=anything), "researcher"),
        (lambda: wflo_nb.join(anything), "ticket"),
        (lambda: wflo_nb.join('{"v": 1}'), "ticket"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()
