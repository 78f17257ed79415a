"""agent-budget-guard 0.2.0, by `BudgetedSession.wrap_openai()` and `wrap_anthropic()`, without a callback, so that it raises.

It reserves an estimate before each call. Synchronous clients only (README: no async wrapper).
"""

from __future__ import annotations

from typing import Any

import anthropic  # noqa: F401
import base
import openai  # noqa: F401
from agent_budget_guard import BudgetedSession, BudgetExceededError
from base import Given


class Session(base.Session):
    refusals = (BudgetExceededError,)

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.own = BudgetedSession(budget_usd=given.budget_usd)

    def make_openai(self) -> Any:
        return self.own.wrap_openai(super().make_openai())

    def make_anthropic(self) -> Any:
        return self.own.wrap_anthropic(super().make_anthropic())

    def believed_usd(self) -> float | None:
        return float(self.own.get_total_spent())


class Enforcer(base.Enforcer):
    can = frozenset({"stream", "raw", "anthropic"})
    session_class = Session
