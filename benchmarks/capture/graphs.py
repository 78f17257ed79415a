"""LangChain's models, LangGraph and ag2."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from benchmarks.capture.cells import ASYNC, ASYNC_STREAM, STREAM, SYNC, TOOLS, Absent, Place, Row
from benchmarks.capture.openai_rows import MODEL


def search(query: str) -> str:
    """Search."""
    return f"Nothing about {query}."


# -- langchain's models --------------------------------------------------------------------------------------------------------


def _openai(place: Place) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=place.model(MODEL), base_url=place.openai_url, api_key="test", max_tokens=place.cap)


def _anthropic(place: Place) -> Any:
    from langchain_anthropic import ChatAnthropic

    return ChatAnthropic(model=place.model("claude-sonnet-4-5"), base_url=place.url, api_key="test", max_tokens=place.cap)


def _model_row(name: str, make: Any, package: str, **more: Any) -> Row:
    """A model of LangChain's, by its own methods."""

    def invoke(place: Place) -> None:
        make(place).invoke(place.prompt)

    async def ainvoke(place: Place) -> None:
        await make(place).ainvoke(place.prompt)

    def stream(place: Place) -> None:
        for _ in make(place).stream(place.prompt):
            pass

    async def astream(place: Place) -> None:
        async for _ in make(place).astream(place.prompt):
            pass

    def with_tool(place: Place) -> None:
        from langchain_core.tools import tool

        known = tool(search)
        model, said = make(place).bind_tools([known]), [("user", place.prompt)]
        while (answer := model.invoke(said)).tool_calls:
            said += [answer, *(known.invoke(call) for call in answer.tool_calls)]

    forms = {SYNC: invoke, ASYNC: ainvoke, STREAM: stream, ASYNC_STREAM: astream, TOOLS: with_tool}
    return Row(name, forms, (package,), local=True, **more)


# -- LangGraph -----------------------------------------------------------------------------------------------------------------


class State(TypedDict, total=False):
    """What goes through the graphs."""

    topic: str
    log: Annotated[list[str], operator.add]


def _nodes(place: Place, *names: str) -> dict[str, Any]:
    """Nodes that ask the model, each in the way in which the graph runs it."""
    from langchain_core.runnables import RunnableLambda

    model = _openai(place)

    def ask(state: State) -> State:
        return {"log": [str(model.invoke(state["topic"]).content)]}

    async def ask_in_loop(state: State) -> State:
        return {"log": [str((await model.ainvoke(state["topic"])).content)]}

    return {name: RunnableLambda(ask, ask_in_loop) for name in names}


def _line(place: Place) -> Any:
    """One node after the other."""
    from langgraph.graph import START, StateGraph

    graph = StateGraph(State)
    for name, node in _nodes(place, "research", "write").items():
        graph.add_node(name, node)
    graph.add_edge(START, "research")
    graph.add_edge("research", "write")
    return graph.compile()


def _branches(place: Place) -> Any:
    """Three nodes at once, and one after all of them."""
    from langgraph.graph import START, StateGraph

    graph, sides = StateGraph(State), ["left", "middle", "right"]
    for name, node in _nodes(place, *sides, "join").items():
        graph.add_node(name, node)
    for name in sides:
        graph.add_edge(START, name)
    graph.add_edge(sides, "join")
    return graph.compile()


def _agent(place: Place) -> Any:
    """A model that calls a tool which calls a model. What the tool raises is told to the model as its result."""
    from langchain_core.tools import tool
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    model = _openai(place)

    @tool
    def search(query: str) -> str:
        """Search."""
        return str(model.invoke(query).content)

    thinking = model.bind_tools([search])
    graph = StateGraph(MessagesState)
    graph.add_node("agent", lambda state: {"messages": [thinking.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([search], handle_tool_errors=True))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph.compile()


def _many_tools(place: Place) -> Any:
    """A node that calls three tools at once, each of which calls a model."""
    from langchain_core.messages import AIMessage
    from langchain_core.tools import tool
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode

    model = _openai(place)

    @tool
    def search(query: str) -> str:
        """Search."""
        return str(model.invoke(query).content)

    calls = [{"name": "search", "args": {"query": f"river {number}"}, "id": f"call_{number}"} for number in range(3)]
    graph = StateGraph(MessagesState)
    graph.add_node("agent", lambda _: {"messages": [AIMessage("", tool_calls=calls)]})
    graph.add_node("tools", ToolNode([search], handle_tool_errors=True))
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "tools")
    return graph.compile()


def _graph_row(name: str, make: Any, with_tools: Any, **more: Any) -> Row:
    """A graph, by its own methods."""

    def given(place: Place) -> dict[str, Any]:
        return {"topic": place.prompt}

    def invoke(place: Place) -> None:
        make(place).invoke(given(place))

    async def ainvoke(place: Place) -> None:
        await make(place).ainvoke(given(place))

    def stream(place: Place) -> None:
        for _ in make(place).stream(given(place), stream_mode="messages"):  # the models stream as well
            pass

    async def astream(place: Place) -> None:
        async for _ in make(place).astream(given(place), stream_mode="messages"):
            pass

    def tools(place: Place) -> None:
        with_tools(place).invoke({"messages": [("user", place.prompt)]})

    forms = {SYNC: invoke, ASYNC: ainvoke, STREAM: stream, ASYNC_STREAM: astream, TOOLS: tools}
    return Row(name, forms, ("langgraph", "langchain-openai"), local=True, **more)


# -- ag2 -----------------------------------------------------------------------------------------------------------------------


def _ag2(place: Place, streaming: bool = False, **more: Any) -> Any:
    from ag2 import Agent
    from ag2.config import OpenAIConfig

    model: Any = place.model(MODEL)
    config = OpenAIConfig(model=model, base_url=place.openai_url, api_key="test", max_tokens=place.cap, streaming=streaming)
    return Agent("helper", config=config, **more)


async def ag2_asked(place: Place) -> None:
    await _ag2(place).ask(place.prompt)


async def ag2_streamed(place: Place) -> None:
    await _ag2(place, streaming=True).ask(place.prompt)


async def ag2_with_tool(place: Place) -> None:
    model = _ag2(place)

    async def search(query: str) -> str:
        """Search."""
        return str((await model.ask(query)).body)

    await _ag2(place, tools=[search]).ask(place.prompt)


_LOOP_ONLY = Absent("ag2 1.x is asynchronous")

ROWS = [
    _model_row("langchain-openai", _openai, "langchain-openai", behave={"cache_read": 40, "reasoning": 5}),
    _model_row("langchain-anthropic", _anthropic, "langchain-anthropic", behave={"cache_read": 40, "cache_write": 30}),
    _graph_row("LangGraph", _line, _agent),
    _graph_row("LangGraph with parallel branches", _branches, _many_tools, tools=()),
    Row(
        "ag2",
        {SYNC: _LOOP_ONLY, ASYNC: ag2_asked, STREAM: _LOOP_ONLY, ASYNC_STREAM: ag2_streamed, TOOLS: ag2_with_tool},
        ("ag2", "openai"),
        local=True,
    ),
]
