"""LlamaIndex, unchanged: models, engines, agents and workflows, their calls under the names of agents, steps and tools, and refusals."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.workflow import Event, StartEvent, StopEvent, Workflow, step
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.openai import OpenAI, OpenAIResponses

import wflo_nb
from tests.frameworks.conftest import agrees, alone, ledger_calls, steps, sums_up, twice_at_once
from wflo_nb import BudgetExceededError, WfloWorkflow
from wflo_nb.errors import WorkflowError
from wflo_nb.store import current
from wflo_nb.testing import FakeProvider

Way = Callable[[Any], object]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The model 'claude-sonnet-4-5' is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:inspect"),
    # A chat engine writes its history in a thread of its own, where the refusal ends it, beside coming out of the stream.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(autouse=True)
def frames_and_handlers_are_left() -> Iterator[None]:
    """What a run was watched by is gone when the run is done."""
    before = list(get_dispatcher().span_handlers)
    yield
    from wflo_nb import _context
    from wflo_nb.workflow.adapters import llama_index

    assert _context.frame() is None
    assert get_dispatcher().span_handlers == before
    assert not llama_index._open


def chat(provider: FakeProvider, **more: Any) -> Any:
    return OpenAI("gpt-4o-mini", api_base=provider.openai_url, api_key="test", max_tokens=50, **more)


def responses(provider: FakeProvider) -> Any:
    return OpenAIResponses("gpt-4o-mini", api_base=provider.openai_url, api_key="test", max_output_tokens=50)


def claude(provider: FakeProvider) -> Any:
    return Anthropic("claude-sonnet-4-5", base_url=provider.url, api_key="test", max_tokens=50)


MODELS = [chat, responses, claude]
ASKED = [ChatMessage(role="user", content="Say something.")]


def by_complete(model: Any) -> object:
    return model.complete("Say something.")


def by_acomplete(model: Any) -> object:
    return asyncio.run(model.acomplete("Say something."))


def by_stream(model: Any) -> object:
    return [*model.stream_chat(ASKED)][-1]


def by_astream(model: Any) -> object:
    async def work() -> object:
        return [piece async for piece in await model.astream_chat(ASKED)][-1]

    return asyncio.run(work())


def index(model: Any) -> Any:
    return SummaryIndex.from_documents([Document(text="Rivers are long.")])


def by_query(model: Any) -> object:
    return index(model).as_query_engine(llm=model).query("What are rivers?")


def by_query_in_loop(model: Any) -> object:
    return asyncio.run(index(model).as_query_engine(llm=model).aquery("What are rivers?"))


def by_streaming_query(model: Any) -> object:
    return "".join(index(model).as_query_engine(llm=model, streaming=True).query("What are rivers?").response_gen)


def by_chat(model: Any) -> object:
    return index(model).as_chat_engine(chat_mode="context", llm=model).chat("What are rivers?")


def by_streaming_chat(model: Any) -> object:
    return "".join(index(model).as_chat_engine(chat_mode="context", llm=model).stream_chat("What are rivers?").response_gen)


def by_agent(model: Any) -> object:
    async def work() -> object:
        return await FunctionAgent(name="helper", llm=model).run(user_msg="Say something.")

    return asyncio.run(work())


WAYS = [
    by_complete,
    by_acomplete,
    by_stream,
    by_astream,
    by_query,
    by_query_in_loop,
    by_streaming_query,
    by_chat,
    by_streaming_chat,
    by_agent,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_each_way_is_counted_once_and_refused_under_a_spent_budget(provider: FakeProvider, way: Way, model: Any) -> None:
    with wflo_nb.execution(budget_usd=1):
        assert "word0" in str(way(model(provider)))
    assert agrees(provider) == 1
    with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd=0):
        for _ in range(2):
            with pytest.raises(Exception, match="refused before it was sent"):
                way(model(provider))
    assert provider.requests == 1


def tools(provider: FakeProvider, model: Any) -> list[Any]:
    """A tool that calls a model in a thread, and one that asks an engine."""
    plain = openai.OpenAI(base_url=provider.openai_url, api_key="test")

    def search(query: str) -> str:
        """Search."""
        assert threading.current_thread() is not threading.main_thread()
        asked: list[Any] = [{"role": "user", "content": query}]
        return str(plain.chat.completions.create(model="gpt-4o", messages=asked, max_tokens=9).choices[0].message.content)

    engine = index(model).as_query_engine(llm=model)
    return [
        FunctionTool.from_defaults(search),
        QueryEngineTool.from_defaults(engine, name="library", description="Books.", resolve_input_errors=False),
    ]


def finder(provider: FakeProvider, model: Any = chat) -> Any:
    provider.behave(tools=("search", "library"))
    used = model(provider)
    return FunctionAgent(name="finder", description="Finds.", tools=tools(provider, used), llm=used)


async def run(agent: Any) -> Any:
    return await agent.run(user_msg="go")


@pytest.mark.parametrize("model", MODELS)
def test_tools_in_threads_are_seen(provider: FakeProvider, model: Any) -> None:
    with wflo_nb.execution(budget_usd=1):
        asyncio.run(run(finder(provider, model)))
    assert agrees(provider) == 5


@pytest.mark.parametrize("how", ["in a loop", "plain"])
@pytest.mark.parametrize("model", MODELS)
def test_agent_is_executed_and_what_it_does_bears_names(provider: FakeProvider, how: str, model: Any) -> None:
    wflo = WfloWorkflow("agent", budget_usd=1)
    agent = finder(provider, model)
    result = asyncio.run(wflo.execute(agent, "go")) if how == "in a loop" else wflo.execute_sync(agent, "go")
    assert type(result).__name__ == "AgentOutput"
    assert str(result).startswith("word0")
    assert steps() == ["finder", "search", "finder", "library", "finder"]
    assert agrees(provider) == 5
    assert [one.name for one in wflo.list_checkpoints()] == ["finder"]
    assert str(asyncio.run(wflo.rollback_to_last_checkpoint())) == str(result)
    assert current().execution(str(wflo.execution_id)).status == "COMPLETED"


def team(provider: FakeProvider) -> Any:
    model = chat(provider)
    provider.behave(tools=("search", "handoff"))
    critic = FunctionAgent(name="critic", description="Criticises.", llm=model)
    first = FunctionAgent(name="finder", description="Finds.", tools=tools(provider, model), llm=model)
    return AgentWorkflow(agents=[first, critic], root_agent="finder")


def test_agents_of_a_team_are_told_apart(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    from wflo_nb.testing import tools as given

    monkeypatch.setitem(given._VALUES, "string", "critic")
    wflo = WfloWorkflow("team", budget_usd=1)
    result = asyncio.run(wflo.execute(team(provider), "go"))
    assert result.current_agent_name == "critic"
    assert steps() == ["finder", "search", "finder", "critic"]
    assert agrees(provider) == 4
    poor = WfloWorkflow("poor", budget_usd=1, per_agent_budgets={"critic": 0})
    with pytest.raises(BudgetExceededError, match='step "critic"'):
        asyncio.run(poor.execute(team(provider), "go"))
    assert provider.requests == 7


def test_agent_that_reasons_in_words_is_executed(provider: FakeProvider) -> None:
    agent = ReActAgent(name="thinker", llm=chat(provider), streaming=False)
    assert "word0" in str(asyncio.run(WfloWorkflow("react", budget_usd=1).execute(agent, "go")))
    assert steps() == ["thinker"]
    assert agrees(provider) == 1


def test_turns_of_an_agent_are_limited_by_max_iterations(provider: FakeProvider) -> None:
    with pytest.raises(WorkflowError, match="stopped at 'finder': its max_iterations=2 are used up"):
        asyncio.run(WfloWorkflow("loop", budget_usd=1, max_iterations=2).execute(finder(provider), "go"))
    assert provider.requests == 4
    asyncio.run(WfloWorkflow("loop", budget_usd=1, max_iterations=3).execute(finder(provider), "go"))
    assert provider.requests == 9


class Middle(Event):
    text: str


class Flow(Workflow):
    """One step in the loop, one in a thread."""

    model: Any = None

    @step
    async def first(self, ev: StartEvent) -> Middle:
        return Middle(text=str(await self.model.acomplete(ev.topic)))

    @step
    def second(self, ev: Middle) -> StopEvent:
        return StopEvent(result=str(self.model.complete(ev.text))[:5])


def flow(provider: FakeProvider, **more: Any) -> Any:
    made = Flow(timeout=30, **more)
    made.model = chat(provider)
    return made


def test_steps_of_a_workflow_are_named(provider: FakeProvider) -> None:
    wflo = WfloWorkflow("flow", budget_usd=1)
    assert asyncio.run(wflo.execute(flow(provider), {"topic": "rivers"})) == "word0"
    assert steps() == ["first", "second"]
    assert agrees(provider) == 2
    assert "rivers" in str(provider.bodies[0])
    assert asyncio.run(wflo.execute(flow(provider), StartEvent(topic="lakes"))) == "word0"
    poor = WfloWorkflow("poor", budget_usd=1, per_agent_budgets={"second": 0})
    with pytest.raises(BudgetExceededError, match='step "second"'):
        asyncio.run(poor.execute(flow(provider), {"topic": "rivers"}))
    with pytest.raises(WorkflowError, match="stopped at 'second': its max_iterations=1 are used up"):
        asyncio.run(WfloWorkflow("short", budget_usd=1, max_iterations=1).execute(flow(provider), {"topic": "rivers"}))
    assert provider.requests == 6


@pytest.mark.parametrize("kind", ["query", "chat"])
def test_engine_is_asked_in_a_thread_and_names_its_calls(provider: FakeProvider, kind: str) -> None:
    model = chat(provider)
    made = index(model)
    engine = made.as_query_engine(llm=model) if kind == "query" else made.as_chat_engine(chat_mode="context", llm=model)
    wflo = WfloWorkflow("engine", budget_usd=1)
    assert "word0" in str(asyncio.run(wflo.execute(engine, "What are rivers?")))
    assert "word0" in str(wflo.execute_sync(engine, {"topic": "rivers"}))
    assert steps() == [type(engine).__name__] * 2
    assert agrees(provider) == 2
    assert "topic: rivers" in str(provider.bodies[1])


def test_streaming_engine_is_read_to_its_end_by_whoever_asked(provider: FakeProvider) -> None:
    model = chat(provider)
    wflo = WfloWorkflow("stream", budget_usd=1)
    answer = wflo.execute_sync(index(model).as_query_engine(llm=model, streaming=True), "What are rivers?")
    assert "".join(answer.response_gen).startswith("word0 word1")
    assert agrees(provider) == 1
    assert steps() == ["RetrieverQueryEngine"]
    poor = WfloWorkflow("poor", budget_usd=0)
    answer = poor.execute_sync(index(model).as_query_engine(llm=model, streaming=True), "What are rivers?")
    with pytest.raises(Exception, match="refused before it was sent"):
        list(answer.response_gen)
    assert provider.requests == 1


def test_generator_of_an_agents_stream_is_streamed_through(provider: FakeProvider) -> None:
    async def talk(topic: str) -> AsyncIterator[str]:
        handler = FunctionAgent(name="talker", llm=chat(provider)).run(user_msg=topic)
        async for event in handler.stream_events():
            yield type(event).__name__
        await handler

    async def program() -> list[str]:
        return [piece async for piece in await WfloWorkflow("stream", budget_usd=1).execute(talk, "rivers")]

    assert asyncio.run(program()).count("AgentStream") > 10
    assert agrees(provider) == 1


@pytest.mark.parametrize("calls", [0, 1], ids=["asked", "in its tool"])
@pytest.mark.parametrize("what", [finder, team, flow])
def test_spent_budget_ends_it_wherever_it_is_and_nothing_is_left(provider: FakeProvider, calls: int, what: Any) -> None:
    inner = "second" if what is flow else "search"
    wflo = WfloWorkflow("poor", budget_usd=[0, 1][calls], per_agent_budgets={inner: 0})

    async def program() -> int:
        with pytest.raises(BudgetExceededError):
            await wflo.execute(what(provider), {"topic": "rivers"})
        sent = provider.requests
        await asyncio.sleep(0.1)
        assert alone()
        return sent

    assert asyncio.run(program()) == provider.requests
    rows = ledger_calls()
    assert sum(row["state"] == "SETTLED" for row in rows) == provider.requests >= calls
    assert rows[calls]["state"] == "REFUSED"
    assert current().execution(str(wflo.execution_id)).status == "FAILED"


def test_retries_of_the_framework_end_with_the_refusal(provider: FakeProvider) -> None:
    with pytest.raises(BudgetExceededError):
        asyncio.run(WfloWorkflow("retry", budget_usd=0).execute(by_complete, chat(provider, max_retries=5)))
    assert provider.requests == 0


def test_two_executions_at_once_keep_their_money_apart(provider: FakeProvider) -> None:
    (a, calls_a), (b, calls_b) = twice_at_once(finder(provider))
    assert a != b
    assert (calls_a, calls_b) == (5, 5)
    assert sums_up(provider)


@pytest.mark.parametrize("what", [finder, flow])
def test_cancelled_run_leaves_nothing_behind(provider: FakeProvider, what: Any) -> None:
    wflo = WfloWorkflow("slow", budget_usd=1)
    work = what(provider)
    provider.behave(delay=0.5)

    async def program() -> None:
        task = asyncio.create_task(wflo.execute(work, {"topic": "rivers"}))
        while not provider.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
        assert alone()

    asyncio.run(program())
    assert current().execution(str(wflo.execution_id)).status == "FAILED"
    assert [row["state"] for row in ledger_calls()] == ["UNCONFIRMED"]
    assert provider.requests == 1
