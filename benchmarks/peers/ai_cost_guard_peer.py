"""ai-cost-guard 0.1.0, by ``check_budget`` before and ``record`` after each call, as its README, with a log file that processes share.

The estimate given is the most protective that a caller has: a token per four characters, and the output cap (the README's 500 without one).
A model that it does not list is registered by nobody here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic  # noqa: F401
import base
import openai  # noqa: F401
from ai_cost_guard import CostGuard
from ai_cost_guard.core.guard import BudgetExceededError
from ai_cost_guard.core.tracker import CostTracker
from base import Given


class Session(base.Session):
    refusals = (BudgetExceededError,)

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.guard = CostGuard(weekly_budget_usd=given.budget_usd, tracker=CostTracker(given.folder / "costs.json"))

    def _check(self, request: dict[str, Any], maker: str = "openai") -> str:
        model = f"{maker}/{request['model']}"
        self.guard.check_budget(model, len(str(request["messages"])) // 4, request.get("max_tokens", 500))
        return model

    def chat(self, **request: Any) -> Any:
        model = self._check(request)
        answer = super().chat(**request)
        self.guard.record(model, answer.usage.prompt_tokens, answer.usage.completion_tokens)
        return answer

    async def achat(self, **request: Any) -> Any:
        model = self._check(request)
        answer = await super().achat(**request)
        self.guard.record(model, answer.usage.prompt_tokens, answer.usage.completion_tokens)
        return answer

    def stream(self, **request: Any) -> Iterator[Any]:
        model = self._check(request)
        for chunk in base.Session.chat(self, stream=True, stream_options={"include_usage": True}, **request):
            if chunk.usage is not None:
                self.guard.record(model, chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            yield chunk

    def message(self, **request: Any) -> Any:
        model = self._check(request, "anthropic")
        answer = super().message(**request)
        self.guard.record(model, answer.usage.input_tokens, answer.usage.output_tokens)
        return answer

    def believed_usd(self) -> float | None:
        return float(self.guard.tracker.spent())


class Enforcer(base.Enforcer):
    can = frozenset({"async", "stream", "raw", "anthropic", "processes"})
    grows = True  # the whole file is read and written at each call
    session_class = Session

    def recorded(self, given: Given) -> int | None:
        return len(CostTracker(given.folder / "costs.json").calls())
