"""agentcap-guard 0.1.0, by ``guard(OpenAI(), budget=…)``, as its README. Its loop detector never fires here: no two prompts are alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import base
import openai  # noqa: F401
from agentcap import AgentCapError, guard
from agentcap.audit import AuditLog
from base import Given


class Session(base.Session):
    refusals = (AgentCapError,)

    def make_openai(self) -> Any:
        return guard(super().make_openai(), budget=self.given.budget_usd)

    def believed_usd(self) -> float | None:
        return None if self._sync is None else float(self._sync.agentcap.spent_usd)


class Enforcer(base.Enforcer):
    can = frozenset({"stream", "raw"})

    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        os.environ["AGENTCAP_HOME"] = str(given.folder)
        yield Session(given)

    def recorded(self, given: Given) -> int | None:
        audit = AuditLog(given.folder / ".agentcap")
        return sum(int(run["calls"]) for run in audit.list_runs(1_000_000))
