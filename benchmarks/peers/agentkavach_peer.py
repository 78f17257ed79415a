"""agentkavach 2.1.0, by ``AgentKavach(budget=Budget.total(…)).create(…)``, as its README; one guard a provider.

Its telemetry is pointed at a closed port of this machine, or at a sink where there is one. It makes its client itself; here it gets one
with our options.
"""

from __future__ import annotations

from typing import Any

import agentkavach
import base
from agentkavach.exceptions import BudgetExceededError
from base import Given


class Session(base.Session):
    refusals = (BudgetExceededError,)

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.guards: dict[str, Any] = {}

    def _guard(self, provider: str) -> Any:
        with self._lock:
            if provider not in self.guards:
                guard = agentkavach.AgentKavach(
                    provider=provider,
                    api_key="ak_none",
                    llm_key="none",
                    agent_name="bench",
                    budget=agentkavach.Budget.total(self.given.budget_usd),
                    endpoint=self.given.sink or "http://127.0.0.1:9",
                    buffer_path=str(self.given.folder / "buffer"),
                )
                if provider == "openai":
                    guard._openai_client = self.make_openai()
                else:
                    guard._anthropic_client = self.make_anthropic()
                self.guards[provider] = guard
        return self.guards[provider]

    def chat(self, **request: Any) -> Any:
        return self._guard("openai").create(**request)

    def message(self, **request: Any) -> Any:
        return self._guard("anthropic").create(**request)

    def believed_usd(self) -> float | None:
        return sum(float(guard.spent) for guard in self.guards.values())

    def flush(self) -> None:
        for guard in self.guards.values():
            guard._tracer_provider.force_flush()


class Enforcer(base.Enforcer):
    can = frozenset({"stream", "raw", "anthropic"})
    session_class = Session
