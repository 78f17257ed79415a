"""smolagents, unchanged: agents that call tools or write code, under the names of agents and tools, and refusals that come out."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from smolagents import CodeAgent, LogLevel, OpenAIServerModel, ToolCallingAgent, tool
from smolagents.memory import ActionStep

import wflo_nb
from tests.frameworks.conftest import agrees, alone, cancelled_when_it_asks, ledger_calls, steps, sums_up
from wflo_nb import BudgetExceededError, WfloWorkflow
from wflo_nb.errors import ConfigurationError, WorkflowError
from wflo_nb.store import current
from wflo_nb.testing import FakeProvider

Way = Callable[[Any], object]


@pytest.fixture(autouse=True)
def frames_are_left() -> Iterator[None]:
    """An agent's name is gone when the agent is done."""
    yield
    from wflo_nb import _context

    assert _context.frame() is None


def model(provider: FakeProvider, **more: Any) -> Any:
    return OpenAIServerModel("gpt-4o-mini", api_base=provider.openai_url, api_key="test", max_tokens=50, **more)


def tool_that_asks(provider: FakeProvider) -> Any:
    plain = openai.OpenAI(base_url=provider.openai_url, api_key="test")

    @tool
    def search(query: str) -> str:
        """Search.

        Args:
            query: what for.
        """
        asked: list[Any] = [{"role": "user", "content": query}]
        return str(plain.chat.completions.create(model="gpt-4o", messages=asked, max_tokens=9).choices[0].message.content)

    return search


def finder(provider: FakeProvider, **more: Any) -> Any:
    """An agent with a tool that calls a model, and with another agent that it may ask."""
    quiet = {"verbosity_level": LogLevel.OFF}
    used = model(provider)
    other = ToolCallingAgent(tools=[], model=used, name="critic", description="Criticises.", **quiet)
    # The framework tells results in words, so that the provider must be told what it calls next.
    for named in ("search", None, "critic", "final_answer"):
        provider.next(tools=(named,) if named else ())
    provider.behave(tools=("final_answer",))
    given = {"name": "finder", "managed_agents": [other], **quiet, **more}
    return ToolCallingAgent(tools=[tool_that_asks(provider)], model=used, **given)


def by_run(agent: Any) -> object:
    return agent.run("Say something.")


def by_stream(agent: Any) -> object:
    return [*agent.run("Say something.", stream=True)][-1].output


def by_streamed_model(agent: Any) -> object:
    agent.stream_outputs = True
    return agent.run("Say something.")


def in_a_thread_of_a_loop(agent: Any) -> object:
    return asyncio.run(asyncio.to_thread(agent.run, "Say something."))


WAYS = [by_run, by_stream, by_streamed_model, in_a_thread_of_a_loop]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_counted_once_and_refused_under_a_spent_budget(provider: FakeProvider, way: Way) -> None:
    with wflo_nb.execution(budget_usd=1):
        assert way(finder(provider)) == "rivers"
    assert agrees(provider) == 5
    sent = provider.requests
    with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd=0):
        for _ in range(2):
            with pytest.raises(Exception, match="refused before it was sent"):
                way(finder(provider))
    assert provider.requests == sent


@pytest.mark.parametrize("how", ["in a loop", "plain"])
def test_agent_is_executed_and_what_it_does_bears_names(provider: FakeProvider, how: str) -> None:
    wflo = WfloWorkflow("agent", budget_usd=1)
    agent = finder(provider)
    before = agent.step_callbacks
    result = asyncio.run(wflo.execute(agent, "go")) if how == "in a loop" else wflo.execute_sync(agent, "go")
    assert result == "rivers"
    assert steps() == ["finder", "search", "finder", "critic", "finder"]
    assert agrees(provider) == 5
    assert [one.name for one in wflo.list_checkpoints()] == ["finder"]
    assert [step.get("step_number") for step in asyncio.run(wflo.rollback_to_last_checkpoint())] == [None, 1, 2, 3]
    assert agent.step_callbacks is before
    assert "forward" not in vars(agent.tools["search"]) and "run" not in vars(agent.managed_agents["critic"])
    assert current().execution(str(wflo.execution_id)).status == "COMPLETED"


def test_code_that_an_agent_writes_calls_its_tools_under_their_names(provider: FakeProvider) -> None:
    code = "Thought: search.\n<code>\nfinal_answer(search(query='rivers'))\n</code>"
    agent = CodeAgent(tools=[tool_that_asks(provider)], model=model(provider), verbosity_level=LogLevel.OFF)
    said = {"message": {"role": "assistant", "content": code}, "finish_reason": "stop", "index": 0}
    usage = {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020}
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "choices": [said], "usage": usage}
    provider.next(raw=json.dumps(answer).encode())
    result = asyncio.run(WfloWorkflow("code", budget_usd=1).execute(agent, "go"))
    assert result.startswith("word0")
    assert steps() == ["CodeAgent", "search"]
    assert [row["state"] for row in ledger_calls()] == ["SETTLED", "SETTLED"]


def test_tools_that_are_called_at_once_run_in_threads_and_are_seen(provider: FakeProvider) -> None:
    threads: set[str] = set()
    search = tool_that_asks(provider)

    @tool
    def look(query: str) -> str:
        """Look.

        Args:
            query: what for.
        """
        threads.add(threading.current_thread().name)
        return str(search(query=query))

    agent = ToolCallingAgent(tools=[look], model=model(provider), name="both", verbosity_level=LogLevel.OFF, max_steps=1)
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": "look", "arguments": f'{{"query": "q{i}"}}'}} for i in range(2)]
    said = {"message": {"role": "assistant", "content": None, "tool_calls": calls}, "finish_reason": "tool_calls", "index": 0}
    usage = {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020}
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "choices": [said], "usage": usage}
    provider.next(raw=json.dumps(answer).encode())
    asyncio.run(WfloWorkflow("threads", budget_usd=1).execute(agent, "go"))
    assert steps() == ["both", "look", "look", "both"]
    assert threads and all(name.startswith("ThreadPoolExecutor") for name in threads)
    assert {row["state"] for row in ledger_calls()} == {"SETTLED"} and provider.requests == 4


def test_inputs_options_and_callbacks_are_handed_on(provider: FakeProvider) -> None:
    told: list[Any] = []
    agent = finder(provider, step_callbacks={ActionStep: lambda step, agent: told.append(step.step_number)})
    wflo = WfloWorkflow("inputs", budget_usd=1)
    result = asyncio.run(wflo.execute(agent, {"topic": "rivers", "length": 3}, return_full_result=True))
    assert (result.output, result.state) == ("rivers", "success")
    assert "topic: rivers\\nlength: 3" in str(provider.bodies[0])
    assert told == [1, 2, 3]
    asyncio.run(wflo.execute(agent, {"task": "lakes", "max_steps": 4}))
    assert "lakes" in str(provider.bodies[-1])


def test_generator_of_an_agents_stream_is_streamed_through(provider: FakeProvider) -> None:
    agent = finder(provider)

    def talk(topic: str) -> Iterator[Any]:
        yield from agent.run(topic, stream=True)

    async def program() -> list[Any]:
        return [item async for item in await WfloWorkflow("stream", budget_usd=1).execute(talk, "rivers")]

    assert asyncio.run(program())[-1].output == "rivers"
    assert agrees(provider) == 5
    with pytest.raises(ConfigurationError, match="yield from"):
        asyncio.run(WfloWorkflow("stream", budget_usd=1).execute(agent, "rivers", stream=True))


@pytest.mark.parametrize("calls", [0, 1], ids=["asked", "in its tool"])
def test_spent_budget_ends_an_agent_wherever_it_is_and_nothing_is_left(provider: FakeProvider, calls: int) -> None:
    agent = finder(provider)
    wflo = WfloWorkflow("poor", budget_usd=[0, "0.002"][calls], per_agent_budgets={"search": 0})

    async def program() -> int:
        with pytest.raises(BudgetExceededError):
            await wflo.execute(agent, "go")
        sent = provider.requests
        await asyncio.sleep(0.1)
        assert alone()
        return sent

    assert asyncio.run(program()) == provider.requests
    assert sum(row["state"] == "SETTLED" for row in ledger_calls()) == provider.requests
    assert ledger_calls()[calls]["step"] == ("finder", "search")[calls]
    assert ledger_calls()[calls]["state"] == "REFUSED"
    assert current().execution(str(wflo.execution_id)).status == "FAILED"
    assert "forward" not in vars(agent.tools["search"])


def test_refusal_that_reads_like_a_rate_limit_is_not_waited_for(provider: FakeProvider) -> None:
    agent = finder(provider)
    agent.model.retryer.wait_seconds = 0.01
    before = agent.model.retryer.retry_predicate
    with pytest.raises(BudgetExceededError, match="429"):
        asyncio.run(WfloWorkflow("limit", budget_usd="0.0000429").execute(agent, "go"))
    assert [row["state"] for row in ledger_calls()] == ["REFUSED"]
    assert agent.model.retryer.retry_predicate is before
    provider.next(status=429, retry_after_ms=1)
    agent.model.client.max_retries = 0
    asyncio.run(WfloWorkflow("limit", budget_usd=1).execute(agent, "go"))  # what is one, is
    assert [row["state"] for row in ledger_calls()].count("RELEASED") == 1


@pytest.mark.parametrize("name", ["critic", "search", "finder"])
def test_tools_and_agents_have_budgets_of_their_own(provider: FakeProvider, name: str) -> None:
    wflo = WfloWorkflow("team", budget_usd=1, per_agent_budgets={name: 0})
    with pytest.raises(BudgetExceededError, match=f'step "{name}"'):
        asyncio.run(wflo.execute(finder(provider, max_steps=3), "go"))
    assert (name, "SETTLED") not in [(row["step"], row["state"]) for row in ledger_calls()]


def test_steps_of_an_agent_are_limited_by_max_iterations(provider: FakeProvider) -> None:
    with pytest.raises(WorkflowError, match="stopped at 'critic': its max_iterations=2 are used up"):
        asyncio.run(WfloWorkflow("loop", budget_usd=1, max_iterations=2).execute(finder(provider), "go"))
    assert provider.requests == 4
    asyncio.run(WfloWorkflow("loop", budget_usd=1, max_iterations=4).execute(finder(provider), "go"))
    assert agrees(provider) == 9


def test_two_executions_at_once_keep_their_money_apart(provider: FakeProvider) -> None:
    wflo = WfloWorkflow("both", budget_usd=1)
    agents = [finder(provider), finder(provider)]
    agents[1].tools = agents[0].tools
    provider._queue.clear()

    async def one(agent: Any) -> Any:
        await wflo.execute(agent, "go")
        return wflo.execution_id, (await wflo.get_cost_breakdown())["calls"]

    async def program() -> Any:
        return await asyncio.gather(*(one(agent) for agent in agents))

    (a, calls_a), (b, calls_b) = asyncio.run(program())
    assert a != b
    assert (calls_a, calls_b) == (1, 1)
    assert sums_up(provider)
    assert not {"forward"} & set(vars(agents[0].tools["search"]))


def test_cancelled_agent_sends_nothing_more(provider: FakeProvider) -> None:
    agent = finder(provider)
    provider._queue[0] = replace(provider._queue[0], delay=0.5)
    execution_id = cancelled_when_it_asks(provider, agent)  # which waits for the thread
    assert [row["state"] for row in ledger_calls()][:2] == ["SETTLED", "REFUSED"]
    assert provider.requests == 1
    assert current().execution(execution_id).status == "FAILED"


def test_interrupt_stops_an_agent_and_is_its_own_error(provider: FakeProvider) -> None:
    agent = finder(provider, step_callbacks=[lambda step, agent: agent.interrupt()])
    wflo = WfloWorkflow("interrupted", budget_usd=1)
    with pytest.raises(Exception, match="interrupted"):
        asyncio.run(wflo.execute(agent, "go"))
    assert agrees(provider) == 2
    assert current().execution(str(wflo.execution_id)).status == "FAILED"
