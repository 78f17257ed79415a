"""pydantic-ai with one agent that is kept for all its runs, as long-lived programs have it: for the cost of a call, not of a client."""

from __future__ import annotations

from typing import Any

import base
import pydantic_ai_peer as plain
from base import Given


class Session(plain.Session):
    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self._agents: dict[Any, tuple[Any, dict[str, Any]]] = {}

    def _agent(self, request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        key = request["model"], request.get("max_tokens")
        if key not in self._agents:
            self._agents[key] = super()._agent(request)
        return self._agents[key]


class Enforcer(base.Enforcer):
    can = plain.Enforcer.can
    session_class = Session
