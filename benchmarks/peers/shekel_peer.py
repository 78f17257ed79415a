"""shekel 1.2.0, by ``with budget(max_usd=…)``, as its README begins; nested blocks for nested budgets (they must be named).

Over several processes it needs a Redis server, which this benchmark does not start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anthropic  # noqa: F401
import base
import openai  # noqa: F401
from base import Given
from shekel import BudgetExceededError, budget


class Session(base.Session):
    refusals = (BudgetExceededError,)
    own: Any
    inner = 0

    @contextmanager
    def nested(self, budget_usd: float) -> Iterator[base.Session]:
        self.inner += 1  # a name may be used once
        with suppress(BudgetExceededError), budget(max_usd=budget_usd, name=f"inner-{self.inner}"):
            yield self

    def believed_usd(self) -> float:
        return float(self.own.spent)


class Enforcer(base.Enforcer):
    can = base.Enforcer.can | {"nested"}
    leaves = True

    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        with suppress(BudgetExceededError), budget(max_usd=given.budget_usd, name="outer") as own:
            session = Session(given)
            session.own = own
            yield session
