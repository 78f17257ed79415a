"""agent-cost-guardrails 0.1.0, by `BudgetGuard.pre_call_check` before and `post_call_record` after each call, as its README."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic  # noqa: F401
import base
import openai  # noqa: F401
from agent_cost_guardrails import BudgetExceededError, BudgetGuard, CircuitBreakerTrippedError
from base import Given


class Session(base.Session):
    refusals = (BudgetExceededError, CircuitBreakerTrippedError)

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.guard = BudgetGuard(max_usd=given.budget_usd)

    def _check(self, request: dict[str, Any]) -> None:
        self.guard.pre_call_check(estimated_tokens=len(str(request["messages"])) // 4 + request.get("max_tokens", 0))

    def chat(self, **request: Any) -> Any:
        self._check(request)
        answer = super().chat(**request)
        self.guard.post_call_record(request["model"], answer.usage.prompt_tokens, answer.usage.completion_tokens)
        return answer

    async def achat(self, **request: Any) -> Any:
        self._check(request)
        answer = await super().achat(**request)
        self.guard.post_call_record(request["model"], answer.usage.prompt_tokens, answer.usage.completion_tokens)
        return answer

    def stream(self, **request: Any) -> Iterator[Any]:
        self._check(request)
        for chunk in base.Session.chat(self, stream=True, stream_options={"include_usage": True}, **request):
            if chunk.usage is not None:
                self.guard.post_call_record(request["model"], chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            yield chunk

    def message(self, **request: Any) -> Any:
        self._check(request)
        answer = super().message(**request)
        self.guard.post_call_record(request["model"], answer.usage.input_tokens, answer.usage.output_tokens)
        return answer

    def believed_usd(self) -> float | None:
        return float(self.guard.tracker.total_cost)


class Enforcer(base.Enforcer):
    session_class = Session
