"""CrewAI, unchanged: inputs reach the tasks, outputs are checkpointed, agents have budgets, and a refusal comes out."""

from __future__ import annotations

import os

os.environ.update(CREWAI_DISABLE_TELEMETRY="true", OTEL_SDK_DISABLED="true", CREWAI_TRACING_ENABLED="false")

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from crewai import LLM, Agent, BaseLLM, Crew, Process, Task
from crewai.flow.flow import Flow, listen, start
from crewai.hooks import get_after_tool_call_hooks, get_before_tool_call_hooks
from crewai.tools import tool

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
    assert wflo_nb.report.calls()["task"].tolist() == ["dig", "tell"]
    assert sums_up(provider)
    assert [one.name for one in wflo.list_checkpoints()] == ["dig", "tell"]
    state = asyncio.run(wflo.rollback_to_checkpoint("dig"))
    assert state.raw == result.tasks_output[0].raw
    assert said == ["dig", "tell"]  # the user's own callback
    assert crew.tasks[0].callback is None or crew.tasks[0].callback is crew.task_callback
    costs = asyncio.run(wflo.get_cost_breakdown())
    assert costs["total_usd"] * 10**9 == provider.spent_nano
    assert set(costs["by_step"]) == {"researcher", "writer"}


@pytest.mark.parametrize("how", ["kickoff", "kickoff_async", "akickoff"])
def test_crew_that_is_started_by_its_user_is_tracked_and_stopped(provider: FakeProvider, how: str) -> None:
    def start_it() -> Any:
        begun = getattr(make_crew(provider), how)(inputs={"topic": "rivers"})
        return begun if how == "kickoff" else asyncio.run(awaited(begun))

    async def awaited(work: Any) -> Any:
        return await work

    with wflo_nb.execution("cell", budget_usd=1):
        assert start_it().raw.startswith("word0")
    assert ["rivers" in str(body) for body in provider.bodies] == [True, True]
    assert sums_up(provider)
    with pytest.raises(BudgetExceededError), wflo_nb.execution("poor", budget_usd=0):
        for _ in range(2):
            with contextlib.suppress(Exception):
                start_it()
    assert provider.requests == 2
    assert {row["state"] for row in ledger_calls()} == {"SETTLED", "REFUSED"}


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


class Scripted(BaseLLM):
    """A model that asks for two uses of a tool at once (or one, in words), and then answers."""

    native: bool = True

    def call(self, messages: Any, tools: Any = None, **_: Any) -> Any:
        if "found" in str(messages):
            return "Thought: I know.\nFinal Answer: done"
        if not self.native:
            return 'Thought: search\nAction: search\nAction Input: {"query": "rivers"}'
        return [{"id": f"c{i}", "type": "function", "function": {"name": "search", "arguments": '{"query": "rivers"}'}} for i in range(2)]

    def supports_function_calling(self) -> bool:
        return self.native


def searching_crew(search: Any, native: bool) -> Crew:
    researcher = Agent(role="researcher", goal="help", backstory="none", llm=Scripted(model="scripted", native=native), tools=[search])
    return Crew(agents=[researcher], tasks=[Task(name="dig", description="Find {topic}.", expected_output="facts", agent=researcher)])


@pytest.mark.parametrize("native", [True, False], ids=["two at once", "in words"])
@pytest.mark.parametrize("where", ["in place", "in a thread", "in a pool"])
def test_calls_of_tools_bear_the_names_of_agent_task_and_tool(provider: FakeProvider, native: bool, where: str) -> None:
    client = openai.OpenAI(base_url=provider.openai_url, api_key="test", max_retries=0)

    def ask() -> str:
        return str(client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}], max_tokens=9).id)

    @tool
    def search(query: str) -> str:
        """Search."""
        if where == "in place":
            ask()
        elif where == "in a pool":
            with ThreadPoolExecutor(1) as pool:
                pool.submit(ask).result()
        else:
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        return "found"

    wflo = WfloWorkflow("crew", budget_usd=1)
    before = [*get_before_tool_call_hooks(), *get_after_tool_call_hooks()]
    asyncio.run(wflo.execute(searching_crew(search, native), {"topic": "rivers"}))
    found = wflo_nb.report.calls()[["step", "agent", "task", "tool"]].to_numpy().tolist()
    assert found == [["researcher", "researcher", "dig", "search"]] * (2 if native else 1)
    for by, name in (("agent", "researcher"), ("task", "dig"), ("tool", "search")):
        assert wflo_nb.report.costs(by=by)[by].tolist() == [name]
    assert [*get_before_tool_call_hooks(), *get_after_tool_call_hooks()] == before
    assert sums_up(provider)


@pytest.mark.parametrize("native", [True, False], ids=["two at once", "in words"])
def test_tool_that_calls_in_threads_and_is_refused_ends_with_the_refusal(provider: FakeProvider, native: bool) -> None:
    client = openai.OpenAI(base_url=provider.openai_url, api_key="test", max_retries=0)

    def ask(_: int) -> str:
        return str(client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}], max_tokens=400).id)

    @tool
    def search(query: str) -> str:
        """Search."""
        with ThreadPoolExecutor(4) as pool:
            try:
                list(pool.map(ask, range(4)))
            except Exception:
                return "found nothing"
        return "found"

    wflo = WfloWorkflow("poor", budget_usd="0.00005")
    with pytest.raises(BudgetExceededError):
        asyncio.run(wflo.execute(searching_crew(search, native), {"topic": "rivers"}))
    assert provider.requests == 0
    assert {(row["step"], row["state"]) for row in ledger_calls()} == {("researcher", "REFUSED")}
    assert current().execution(str(wflo.execution_id)).status == "FAILED"


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
