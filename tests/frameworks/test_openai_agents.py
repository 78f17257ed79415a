"""openai-agents, unchanged: every way of running an agent, its calls under the names of agents and tools, and refusals that come out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import agents
import openai
import pytest
from agents import Agent, ModelSettings, RunConfig, RunHooks, Runner, function_tool
from agents.tracing.processors import BackendSpanExporter, BatchTraceProcessor

import wflo_nb
from tests.frameworks.conftest import agrees, alone, cancelled_in_its_call, ledger_calls, steps, sums_up, twice_at_once
from wflo_nb import BudgetExceededError, WfloWorkflow
from wflo_nb.errors import WorkflowError
from wflo_nb.store import current
from wflo_nb.testing import FakeProvider

Way = Callable[[Callable[[], Any]], None]


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    """Traces go to the provider's own service otherwise. An agent's name is gone when the agent is done."""
    agents.set_trace_processors([])
    yield
    from wflo_nb import _context

    assert _context.frame() is None


def client(provider: FakeProvider) -> Any:
    return openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test")


def chat(provider: FakeProvider) -> Any:
    return agents.OpenAIChatCompletionsModel("gpt-4o-mini", openai_client=client(provider))


def responses(provider: FakeProvider) -> Any:
    return agents.OpenAIResponsesModel("gpt-4o-mini", openai_client=client(provider))


def by_run_sync(make: Callable[[], Any]) -> None:
    assert Runner.run_sync(make(), "Say something.").final_output.startswith("word0")


def by_run(make: Callable[[], Any]) -> None:
    assert asyncio.run(Runner.run(make(), "Say something.")).final_output.startswith("word0")


def by_run_streamed(make: Callable[[], Any]) -> None:
    async def work() -> None:
        result = Runner.run_streamed(make(), "Say something.")
        assert [event async for event in result.stream_events()]
        assert result.final_output.startswith("word0")

    asyncio.run(work())


WAYS = [by_run_sync, by_run, by_run_streamed]
MODELS = [chat, responses]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_each_way_is_counted_once_and_refused_under_a_spent_budget(provider: FakeProvider, way: Way, model: Any) -> None:
    with wflo_nb.execution(budget_usd=1):
        way(lambda: Agent("helper", model=model(provider)))
    assert agrees(provider) == 1
    assert steps() == ["helper"]
    with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd=0):
        for _ in range(2):
            with pytest.raises(Exception, match="refused before it was sent"):
                way(lambda: Agent("helper", model=model(provider)))
    assert provider.requests == 1


def finder(provider: FakeProvider, model: Any = chat, **more: Any) -> Any:
    """An agent with a tool that calls a model in a thread, and with another agent as its tool."""
    plain = openai.OpenAI(base_url=provider.openai_url, api_key="test")

    @function_tool
    def search(query: str) -> str:
        """Search."""
        assert threading.current_thread() is not threading.main_thread()
        asked: list[Any] = [{"role": "user", "content": query}]
        return str(plain.chat.completions.create(model="gpt-4o", messages=asked, max_tokens=9).choices[0].message.content)

    provider.behave(tools=("search", "ask"))
    used = model(provider)
    other = Agent("critic", model=used)
    return Agent("finder", model=used, tools=[search, other.as_tool("ask", "Ask the critic.")], **more)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_tools_in_threads_and_agents_that_are_asked_are_seen(provider: FakeProvider, way: Way, model: Any) -> None:
    with wflo_nb.execution(budget_usd=1):
        way(lambda: finder(provider, model))
    assert agrees(provider) == 5
    assert steps() == ["finder", "search", "finder", "critic", "finder"]


@pytest.mark.parametrize("how", ["in a loop", "plain"])
def test_agent_is_executed_and_what_it_does_bears_names(provider: FakeProvider, how: str) -> None:
    wflo = WfloWorkflow("agent", budget_usd=1)
    agent = finder(provider)
    result = asyncio.run(wflo.execute(agent, "go")) if how == "in a loop" else wflo.execute_sync(agent, "go")
    assert type(result).__name__ == "RunResult"
    assert result.final_output.startswith("word0")
    assert steps() == ["finder", "search", "finder", "critic", "finder"]
    assert agrees(provider) == 5
    assert [one.name for one in wflo.list_checkpoints()] == ["finder"]
    assert asyncio.run(wflo.rollback_to_last_checkpoint()) == result.to_input_list()
    assert current().execution(str(wflo.execution_id)).status == "COMPLETED"


def test_agent_that_work_is_handed_over_to_is_named(provider: FakeProvider) -> None:
    used = chat(provider)
    critic = Agent("critic", model=used)
    agent = Agent("finder", model=used, handoffs=[critic])
    provider.behave(tools=("transfer_to_critic",))
    wflo = WfloWorkflow("handoff", budget_usd=1)
    result = asyncio.run(wflo.execute(agent, "go"))
    assert result.last_agent is critic
    assert steps() == ["finder", "critic"]
    assert agrees(provider) == 2
    assert [one.name for one in wflo.list_checkpoints()] == ["critic"]


def test_answer_is_the_users_though_no_checkpoint_can_be_made_of_it(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(result: Any) -> Any:
        raise ValueError("no list")

    monkeypatch.setattr(agents.RunResult, "to_input_list", fails)
    wflo = WfloWorkflow("kept", budget_usd=1)
    with pytest.warns(wflo_nb.errors.WfloWarning, match="No checkpoint 'helper' was taken"):
        result = asyncio.run(wflo.execute(Agent("helper", model=chat(provider)), "go"))
    assert result.final_output.startswith("word0")
    assert not wflo.list_checkpoints()


def test_inputs_hooks_and_options_are_handed_on(provider: FakeProvider) -> None:
    told: list[str] = []

    class Told(RunHooks[Any]):
        async def on_agent_start(self, context: Any, agent: Any) -> None:
            told.append(f"{agent.name} starts for {context.context}")

        async def on_llm_start(self, context: Any, agent: Any, *said: Any) -> None:
            told.append("asks")

        async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
            told.append(f"{tool.name} is over")

    wflo = WfloWorkflow("inputs", budget_usd=1)
    asyncio.run(wflo.execute(finder(provider), {"topic": "rivers", "length": 3}, hooks=Told(), context="Europe"))
    assert "topic: rivers\\nlength: 3" in str(provider.bodies[0])
    assert told == ["finder starts for Europe", "asks", "search is over", "asks", "ask is over", "asks"]
    provider.behave(tools=())
    asyncio.run(wflo.execute(finder(provider), {"input": "lakes", "run_config": RunConfig(model=responses(provider))}))
    assert "'lakes'" in str(provider.bodies[-1]) and "input" in provider.bodies[-1]


def test_generator_of_an_agents_stream_is_streamed_through(provider: FakeProvider) -> None:
    async def talk(topic: str) -> AsyncIterator[str]:
        async for event in Runner.run_streamed(Agent("talker", model=chat(provider)), topic).stream_events():
            yield event.type

    async def program() -> list[str]:
        return [piece async for piece in await WfloWorkflow("stream", budget_usd=1).execute(talk, "rivers")]

    assert len(asyncio.run(program())) > 20
    assert agrees(provider) == 1
    assert steps() == ["talker"]


@pytest.mark.parametrize("calls", [0, 1], ids=["asked", "in its tool"])
@pytest.mark.parametrize("streamed", [False, True])
def test_spent_budget_ends_an_agent_wherever_it_is_and_nothing_is_left(provider: FakeProvider, calls: int, streamed: bool) -> None:
    wflo = WfloWorkflow("poor", budget_usd=[0, "0.0005"][calls])

    async def stream(said: str) -> None:
        result = Runner.run_streamed(finder(provider), said)
        async for _ in result.stream_events():
            pass

    async def program() -> int:
        with pytest.raises(BudgetExceededError):
            await wflo.execute(stream if streamed else finder(provider), "go")
        sent = provider.requests
        await asyncio.sleep(0.1)
        assert alone()
        return sent

    assert asyncio.run(program()) == provider.requests
    assert sum(row["state"] == "SETTLED" for row in ledger_calls()) == provider.requests >= calls
    assert "REFUSED" in {row["state"] for row in ledger_calls()}
    assert provider.spent_nano <= 500_000
    assert current().execution(str(wflo.execution_id)).status == "FAILED"


def test_refusal_that_a_tool_swallows_comes_out_though_the_agent_goes_on(provider: FakeProvider) -> None:
    wflo = WfloWorkflow("swallowed", budget_usd=1, per_agent_budgets={"search": 0})
    with pytest.raises(BudgetExceededError, match='step "search"'):
        asyncio.run(wflo.execute(finder(provider), "go"))
    assert [(row["step"], row["state"]) for row in ledger_calls()][1] == ("search", "REFUSED")
    assert sum(row["state"] == "SETTLED" for row in ledger_calls()) == provider.requests


def test_retries_of_the_framework_end_with_the_refusal(provider: FakeProvider) -> None:
    retry = agents.ModelRetrySettings(max_retries=3, policy=lambda _: True)
    agent = Agent("stubborn", model=chat(provider), model_settings=ModelSettings(retry=retry))
    with pytest.raises(BudgetExceededError):
        asyncio.run(WfloWorkflow("retry", budget_usd=0).execute(agent, "go"))
    assert provider.requests == 0
    assert {row["state"] for row in ledger_calls()} == {"REFUSED"}


@pytest.mark.parametrize("name", ["critic", "ask", "finder"])
def test_tools_and_agents_have_budgets_of_their_own(provider: FakeProvider, name: str) -> None:
    wflo = WfloWorkflow("team", budget_usd=1, per_agent_budgets={name: 0})
    with pytest.raises(BudgetExceededError, match=f'step "{name}"'):
        asyncio.run(wflo.execute(finder(provider), "go"))
    assert ("critic", "SETTLED") not in [(row["step"], row["state"]) for row in ledger_calls()]
    assert provider.requests == (0 if name == "finder" else 4)


def test_agent_is_known_where_the_framework_does_not_tell_its_place(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.tracing.get_current_span", lambda: None)
    wflo = WfloWorkflow("team", budget_usd=1, per_agent_budgets={"finder": 0})
    with pytest.raises(BudgetExceededError, match='step "finder"'):
        asyncio.run(wflo.execute(finder(provider), "go"))
    assert provider.requests == 0


def test_turns_of_an_agent_are_limited_by_max_iterations(provider: FakeProvider) -> None:
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
    id = cancelled_in_its_call(provider, Agent("slow", model=chat(provider)))
    assert current().execution(id).status == "FAILED"
    assert [row["state"] for row in ledger_calls()] == ["UNCONFIRMED"]


def test_traces_that_the_framework_sends_to_its_maker_cost_nothing_and_are_let_through(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=openai")
    sender = BatchTraceProcessor(BackendSpanExporter(api_key="test", endpoint=f"{provider.openai_url}/traces/ingest"))
    agents.set_trace_processors([sender])
    with wflo_nb.execution(budget_usd=1):
        asyncio.run(Runner.run(Agent("helper", model=chat(provider)), "Say something."))
        sender.force_flush()
    sender.shutdown()
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"]
    assert [body for body in provider.bodies if "data" in body]


@pytest.mark.parametrize("broken", [lambda: object(), lambda span: span], ids=["another thing", "another shape"])
def test_place_that_is_told_in_another_way_costs_no_call(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    monkeypatch.setattr("agents.tracing.get_current_span", broken)
    with wflo_nb.execution(budget_usd=1):
        openai.OpenAI(base_url=provider.openai_url).chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}]
        )
    assert agrees(provider) == 1
    assert steps() == [None]


def test_users_own_package_of_that_name_is_none_of_ours() -> None:
    own = type("Agent", (), {"__module__": "agents.mine", "run": lambda self, inputs: f"ran {inputs}"})
    assert asyncio.run(WfloWorkflow("own").execute(own(), "x")) == "ran x"
