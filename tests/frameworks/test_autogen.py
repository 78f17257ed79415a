"""AutoGen, unchanged: teams and agents under a budget, each agent's calls under its name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat, SelectorGroupChat
from autogen_core.models import CreateResult, RequestUsage, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient

import wflo_nb
from tests.frameworks.conftest import ledger_calls, steps, sums_up
from wflo_nb import BudgetExceededError, WfloWorkflow
from wflo_nb.errors import WorkflowError
from wflo_nb.store import current
from wflo_nb.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore:Resolved model mismatch")


def client(provider: FakeProvider) -> Any:
    return OpenAIChatCompletionClient(model="gpt-4o-mini", base_url=provider.openai_url, api_key="test", max_tokens=50)


def make_team(provider: FakeProvider, messages: int = 4) -> Any:
    model = client(provider)
    agents = [AssistantAgent(name, model) for name in ("researcher", "critic_one")]
    return RoundRobinGroupChat(agents, termination_condition=MaxMessageTermination(messages))  # type: ignore[arg-type]


def test_team_gives_its_own_result_and_its_agents_are_told_apart(provider: FakeProvider) -> None:
    wflo = WfloWorkflow("team", budget_usd=1)

    async def program() -> Any:
        return await wflo.execute(make_team(provider), {"task": "Say something about rivers."}), await wflo.get_cost_breakdown()

    result, costs = asyncio.run(program())
    assert type(result).__name__ == "TaskResult"
    assert [message.source for message in result.messages] == ["user", "researcher", "critic_one", "researcher"]
    assert steps() == ["researcher", "critic_one", "researcher"]
    assert costs["total_usd"] * 10**9 == provider.spent_nano
    assert set(costs["by_step"]) == {"researcher", "critic_one"}
    assert sorted(wflo_nb.report.costs(by="agent")["agent"]) == ["critic_one", "researcher"]
    assert wflo_nb.report.calls()["agent"].tolist() == steps()
    assert [(one.name, one.version) for one in wflo.list_checkpoints()] == [("researcher", 1), ("critic_one", 1), ("researcher", 2)]
    state = asyncio.run(wflo.rollback_to_last_checkpoint())
    assert [message.to_text() for message in state] == [message.to_text() for message in result.messages]


def test_agent_alone_is_run_on_a_text(provider: FakeProvider) -> None:
    wflo = WfloWorkflow("agent", budget_usd=1)
    result = wflo.execute_sync(AssistantAgent("solo", client(provider)), "Say something.")
    assert result.messages[-1].content.startswith("word0")
    assert steps() == ["solo"]
    assert sums_up(provider)


@pytest.mark.parametrize("alone", [False, True], ids=["team", "agent"])
def test_spent_budget_ends_it_and_no_task_is_left(provider: FakeProvider, alone: bool) -> None:
    wflo = WfloWorkflow("poor", budget_usd="0.000035")

    async def program() -> int:
        work = AssistantAgent("solo", client(provider)) if alone else make_team(provider, 9)
        with pytest.raises(BudgetExceededError):
            for _ in range(9):
                await wflo.execute(work, "Say something about rivers. " * (20 if alone else 1))
        sent = provider.requests
        await asyncio.sleep(0.1)
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not others, others
        return sent

    sent = asyncio.run(program())
    assert provider.requests == sent < 9
    assert provider.spent_nano <= 35_000
    assert current().execution(str(wflo._newest.run.id if wflo._newest else "")).status == "FAILED"


def test_tool_that_calls_a_model_and_is_refused_ends_with_the_refusal(provider: FakeProvider) -> None:
    import openai

    plain = openai.OpenAI(base_url=provider.openai_url, api_key="test", max_retries=0)
    tries: list[int] = []

    async def search(query: str) -> str:
        """Search."""
        tries.append(1)
        asked = [{"role": "user", "content": query}]
        return str((await asyncio.to_thread(plain.chat.completions.create, model="gpt-4o", messages=asked, max_tokens=400)).id)

    from autogen_core import FunctionCall

    async def create(*args: Any, **kwargs: Any) -> Any:
        call = FunctionCall(id="1", name="search", arguments='{"query": "rivers"}')
        return CreateResult(finish_reason="function_calls", content=[call], usage=RequestUsage(1, 1), cached=False)

    model = client(provider)
    model.create = create
    wflo = WfloWorkflow("tool", budget_usd="0.00005")
    with pytest.raises(BudgetExceededError):
        asyncio.run(wflo.execute(AssistantAgent("finder", model, tools=[search]), "find"))
    assert tries == [1]
    assert provider.requests == 0
    assert [(row["step"], row["state"]) for row in ledger_calls()] == [("finder", "REFUSED")]


def test_tool_of_an_agent_that_is_a_step_is_known_by_name(provider: FakeProvider) -> None:
    import openai

    plain = openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test")

    @wflo_nb.step("search", kind="tool")
    async def search(query: str) -> str:
        """Search."""
        return str((await plain.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": query}])).id)

    from autogen_core import FunctionCall

    async def create(*args: Any, **kwargs: Any) -> Any:
        call = FunctionCall(id="1", name="search", arguments='{"query": "rivers"}')
        return CreateResult(finish_reason="function_calls", content=[call], usage=RequestUsage(1, 1), cached=False)

    model = client(provider)
    model.create = create
    asyncio.run(WfloWorkflow("tool", budget_usd=1).execute(AssistantAgent("finder", model, tools=[search]), "find"))
    (found,) = wflo_nb.report.calls()[["step", "agent", "tool"]].to_numpy().tolist()
    assert found == ["search", "finder", "search"]
    assert sums_up(provider)


def test_agent_of_a_team_has_a_budget_of_its_own(provider: FakeProvider) -> None:
    wflo = WfloWorkflow("team", budget_usd=1, per_agent_budgets={"critic_one": 0})
    with pytest.raises(BudgetExceededError, match='step "critic_one"'):
        asyncio.run(wflo.execute(make_team(provider), "rivers"))
    assert provider.requests == 1


def test_messages_are_limited_by_max_iterations(provider: FakeProvider) -> None:
    with pytest.raises(WorkflowError, match="max_iterations=2 are used up"):
        asyncio.run(WfloWorkflow("team", budget_usd=1, max_iterations=2).execute(make_team(provider, 9), "rivers"))
    assert provider.requests == 2
    team = asyncio.run(WfloWorkflow("team", budget_usd=1, max_iterations=3).execute(make_team(provider), "rivers"))
    assert len(team.messages) == 4


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("kind", [RoundRobinGroupChat, SelectorGroupChat])
def test_no_call_is_sent_after_the_last_message_however_late_that_is_read(provider: FakeProvider, kind: Any, most: int) -> None:
    class Slow(kind):  # type: ignore[misc]
        async def run_stream(self, **options: Any) -> Any:  # type: ignore[override]
            async for item in super().run_stream(**options):
                await asyncio.sleep(0.2)  # the agents go on meanwhile
                yield item

    model, choosing = client(provider), client(provider)
    turns = iter(["researcher", "critic_one"] * 9)

    async def choose(*args: Any, **kwargs: Any) -> Any:  # a manager's call, which is nobody's message
        await client(provider).create([UserMessage(content="who is next?", source="user")])
        return CreateResult(finish_reason="stop", content=next(turns), usage=RequestUsage(1, 1), cached=False)

    choosing.create = choose
    more = {"model_client": choosing} if kind is SelectorGroupChat else {}
    agents = [AssistantAgent(name, model) for name in ("researcher", "critic_one", "third")][: 3 if more else 2]
    team = Slow(agents, termination_condition=MaxMessageTermination(9), **more)
    with pytest.raises(WorkflowError, match=f"max_iterations={most} are used up"):
        asyncio.run(WfloWorkflow("team", budget_usd=1, max_iterations=most).execute(team, "rivers"))
    paid = [row["step"] for row in ledger_calls() if row["state"] == "SETTLED"]
    assert [name for name in paid if name in ("researcher", "critic_one")] == ["researcher", "critic_one", "researcher"][:most]
    assert provider.requests == len(paid)
    assert ("SelectorGroupChatManager" in paid) is (kind is SelectorGroupChat)
    assert ledger_calls()[-1]["state"] == "REFUSED"
