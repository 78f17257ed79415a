"""LangGraph, unchanged: run under a budget, labelled and checkpointed by node, resumed behind a node."""

from __future__ import annotations

import asyncio
import datetime
import operator
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, Send, interrupt
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import wflo_nb
from tests.collector import Collector, running
from tests.frameworks.conftest import ledger_calls, steps, sums_up
from wflo_nb import BudgetExceededError, WfloWorkflow, telemetry
from wflo_nb.errors import ConfigurationError, WorkflowError
from wflo_nb.store import current
from wflo_nb.testing import FakeProvider


class State(TypedDict, total=False):
    topic: str
    log: Annotated[list[str], operator.add]
    text: str


@pytest.fixture
def model(openai_environment: FakeProvider) -> ChatOpenAI:
    return ChatOpenAI(model="gpt-4o-mini", max_tokens=50)


def line(*nodes: Any) -> Any:
    graph = StateGraph(State)
    for one in nodes:
        graph.add_node(one.__name__, one)
    for a, b in zip((START, *(n.__name__ for n in nodes)), (*(n.__name__ for n in nodes), END), strict=True):
        graph.add_edge(a, b)
    return graph.compile()


def research_and_write(model: ChatOpenAI, failing: list[bool] | None = None) -> Any:
    def research(state: State) -> State:
        return {"log": [str(model.invoke(state["topic"]).content)]}

    async def write(state: State) -> State:
        if failing and failing[0]:
            raise ConnectionError("no writer")
        return {"log": ["written"], "text": str((await model.ainvoke(state["log"][0])).content)}

    return line(research, write)


def test_graph_gives_what_ainvoke_gives_and_its_calls_bear_the_names_of_nodes(provider: FakeProvider, model: ChatOpenAI) -> None:
    graph, wflo = research_and_write(model), WfloWorkflow("graph", budget_usd=1)

    async def program() -> tuple[Any, Any, Any]:
        result = await wflo.execute(graph, {"topic": "rivers"})
        costs = await wflo.get_cost_breakdown()
        return result, costs, await graph.ainvoke({"topic": "rivers"})

    result, costs, bare = asyncio.run(program())
    assert result == bare
    assert result["text"].startswith("word0")
    assert steps() == ["research", "write"]
    assert costs["total_usd"] * 10**9 == sum(line.nano_usd for line in provider.bill[:2])
    assert set(costs["by_step"]) == {"research", "write"}
    kept = current().execution(str(wflo.execution_id))
    assert (kept.status, kept.inputs, kept.outputs) == ("COMPLETED", {"topic": "rivers"}, result)


def test_every_node_is_checkpointed_and_the_graph_goes_on_behind_one(provider: FakeProvider, model: ChatOpenAI) -> None:
    failing = [True]
    graph, wflo = research_and_write(model, failing), WfloWorkflow("graph", budget_usd=1)

    async def program() -> None:
        with pytest.raises(ConnectionError):
            await wflo.execute(graph, {"topic": "rivers"})
        assert [one.name for one in wflo.list_checkpoints()] == ["research"]
        state = await wflo.rollback_to_last_checkpoint()
        assert state["topic"] == "rivers"
        assert len(state["log"]) == 1
        assert provider.requests == 1
        failing[0] = False
        result = await wflo.resume("research")
        assert (result["topic"], result["log"]) == ("rivers", [*state["log"], "written"])
        assert provider.requests == 2  # the research was not paid again
        assert [one.name for one in wflo.list_checkpoints()] == ["research", "write"]

    asyncio.run(program())
    assert steps() == ["research", "write"]


def branching(model: ChatOpenAI) -> Any:
    async def ask(state: State) -> str:
        return str((await model.ainvoke(state["topic"])).content)

    async def left(state: State) -> State:
        return {"log": ["left " + (await ask(state))[:5]]}

    async def right(state: State) -> State:
        return {"log": ["right " + (await ask(state))[:5]]}

    async def join(state: State) -> State:
        return {"text": f"{len(state['log'])} parts: {(await ask(state))[:5]}"}

    graph = StateGraph(State)
    for node in (left, right, join):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "left")
    graph.add_edge(START, "right")
    graph.add_edge(["left", "right"], "join")
    graph.add_edge("join", END)
    return graph.compile()


def test_parallel_branches_are_told_apart_and_resumed_together(provider: FakeProvider, model: ChatOpenAI) -> None:
    graph, wflo = branching(model), WfloWorkflow("branches", budget_usd=1)

    async def program() -> None:
        result = await wflo.execute(graph, {"topic": "rivers"})
        assert result["text"] == "2 parts: word0"
        assert sorted(steps()) == ["join", "left", "right"]
        again = await wflo.resume("left")
        assert again["text"] == "2 parts: word0"
        assert len(again["log"]) == 2
        assert provider.requests == 4

    asyncio.run(program())
    assert sums_up(provider)


def note(old: list[Any], new: Any) -> list[Any]:
    return [*old, f"- {new}"]


class Noted(TypedDict, total=False):
    notes: Annotated[list[Any], note]
    n: int


def test_state_that_is_resumed_does_not_go_through_reducers_again() -> None:
    graph = StateGraph(Noted)
    graph.add_node("a", lambda _: {"notes": "a"})
    graph.add_node("b", lambda _: {"notes": "b"})
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    graph.add_edge("b", END)
    wflo, compiled = WfloWorkflow("notes"), graph.compile()
    result = wflo.execute_sync(compiled, {"n": 1})
    assert result == {"notes": ["- a", "- b"], "n": 1}
    assert asyncio.run(wflo.resume("a")) == result == compiled.invoke({"n": 1})


@pytest.mark.parametrize("version", [1, 2])
def test_graph_goes_on_where_a_node_has_sent_it(version: int) -> None:
    runs: list[int] = []

    def lp(state: Noted) -> Command[str]:
        runs.append(state["n"])
        return Command(update={"n": state["n"] + 1}, goto="lp" if state["n"] < 2 else "fin")

    graph = StateGraph(Noted)
    graph.add_node("lp", lp)
    graph.add_node("fin", lambda state: {"n": state["n"] * 10})
    graph.add_edge(START, "lp")
    wflo = WfloWorkflow("loop")
    assert wflo.execute_sync(graph.compile(), {"n": 0}) == {"notes": [], "n": 30}
    assert asyncio.run(wflo.rollback_to_checkpoint("lp", 1)) == {"notes": [], "n": 1}
    assert asyncio.run(wflo.resume("lp", version=version)) == {"notes": [], "n": 30}
    assert runs == [0, 1, 2, *range(version, 3)]
    assert asyncio.run(wflo.resume("fin")) == {"notes": [], "n": 30}


@pytest.mark.parametrize("how", ["an edge", "a command"])
def test_what_a_node_has_sent_to_others_is_sent_again(how: str) -> None:
    def part(state: Any) -> Noted:
        return {"notes": state["part"]}

    def plan(_: Noted) -> Any:
        return Command(update={"n": 1}, goto=parts(_)) if how == "a command" else {"n": 1}

    def parts(_: Noted) -> list[Any]:
        return [Send("part", {"part": name}) for name in ("x", "y")]

    graph = StateGraph(Noted)
    graph.add_node("plan", plan)
    graph.add_node("part", part)
    graph.add_edge(START, "plan")
    if how == "an edge":
        graph.add_conditional_edges("plan", parts, ["part"])
    wflo = WfloWorkflow("parts")
    assert wflo.execute_sync(graph.compile(), {"n": 0}) == {"notes": ["- x", "- y"], "n": 1}
    assert asyncio.run(wflo.resume("plan")) == {"notes": ["- x", "- y"], "n": 1}


@pytest.mark.parametrize("how", ["execute", "execute_sync"])
def test_spent_budget_stops_a_graph_and_nothing_more_is_sent(provider: FakeProvider, model: ChatOpenAI, how: str) -> None:
    graph = branching(model)
    wflo = WfloWorkflow("poor", budget_usd="0.00005")
    with pytest.raises(BudgetExceededError):
        if how == "execute":
            asyncio.run(wflo.execute(graph, {"topic": "rivers"}))
        else:
            wflo.execute_sync(graph, {"topic": "rivers"})
    assert provider.spent_nano <= 50_000
    sent = provider.requests
    assert sent < 3
    assert current().execution(str(wflo.execution_id)).status == "FAILED"
    assert provider.requests == sent


def test_tool_whose_refusal_the_tool_node_swallows_ends_with_the_refusal(provider: FakeProvider, model: ChatOpenAI) -> None:
    tries: list[str] = []

    @tool
    def search(query: str) -> str:
        """Search."""
        tries.append(threading.current_thread().name)
        return str(model.invoke(query).content)

    def agent(state: MessagesState) -> Any:
        calls = [{"name": "search", "args": {"query": f"q{i}"}, "id": f"c{i}"} for i in range(3)]
        return {"messages": [AIMessage("", tool_calls=calls)]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_node("tools", ToolNode([search], handle_tool_errors=True))
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "tools")
    graph.add_edge("tools", END)
    wflo = WfloWorkflow("tools", budget_usd="0.00005")
    with pytest.raises(BudgetExceededError):
        asyncio.run(wflo.execute(graph.compile(), {"messages": [HumanMessage("go")]}))
    assert len(tries) == 3
    assert provider.spent_nano <= 50_000
    assert {row["step"] for row in ledger_calls()} == {"tools"}
    assert "REFUSED" in {row["state"] for row in ledger_calls()}


def test_node_has_a_budget_of_its_own(provider: FakeProvider, model: ChatOpenAI) -> None:
    graph = research_and_write(model)
    wflo = WfloWorkflow("team", budget_usd=1, per_agent_budgets={"write": 0})
    with pytest.raises(BudgetExceededError, match='step "write"'):
        asyncio.run(wflo.execute(graph, {"topic": "rivers"}))
    assert provider.requests == 1
    costs = asyncio.run(wflo.get_cost_breakdown())
    assert list(costs["by_step"]) == ["research"]


@pytest.mark.parametrize("how", ["is a graph", "runs one", "runs two"])
def test_budget_of_a_node_binds_the_graph_inside_it(provider: FakeProvider, model: ChatOpenAI, how: str) -> None:
    def inner(state: State) -> State:
        return {"text": str(model.invoke(state["topic"]).content)}

    part = line(inner)

    def runs(state: State) -> State:
        for _ in range(1 if how == "runs one" else 2):
            text = part.invoke({"topic": state["topic"]})["text"]
        return {"text": text}

    graph = StateGraph(State)
    graph.add_node("outer", part if how == "is a graph" else runs)
    graph.add_edge(START, "outer")
    whole = graph.compile()
    asyncio.run(WfloWorkflow("nested", budget_usd=1, per_agent_budgets={"outer": 1}).execute(whole, {"topic": "x"}))
    assert set(steps()) == {"inner"}
    sent = provider.requests
    wflo = WfloWorkflow("nested", budget_usd=1, per_agent_budgets={"outer": 0})
    with pytest.raises(BudgetExceededError, match='step "outer"'):
        asyncio.run(wflo.execute(whole, {"topic": "x"}))
    assert provider.requests == sent
    own = WfloWorkflow("nested", budget_usd=1, per_agent_budgets={"outer": 0, "inner": 1})
    asyncio.run(own.execute(whole, {"topic": "x"}))  # the innermost that has one counts
    assert provider.requests == 2 * sent


def test_supersteps_are_limited_by_max_iterations(provider: FakeProvider, model: ChatOpenAI) -> None:
    def think(state: State) -> State:
        return {"log": [str(model.invoke(state["topic"]).content)]}

    graph = StateGraph(State)
    graph.add_node("think", think)
    graph.add_edge(START, "think")
    graph.add_edge("think", "think")
    with pytest.raises(WorkflowError, match="max_iterations=3 are used up"):
        asyncio.run(WfloWorkflow("loop", budget_usd=1, max_iterations=3).execute(graph.compile(), {"topic": "x"}))
    assert provider.requests == 3


def test_graph_of_as_many_supersteps_as_it_may_have_comes_to_its_end() -> None:
    runs: list[str] = []

    def a(_: State) -> State:
        runs.append("a")
        return {"log": ["a"]}

    async def b(_: State) -> State:
        runs.append("b")
        return {"log": ["b"]}

    async def c(_: State) -> State:
        runs.append("c")
        return {"log": ["c"]}

    graph = line(a, b, c)
    assert WfloWorkflow("three", max_iterations=3).execute_sync(graph, {})["log"] == ["a", "b", "c"]
    runs.clear()
    wflo = WfloWorkflow("two", max_iterations=2)
    with pytest.raises(WorkflowError, match="stopped at 'c': its max_iterations=2 are used up"):
        wflo.execute_sync(graph, {})
    assert runs == ["a", "b"]
    assert asyncio.run(wflo.rollback_to_checkpoint("b"))["log"] == ["a", "b"]
    assert asyncio.run(wflo.resume("b"))["log"] == ["a", "b", "c"]
    stopped = WfloWorkflow("two", max_iterations=2).execute_sync(graph, {}, interrupt_after=["b"])
    assert stopped["log"] == ["a", "b"]


@pytest.mark.parametrize("keys", [["log"], "log", None])
def test_output_of_a_graph_may_be_chosen_as_with_ainvoke(keys: Any) -> None:
    def a(_: State) -> State:
        return {"log": ["a"], "text": "x"}

    def b(_: State) -> State:
        return {"log": ["b"]}

    graph, wflo = line(a, b), WfloWorkflow("chosen")
    expected = graph.invoke({"topic": "x"}, output_keys=keys)
    assert wflo.execute_sync(graph, {"topic": "x"}, output_keys=keys, stream_mode="values") == expected
    assert asyncio.run(wflo.rollback_to_checkpoint("a")) == {"topic": "x", "log": ["a"], "text": "x"}  # is whole all the same
    assert asyncio.run(wflo.resume("a")) == expected
    with pytest.raises(ConfigurationError, match="a function that reads the stream"):
        wflo.execute_sync(graph, {"topic": "x"}, stream_mode="updates")


def test_step_inside_a_node_names_its_calls(model: ChatOpenAI) -> None:
    def node(state: State) -> State:
        model.invoke("a")
        with wflo_nb.step("inner"):
            model.invoke("b")
        return {"text": "x"}

    asyncio.run(WfloWorkflow("inner", budget_usd=1).execute(line(node), {"topic": "x"}))
    assert steps() == ["node", "inner"]


def test_graph_with_memory_runs_on_a_thread_of_its_own_and_interrupts_are_given(model: ChatOpenAI) -> None:
    def ask(state: State) -> State:
        return {"text": interrupt("really?")}

    graph = StateGraph(State)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    compiled = graph.compile(checkpointer=InMemorySaver())
    result = asyncio.run(WfloWorkflow("human").execute(compiled, {"topic": "x"}))
    assert result["topic"] == "x"
    assert result["__interrupt__"][0].value == "really?"


def test_two_graphs_at_once_keep_their_money_apart(provider: FakeProvider, model: ChatOpenAI) -> None:
    graph = branching(model)
    wflo = WfloWorkflow("both", budget_usd=1)

    async def one(topic: str) -> Any:
        await wflo.execute(graph, {"topic": topic})
        return wflo.execution_id, (await wflo.get_cost_breakdown())["calls"]

    async def program() -> Any:
        return await asyncio.gather(one("rivers"), one("lakes and seas"))

    (a, calls_a), (b, calls_b) = asyncio.run(program())
    assert a != b
    assert (calls_a, calls_b) == (3, 3)
    assert sums_up(provider)


def test_streaming_nodes_are_recorded(provider: FakeProvider, model: ChatOpenAI) -> None:
    async def talk(state: State) -> State:
        return {"text": "".join([str(chunk.content) async for chunk in model.astream(state["topic"])])}

    result = asyncio.run(WfloWorkflow("stream", budget_usd=1).execute(line(talk), {"topic": "x"}))
    assert result["text"].startswith("word0 word1")
    assert steps() == ["talk"]
    assert sums_up(provider)


def by_invoke(graph: Any) -> Any:
    return graph.invoke({"topic": "rivers"})


def by_stream(graph: Any) -> Any:
    return list(graph.stream({"topic": "rivers"}, stream_mode="values"))[-1]


def by_ainvoke(graph: Any) -> Any:
    return asyncio.run(graph.ainvoke({"topic": "rivers"}))


def by_astream(graph: Any) -> Any:
    async def last() -> Any:
        return [part async for part in graph.astream({"topic": "rivers"}, stream_mode="values")][-1]

    return asyncio.run(last())


def threes(model: ChatOpenAI) -> Any:
    """Two branches side by side and a node behind them, in plain functions."""

    def ask(state: State) -> State:
        return {"log": [str(model.invoke(state["topic"]).content)]}

    graph = StateGraph(State)
    for name in ("left", "right", "join"):
        graph.add_node(name, ask)
    graph.add_edge(START, "left")
    graph.add_edge(START, "right")
    graph.add_edge(["left", "right"], "join")
    graph.add_edge("join", END)
    return graph.compile()


@pytest.mark.parametrize("way", [by_invoke, by_stream, by_ainvoke, by_astream])
def test_graph_of_ones_own_is_tracked_and_stopped_without_a_workflow(provider: FakeProvider, model: ChatOpenAI, way: Any) -> None:
    with wflo_nb.execution("cell", budget_usd=1):
        assert len(way(threes(model))["log"]) == 3
    assert sorted(steps()) == ["join", "left", "right"]
    assert sums_up(provider)
    reached: list[BaseException] = []
    with pytest.raises(BudgetExceededError), wflo_nb.execution("poor", budget_usd=0):
        for _ in range(2):
            try:
                way(threes(model))
            except Exception as error:
                reached.append(error)
    assert [isinstance(error, BudgetExceededError) for error in reached] == [True, True]
    assert provider.requests == 3


def test_date_in_the_state_harms_no_paid_node_and_comes_back(provider: FakeProvider, model: ChatOpenAI) -> None:
    def when(state: State) -> Any:
        model.invoke("when?")
        return {"text": datetime.datetime(2026, 7, 8, tzinfo=datetime.UTC)}

    wflo = WfloWorkflow("dates", budget_usd=1)
    result = wflo.execute_sync(line(when), {"topic": "x"})
    assert result["text"].year == 2026
    assert asyncio.run(wflo.rollback_to_checkpoint("when"))["text"] == result["text"]
    assert sums_up(provider)


def test_nodes_are_labels_without_a_workflow_too(provider: FakeProvider, model: ChatOpenAI) -> None:
    with wflo_nb.execution("cell", budget_usd=1):
        asyncio.run(research_and_write(model).ainvoke({"topic": "rivers"}))
        model.invoke("outside")
    frame = wflo_nb.report.costs(by="node")
    assert dict(zip(frame["node"].fillna("-"), frame["calls"], strict=True)) == {"research": 1, "write": 1, "-": 1}


def test_nodes_that_retry_and_nodes_that_swallow_end_with_the_refusal(provider: FakeProvider, model: ChatOpenAI) -> None:
    tries: list[str] = []

    def retried(state: State) -> State:
        tries.append("retried")
        return {"log": [str(model.invoke(state["topic"]).content)]}

    def swallowing(state: State) -> State:
        tries.append("swallowing")
        try:
            return {"log": [str(model.invoke(state["topic"]).content)]}
        except Exception:
            return {"log": ["nothing"]}

    stubborn = StateGraph(State)
    stubborn.add_node("retried", retried, retry_policy=RetryPolicy(initial_interval=0.01, max_attempts=3, retry_on=Exception))
    stubborn.add_edge(START, "retried")
    wflo = WfloWorkflow("stubborn", budget_usd=0)
    with pytest.raises(BudgetExceededError):
        asyncio.run(wflo.execute(stubborn.compile(), {"topic": "x"}))
    with pytest.raises(BudgetExceededError):
        asyncio.run(wflo.execute(line(swallowing), {"topic": "x"}))
    own = WfloWorkflow("own", budget_usd=1, per_agent_budgets={"swallowing": 0})
    with pytest.raises(BudgetExceededError, match='step "swallowing"'):
        asyncio.run(own.execute(line(swallowing), {"topic": "x"}))
    assert current().execution(str(own.execution_id)).status == "FAILED"
    assert tries == ["retried", "retried", "retried", "swallowing", "swallowing"]
    assert provider.requests == 0
    assert {row["state"] for row in ledger_calls()} == {"REFUSED"}


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "a chain", "a thread", "told by the user"])
def test_calls_of_tools_bear_their_names(provider: FakeProvider, model: ChatOpenAI, how: str) -> None:
    heard: list[str] = []

    def ask(query: str) -> str:
        if how == "a chain":
            return str((RunnableLambda(lambda q: q) | model | RunnableLambda(lambda m: model.invoke(m.content).content)).invoke(query))
        if how == "a thread":
            with ThreadPoolExecutor(1) as pool:
                return str(pool.submit(model.invoke, query).result().content)
        return str(model.invoke(query).content)

    @tool
    def search(query: str) -> str:
        """Search."""
        return ask(query)

    @tool
    async def read(page: str) -> str:
        """Read."""
        return str((await model.ainvoke(page)).content)

    async def agent(state: MessagesState) -> Any:
        await model.ainvoke("what to do?")
        calls = [{"name": "search", "args": {"query": "q"}, "id": "c1"}]
        if how == "ainvoke":
            calls.append({"name": "read", "args": {"page": "p"}, "id": "c2"})
        return {"messages": [AIMessage("", tool_calls=calls)]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_node("tools", ToolNode([search, read]))
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "tools")
    graph.add_edge("tools", END)

    class Mine(BaseCallbackHandler):
        def on_tool_start(self, serialized: Any, *_: Any, **__: Any) -> None:
            heard.append(serialized["name"])

    mine = [Mine()]
    config: Any = {"callbacks": CallbackManager(list(mine), list(mine)) if how == "told by the user" else mine}
    result = WfloWorkflow("tools", budget_usd=1).execute_sync(graph.compile(), {"messages": [HumanMessage("go")]}, config=config)
    expected = {"ainvoke": ["search", "read"], "a chain": ["search", "search"]}.get(how, ["search"])
    assert [message.type for message in result["messages"]][:2] == ["human", "ai"]
    frame = wflo_nb.report.calls()
    assert frame["step"].tolist() == ["agent", *["tools"] * len(expected)]
    assert frame["tool"].fillna("-").tolist()[0] == "-"
    assert sorted(frame["tool"].tolist()[1:]) == sorted(expected)
    assert set(heard) == set(expected)  # the user's own callbacks
    assert len(mine) == 1
    assert set(wflo_nb.report.costs(by="tool")["tool"].fillna("-")) == {"-", *expected}
    assert sums_up(provider)


@pytest.fixture
def collector() -> Iterator[Collector]:
    yield from running()


def test_trace_of_a_graph_reaches_a_collector_with_its_nodes_between_the_workflow_and_its_calls(
    provider: FakeProvider, model: ChatOpenAI, collector: Collector
) -> None:
    off = telemetry.enable(otlp_endpoint=collector.url)
    wflo = WfloWorkflow("article", budget_usd=1)
    try:
        asyncio.run(wflo.execute(branching(model), {"topic": "rivers"}))
        assert telemetry.flush()
        trace = wflo.get_trace_id()
    finally:
        off()
    outer, rows = collector.one("invoke_workflow article"), ledger_calls()
    nodes = {span.id: span for span in collector.spans if span.name.startswith("step ")}
    calls = collector.named("chat gpt-4o-mini")
    assert sorted(span.name for span in nodes.values()) == ["step join", "step left", "step right"]
    assert {(span.parent, span.trace, span.attributes["wflo.step"]) for span in nodes.values()} == {
        (outer.id, outer.trace, name) for name in ("left", "right", "join")
    }
    assert (outer.parent, outer.trace) == ("", trace)
    # Every call lies in its node, and the node's span lasts as long as its calls.
    assert sorted(nodes[call.parent].attributes["wflo.step"] for call in calls) == ["join", "left", "right"]
    assert all(call.attributes["wflo.step"] == nodes[call.parent].attributes["wflo.step"] for call in calls)
    assert all(nodes[call.parent].start <= call.start < call.end <= nodes[call.parent].end <= outer.end for call in calls)
    # The money of the trace is that of the ledger and of the provider's bill, call by call and in all.
    told = {call.attributes["wflo.call.id"]: call.attributes["wflo.cost.nano_usd"] for call in calls}
    assert told == {row["id"]: row["cost_nano"] for row in rows}
    assert sum(told.values()) == outer.attributes["wflo.spent.nano_usd"] == provider.spent_nano > 0
    assert {call.attributes["wflo.execution.id"] for call in calls} == {wflo.execution_id}
    tokens = {row["id"]: (row["input_tokens"], row["output_tokens"]) for row in rows}
    assert tokens == {
        call.attributes["wflo.call.id"]: (call.attributes["gen_ai.usage.input_tokens"], call.attributes["gen_ai.usage.output_tokens"])
        for call in calls
    }


def test_graph_inside_a_request_that_came_with_a_trace_stays_in_it(model: ChatOpenAI, collector: Collector) -> None:
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{collector.url}/v1/traces")))
    off = telemetry.enable(tracer_provider=tracers)
    tracer, trace, caller = tracers.get_tracer("a server"), "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

    def draft(state: State) -> State:
        with tracer.start_as_current_span("draft"):
            return {"text": str(model.invoke(state["topic"]).content)}

    async def serve() -> None:
        came = TraceContextTextMapPropagator().extract({"traceparent": f"00-{trace}-{caller}-01"})
        with tracer.start_as_current_span("request", context=came):
            await WfloWorkflow("article", budget_usd=1).execute(line(draft), {"topic": "rivers"})

    try:
        asyncio.run(serve())
    finally:
        off()
        tracers.shutdown()
    names = ("request", "invoke_workflow article", "draft", "step draft", "chat gpt-4o-mini")
    request, outer, own, node, call = (collector.one(name) for name in names)
    assert {span.trace for span in collector.spans} == {trace}
    assert (request.parent, outer.parent, own.parent) == (caller, request.id, outer.id)
    assert (node.parent, call.parent) == (own.id, node.id)
