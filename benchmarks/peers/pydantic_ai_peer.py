"""pydantic-ai 2.68, by `UsageLimits(cost_limit=…)` and one `RunUsage` that all runs share, as documented for agents that call others.

See https://ai.pydantic.dev/agents/#usage-limits. Only what an agent's run can express is run: one prompt, one answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import base
from base import Given
from openai import AsyncOpenAI
from pydantic_ai import Agent, RunUsage, UsageLimitExceeded, UsageLimits
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Session(base.Session):
    refusals = (UsageLimitExceeded,)

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.usage = RunUsage()
        self.limits = UsageLimits(cost_limit=Decimal(str(given.budget_usd)), request_limit=None)

    def _agent(self, request: dict[str, Any]) -> tuple[Agent[None, str], dict[str, Any]]:
        client = AsyncOpenAI(base_url=f"{self.given.url}/v1", api_key="none", **self.given.client)
        model = OpenAIChatModel(request["model"], provider=OpenAIProvider(openai_client=client))
        settings = {"max_tokens": request["max_tokens"]} if "max_tokens" in request else {}
        return Agent(model), {"usage": self.usage, "usage_limits": self.limits, "model_settings": settings}

    @staticmethod
    def _prompt(request: dict[str, Any]) -> str:
        return "\n".join(message["content"] for message in request["messages"])

    def chat(self, **request: Any) -> Any:
        agent, options = self._agent(request)
        return agent.run_sync(self._prompt(request), **options)

    async def achat(self, **request: Any) -> Any:
        agent, options = self._agent(request)
        return await agent.run(self._prompt(request), **options)

    def stream(self, **request: Any) -> Iterator[Any]:
        agent, options = self._agent(request)
        result = agent.run_stream_sync(self._prompt(request), **options)
        yield from result.stream_text(delta=True, debounce_by=None)

    def believed_usd(self) -> float | None:
        return None if self.usage.cost is None else float(self.usage.cost)


class Enforcer(base.Enforcer):
    can = frozenset({"async", "stream"})
    session_class = Session
