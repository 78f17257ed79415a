"""agentguard47 2.0.0, by `patch_openai(tracer, budget_guard=BudgetGuard(max_cost_usd=…))` and its async and Anthropic kin (README)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import agentguard
import anthropic  # noqa: F401
import base
import openai  # noqa: F401
from agentguard import BudgetExceeded, BudgetGuard, JsonlFileSink, Tracer
from base import Given


class Session(base.Session):
    refusals: tuple[type[BaseException], ...] = (BudgetExceeded,)
    guard: Any

    def believed_usd(self) -> float | None:
        return float(self.guard.state.cost_used)


class Enforcer(base.Enforcer):
    leaves = True
    session_class: type[base.Session] = Session

    def guard(self, given: Given) -> Any:
        return BudgetGuard(max_cost_usd=given.budget_usd)

    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        guard = self.guard(given)
        tracer = Tracer(service="bench", sink=JsonlFileSink(str(given.folder / "traces.jsonl")))
        for patch in ("patch_openai", "patch_openai_async", "patch_anthropic", "patch_anthropic_async"):
            if hasattr(agentguard, patch):
                getattr(agentguard, patch)(tracer, budget_guard=guard)
        session = self.session_class(given)
        session.guard = guard  # type: ignore[attr-defined]
        yield session

    def recorded(self, given: Given) -> int | None:
        trace = given.folder / "traces.jsonl"
        events = [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []
        return sum(event["name"] == "llm.result" for event in events)
