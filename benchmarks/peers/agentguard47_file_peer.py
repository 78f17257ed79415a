"""agentguard47 2.0.0 with a `JsonFileStateStore`: calls reserve before they are sent, and processes share the file."""

from __future__ import annotations

from typing import Any

import agentguard47_peer as memory
from agentguard import AgentGuardError, BudgetGuard
from agentguard.state import JsonFileStateStore
from base import Given


class Session(memory.Session):
    refusals = (AgentGuardError, *memory.Session.refusals)


class Enforcer(memory.Enforcer):
    can = memory.Enforcer.can | {"processes"}
    session_class = Session

    def guard(self, given: Given) -> Any:
        return BudgetGuard(max_cost_usd=given.budget_usd, store=JsonFileStateStore(given.folder / "state.json"), key="bench")
