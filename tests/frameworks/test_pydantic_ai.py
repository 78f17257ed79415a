"""pydantic-ai, unchanged: every way of running an agent, its calls under the names of agents and tools, and refusals that come out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.capabilities import Hooks
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

import wflo_nb
from tests.frameworks.conftest import agrees, alone, cancelled_in_its_call, ledger_calls, steps, sums_up, twice_at_once
from wflo_nb import BudgetExceededError, WfloWorkflow
from wflo_nb.errors import WorkflowError
from wflo_nb.store import current
from wflo_nb.testing import FakeProvider


def chat(provider: FakeProvider) -> Any:
    return OpenAIChatModel("gpt-4o-mini", provider=OpenAIProvider(base_url=provider.openai_url, api_key="test"))


def responses(provider: FakeProvider) -> Any:
    return OpenAIResponsesModel("gpt-4o-mini", provider=OpenAIProvider(base_url=provider.openai_url, api_key="test"))


def claude(provider: FakeProvider) -> Any:
    return AnthropicModel("claude-sonnet-4-5", provider=AnthropicProvider(base_url=provider.url, api_key="test"))


def by_run_sync(agent: Any) -> None:
    assert agent.run_sync("Say something.").output.startswith("word0")


def by_run(agent: Any) -> None:
    assert asyncio.run(agent.run("Say something.")).output.startswith("word0")


def by_run_stream(agent: Any) -> None:
    async def work() -> None:
        async with agent.run_stream("Say something.") as result:
            assert "".join([piece async for piece in result.stream_text(delta=True)]).startswith("word0")

    asyncio.run(work())


def by_run_stream_sync(agent: Any) -> None:
    assert [*agent.run_stream_sync("Say something.").stream_text()][-1].startswith("word0")


def by_events(agent: Any) -> None:
    async def work() -> None:
        async with agent.run_stream_events("Say something.") as events:
            assert [event async for event in events]

    asyncio.run(work())


def by_steps(agent: Any) -> None:
    async def work() -> None:
        async with agent.iter("Say something.") as run:
            assert len([node async for node in run]) > 2

    asyncio.run(work())


WAYS = [by_run_sync, by_run, by_run_stream, by_run_stream_sync, by_events, by_steps]
MODELS = [chat, responses, claude]

pytestmark = pytest.mark.filterwarnings("ignore:The model 'claude-sonnet-4-5' is deprecated")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_each_way_is_counted_once_and_refused_under_a_spent_budget(
    provider: FakeProvider, way: Callable[[Any], None], model: Callable[[FakeProvider], Any]
) -> None:
    with wflo_nb.execution(budget_usd=9):
        way(Agent(model(provider), name="helper"))
    assert agrees(provider) == 1
    assert steps() == ["helper"]
    with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd=0):
        for _ in range(2):
            with pytest.raises(Exception, match="refused before it was sent"):
                way(Agent(model(provider), name="helper"))
    assert provider.requests == 1


def finder(provider: FakeProvider, model: Callable[[FakeProvider], Any] = chat) -> Any:
    """An agent with a tool that calls a model in a thread, and one that asks another agent."""
    import openai

    agent, other = Agent(model(provider), name="finder"), Agent(model(provider), name="critic")
    plain = openai.OpenAI(base_url=provider.openai_url, api_key="test")

    @agent.tool_plain
    def search(query: str) -> str:
        """Search."""
        assert threading.current_thread() is not threading.main_thread()
        asked: list[Any] = [{"role": "user", "content": query}]
        return str(plain.chat.completions.create(model="gpt-4o", messages=asked, max_tokens=9).choices[0].message.content)

    @agent.tool
    async def ask(ctx: RunContext[None], query: str) -> str:
        """Ask the critic."""
        return (await other.run(query, usage=ctx.usage)).output

    provider.behave(tools=("search", "ask"))
    return agent


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_tools_in_threads_and_agents_that_are_asked_are_seen(
    provider: FakeProvider, way: Callable[[Any], None], model: Callable[[FakeProvider], Any]
) -> None:
    with wflo_nb.execution(budget_usd=9):
        way(finder(provider, model))
    assert agrees(provider) == 5
    assert steps() == ["finder", "finder", "finder", "critic", "finder"]


@pytest.mark.parametrize("how", ["in a loop", "plain"])
def test_agent_is_executed_and_what_it_does_bears_names(provider: FakeProvider, how: str) -> None:
    wflo = WfloWorkflow("agent", budget_usd=1)
    agent = finder(provider)
    result = asyncio.run(wflo.execute(agent, "go")) if how == "in a loop" else wflo.execute_sync(agent, "go")
    assert type(result).__name__ == "AgentRunResult"
    assert result.output.startswith("word0")
    assert steps() == ["finder", "search", "finder", "critic", "finder"]
    assert agrees(provider) == 5
    assert [one.name for one in wflo.list_checkpoints()] == ["finder"]
    assert asyncio.run(wflo.rollback_to_last_checkpoint()) == result.all_messages()
    assert current().execution(str(wflo.execution_id)).status == "COMPLETED"
    with pytest.raises(WorkflowError, match="cannot be entered after it"):
        asyncio.run(wflo.resume("finder"))


def test_inputs_and_options_are_handed_on(provider: FakeProvider) -> None:
    agent = Agent(chat(provider), deps_type=str)

    @agent.instructions
    def about(ctx: RunContext[str]) -> str:
        return f"Speak of {ctx.deps}."

    told: list[str] = []
    hooks = Hooks[str]()

    @hooks.on.before_model_request
    async def tell(ctx: Any, request_context: Any) -> Any:
        told.append("asked")
        return request_context

    async def program() -> None:
        wflo = WfloWorkflow("inputs", budget_usd=1)
        await wflo.execute(agent, {"topic": "rivers", "length": 3}, deps="Europe", capabilities=[hooks])
        await wflo.execute(agent, {"user_prompt": "lakes", "deps": "Asia"})

    asyncio.run(program())
    assert "Speak of Europe." in str(provider.bodies[0]) and "topic: rivers\\nlength: 3" in str(provider.bodies[0])
    assert "Speak of Asia." in str(provider.bodies[1]) and "'lakes'" in str(provider.bodies[1])
    assert told == ["asked"]
    assert steps() == ["agent", "agent"]
    assert agent.name is None


def test_generator_of_an_agents_stream_is_streamed_through(provider: FakeProvider) -> None:
    agent = Agent(chat(provider), name="talker")

    async def talk(topic: str) -> AsyncIterator[str]:
        async with agent.run_stream(topic) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                yield piece

    async def program() -> list[str]:
        return [piece async for piece in await WfloWorkflow("stream", budget_usd=1).execute(talk, "rivers")]

    assert "".join(asyncio.run(program())).startswith("word0 word1")
    assert agrees(provider) == 1
    assert steps() == ["talker"]


@pytest.mark.parametrize("calls", [0, 1], ids=["asked", "in its tool"])
def test_spent_budget_ends_an_agent_wherever_it_is_and_nothing_is_left(provider: FakeProvider, calls: int) -> None:
    wflo = WfloWorkflow("poor", budget_usd=[0, "0.0005"][calls])

    async def program() -> int:
        with pytest.raises(BudgetExceededError):
            await wflo.execute(finder(provider), "go")
        sent = provider.requests
        await asyncio.sleep(0.1)
        assert alone()
        return sent

    assert asyncio.run(program()) == provider.requests
    assert sum(row["state"] == "SETTLED" for row in ledger_calls()) == provider.requests == calls
    assert "REFUSED" in {row["state"] for row in ledger_calls()}
    assert current().execution(str(wflo.execution_id)).status == "FAILED"


def test_models_that_fall_back_and_tools_that_want_another_try_end_with_the_refusal(provider: FakeProvider) -> None:
    agent = Agent(FallbackModel(chat(provider), claude(provider), fallback_on=lambda error: True), name="stubborn", retries=3)
    with pytest.raises(BudgetExceededError):
        asyncio.run(WfloWorkflow("fallback", budget_usd=0).execute(agent, "go"))
    assert provider.requests == 0

    tries: list[str] = []
    other = Agent(chat(provider), name="other", retries=3)

    @other.tool_plain
    async def search(query: str) -> str:
        """Search."""
        tries.append(query)
        try:
            return str((await Agent(responses(provider)).run(query, model_settings={"max_tokens": 4000})).output)
        except Exception as error:
            raise ModelRetry("Try again.") from error

    provider.behave(tools=("search",))
    with pytest.raises(BudgetExceededError):
        asyncio.run(WfloWorkflow("retry", budget_usd="0.0005").execute(other, "go", model_settings={"max_tokens": 40}))
    assert tries
    assert sum(row["state"] == "SETTLED" for row in ledger_calls()) == provider.requests > 0
    assert {row["step"] for row in ledger_calls() if row["state"] == "REFUSED"} == {"stubborn", "search", "other"}


@pytest.mark.parametrize("name", ["search", "critic", "finder"])
def test_tools_and_agents_have_budgets_of_their_own(provider: FakeProvider, name: str) -> None:
    wflo = WfloWorkflow("team", budget_usd=1, per_agent_budgets={name: 0})
    with pytest.raises(BudgetExceededError, match=f'step "{name}"'):
        asyncio.run(wflo.execute(finder(provider), "go"))
    assert provider.requests == {"finder": 0, "search": 1, "critic": 3}[name]


def test_requests_of_an_agent_are_limited_by_max_iterations(provider: FakeProvider) -> None:
    with pytest.raises(WorkflowError, match="stopped at 'finder': its max_iterations=2 are used up"):
        asyncio.run(WfloWorkflow("loop", budget_usd=1, max_iterations=2).execute(finder(provider), "go"))
    assert steps() == ["finder", "search", "finder", "critic"]
    asyncio.run(WfloWorkflow("loop", budget_usd=1, max_iterations=3).execute(finder(provider), "go"))
    assert agrees(provider) == 9


def test_two_executions_at_once_keep_their_money_apart(provider: FakeProvider) -> None:
    (a, calls_a), (b, calls_b) = twice_at_once(finder(provider))
    assert a != b
    assert (calls_a, calls_b) == (5, 5)
    assert sums_up(provider)


def test_cancelled_agent_leaves_nothing_behind(provider: FakeProvider) -> None:
    id = cancelled_in_its_call(provider, Agent(chat(provider), name="slow"))
    assert current().execution(id).status == "FAILED"
    assert [row["state"] for row in ledger_calls()] == ["UNCONFIRMED"]


def test_limits_of_the_framework_itself_are_its_own_error(provider: FakeProvider) -> None:
    from pydantic_ai import UsageLimitExceeded

    with pytest.raises(UsageLimitExceeded):
        asyncio.run(WfloWorkflow("own", budget_usd=1).execute(finder(provider), "go", usage_limits=UsageLimits(request_limit=1)))
    assert sums_up(provider)


@pytest.fixture(autouse=True)
def frames_are_left() -> Iterator[None]:
    """An agent's name is gone when the agent is done."""
    yield
    from wflo_nb import _context

    assert _context.frame() is None
