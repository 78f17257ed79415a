"""CrewAI, unchanged: inputs reach the tasks, outputs are checkpointed, agents have budgets, and a refusal comes out."""

from __future__ import annotations

import os

os.environ.update(CREWAI_DISABLE_TELEMETRY="true", OTEL_SDK_DISABLED="true", CREWAI_TRACING_ENABLED="false")

import asyncio
import threading
from typing import Any

import pytest
from crewai import LLM, Agent, Crew, Process, Task
from crewai.flow.flow import Flow, listen, start

import wflo_nb
from tests.frameworks.conftest import ledger_calls, steps, sums_up
from wflo_nb import BudgetExceededError, WfloWorkflow
from wflo_nb.errors import WorkflowError
from wflo_nb.store import current
from wflo_nb.testing import FakeProvider


@pytest.fixture(autouse=True)
def state_of_crewai(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path / "crewai"))


def make_crew(provider: FakeProvider, **changes: Any) -> Crew:
    llm = LLM(model="openai/gpt-4o-mini", base_url=provider.openai_url, api_key="test", max_tokens=50)

    def agent(role: str) -> Agent:
        return Agent(role=role, goal="help", backstory="none", llm=llm)

    dig = Task(name="dig", description="Find facts about {topic}.", expected_output="facts", agent=agent("researcher"))
    tell = Task(name="tell", description="Write about {topic}.", expected_output="text", agent=agent("writer"))
    return Crew(agents=[dig.agent, tell.agent], tasks=[dig, tell], process=Process.sequential, **changes)


@pytest.mark.parametrize("how", ["in a loop", "plain"])
def test_crew_gets_its_inputs_and_its_calls_and_tasks_are_known_by_name(provider: FakeProvider, how: str) -> None:
    said: list[str] = []
    crew = make_crew(provider, task_callback=lambda output: said.append(output.name))
    wflo = WfloWorkflow("crew", budget_usd=1)
    given = {"topic": "rivers of Europe"}
    result = asyncio.run(wflo.execute(crew, given)) if how == "in a loop" else wflo.execute_sync(crew, given)
    assert result.raw.startswith("word0")
    assert ["rivers of Europe" in str(body) for body in provider.bodies] == [True, True]
    assert steps() == ["researcher", "writer"]
    assert sums_up(provider)
    assert [one.name for one in wflo.list_checkpoints()] == ["dig", "tell"]
    state = asyncio.run(wflo.rollback_to_checkpoint("dig"))
    assert state.raw == result.tasks_output[0].raw
    assert said == ["dig", "tell"]  # the user's own callback
    assert crew.tasks[0].callback is None or crew.tasks[0].callback is crew.task_callback
    costs = asyncio.run(wflo.get_cost_breakdown())
    assert costs["total_usd"] * 10**9 == provider.spent_nano
    assert set(costs["by_step"]) == {"researcher", "writer"}


@pytest.mark.parametrize("parallel", [False, True], ids=["in order", "async tasks"])
def test_spent_budget_ends_a_crew_and_leaves_nothing_behind(provider: FakeProvider, parallel: bool) -> None:
    crew = make_crew(provider)
    if parallel:
        crew.tasks[0].async_execution = True
    wflo = WfloWorkflow("poor", budget_usd="0.00002")
    with pytest.raises(BudgetExceededError):
        asyncio.run(wflo.execute(crew, {"topic": "rivers"}))
    assert provider.spent_nano <= 20_000
    assert provider.requests <= 1
    assert current().execution(str(wflo.execution_id)).status == "FAILED"
    sent = provider.requests
    assert not [t for t in threading.enumerate() if t.name.startswith("Task")]
    assert provider.requests == sent


def test_agent_of_a_crew_has_a_budget_of_its_own(provider: FakeProvider) -> None:
    wflo = WfloWorkflow("crew", budget_usd=1, per_agent_budgets={"writer": 0})
    with pytest.raises(BudgetExceededError, match='step "writer"'):
        asyncio.run(wflo.execute(make_crew(provider), {"topic": "rivers"}))
    assert provider.requests == 1
    assert [row["step"] for row in ledger_calls() if row["state"] == "SETTLED"] == ["researcher"]


def test_tasks_are_limited_by_max_iterations(provider: FakeProvider) -> None:
    with pytest.raises(WorkflowError, match="stopped at 'dig': its max_iterations=1"):
        asyncio.run(WfloWorkflow("crew", budget_usd=1, max_iterations=1).execute(make_crew(provider), {"topic": "rivers"}))
    assert provider.requests == 1
    asyncio.run(WfloWorkflow("crew", budget_usd=1, max_iterations=2).execute(make_crew(provider), {"topic": "rivers"}))
    assert provider.requests == 3


def test_two_executions_of_one_object_keep_their_tasks_apart(provider: FakeProvider) -> None:
    wflo = WfloWorkflow("both", budget_usd=1)

    async def one(topic: str) -> Any:
        await wflo.execute(make_crew(provider), {"topic": topic})
        return wflo.execution_id, (await wflo.get_cost_breakdown())["calls"]

    async def program() -> Any:
        return await asyncio.gather(one("rivers"), one("lakes"))

    (a, calls_a), (b, calls_b) = asyncio.run(program())
    assert a != b
    assert (calls_a, calls_b) == (2, 2)
    assert sorted((one.execution_id, one.name) for one in wflo.list_checkpoints()) == sorted(
        (x, n) for x in (a, b) for n in ("dig", "tell")
    )


def test_flow_is_run_with_its_inputs(provider: FakeProvider) -> None:
    llm = LLM(model="openai/gpt-4o-mini", base_url=provider.openai_url, api_key="test", max_tokens=50)

    class Story(Flow):  # type: ignore[type-arg]
        @start()
        def first(self) -> str:
            return str(llm.call(f"Say {self.state['topic']}"))

        @listen(first)
        @wflo_nb.step("second")
        def second(self, text: str) -> str:
            return f"{text[:5]} {llm.call('more')[:5]}"

    wflo = WfloWorkflow("flow", budget_usd=1)
    assert asyncio.run(wflo.execute(Story(), {"topic": "rivers"})) == "word0 word0"
    assert "rivers" in str(provider.bodies[0])
    assert steps() == [None, "second"]
    assert sums_up(provider)
