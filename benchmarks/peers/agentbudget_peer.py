"""agentbudget 0.4.0, by `AgentBudget.session()` and `wrap_client()`.

Its README calls these "the most predictable option" where calls run concurrently; the drop-in `init()` keeps its state per thread. Loop
detection (ten calls of one model a minute by default) is turned off: it counts calls, not money. Children are `child_session()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import agentbudget
import anthropic  # noqa: F401
import base
import openai  # noqa: F401
from agentbudget.exceptions import BudgetExhausted
from base import Given


class Session(base.Session):
    refusals = (BudgetExhausted,)
    own: Any

    def make_openai(self) -> Any:
        return agentbudget.wrap_client(super().make_openai(), self.own)

    def make_async_openai(self) -> Any:
        return agentbudget.wrap_client(super().make_async_openai(), self.own)

    def make_anthropic(self) -> Any:
        return agentbudget.wrap_client(super().make_anthropic(), self.own)

    @contextmanager
    def nested(self, budget_usd: float) -> Iterator[base.Session]:
        with suppress(BudgetExhausted), self.own.child_session(max_spend=budget_usd) as child:
            inner = Session(self.given)
            inner.own = child
            yield inner

    def believed_usd(self) -> float:
        return float(self.own.spent)


class Enforcer(base.Enforcer):
    can = base.Enforcer.can | {"nested"}

    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        budget = agentbudget.AgentBudget(max_spend=given.budget_usd, max_repeated_calls=1_000_000)
        with suppress(BudgetExhausted), budget.session() as own:
            session = Session(given)
            session.own = own
            yield session
