"""ag2, unchanged: an agent is asked under a budget, its calls under its name."""

from __future__ import annotations

import asyncio

import pytest
from ag2 import Agent
from ag2.config import OpenAIConfig

import wflo_nb
from tests.frameworks.conftest import steps, sums_up
from wflo_nb import BudgetExceededError, WfloWorkflow
from wflo_nb.testing import FakeProvider


def test_agent_of_ag2_is_asked(provider: FakeProvider) -> None:
    agent = Agent("helper", config=OpenAIConfig(model="gpt-4o-mini", base_url=provider.openai_url, api_key="test", max_tokens=50))
    wflo = WfloWorkflow("ag2", budget_usd=1)
    reply = asyncio.run(wflo.execute(agent, "Say something."))
    assert reply.body.startswith("word0")
    assert steps() == ["helper"]
    assert wflo_nb.report.costs(by="agent")["agent"].tolist() == ["helper"]
    assert sums_up(provider)
    assert [one.name for one in wflo.list_checkpoints()] == ["helper"]
    poor = WfloWorkflow("poor", budget_usd=0)
    with pytest.raises(BudgetExceededError):
        asyncio.run(poor.execute(agent, "Say something."))
    assert provider.requests == 1
