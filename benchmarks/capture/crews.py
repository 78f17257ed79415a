"""Frameworks on OpenAI's SDK 2: LiteLLM, CrewAI, AutoGen, DSPy."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.capture.cells import ASYNC, ASYNC_STREAM, STREAM, SYNC, TOOLS, Absent, Place, Row
from benchmarks.capture.openai_rows import MODEL, SCHEMA
from benchmarks.capture.openai_rows import search as found

FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "search", "description": "Search.", "parameters": SCHEMA}}


# -- LiteLLM -------------------------------------------------------------------------------------------------------------------


def _litellm_row(provider: str, model: str, **more: Any) -> Row:
    """LiteLLM's completion, on the way to one provider."""

    def asked(place: Place, **extra: Any) -> dict[str, Any]:
        base = place.openai_url if provider == "openai" else place.url
        name = f"{provider}/{place.model(model)}"
        return {"model": name, "messages": place.messages, "api_base": base, "api_key": "x", "max_tokens": place.cap, **extra}

    def completion(place: Place) -> None:
        import litellm

        litellm.completion(**asked(place))

    async def acompletion(place: Place) -> None:
        import litellm

        await litellm.acompletion(**asked(place))

    def streamed(place: Place) -> None:
        import litellm

        for _ in litellm.completion(**asked(place, stream=True)):
            pass

    async def streamed_in_loop(place: Place) -> None:
        import litellm

        async for _ in await litellm.acompletion(**asked(place, stream=True)):
            pass

    def with_tool(place: Place) -> None:
        import litellm

        messages = place.messages
        while True:
            answer = litellm.completion(**asked(place, messages=messages, tools=[FUNCTION])).choices[0].message
            if not answer.tool_calls:
                return
            messages.append(answer)
            for call in answer.tool_calls:
                messages.append({"role": "tool", "tool_call_id": call.id, "content": found(**json.loads(call.function.arguments))})

    forms = {SYNC: completion, ASYNC: acompletion, STREAM: streamed, ASYNC_STREAM: streamed_in_loop, TOOLS: with_tool}
    return Row(f"litellm to {provider}", forms, ("litellm",), local=True, **more)


# -- CrewAI --------------------------------------------------------------------------------------------------------------------


def _llm(place: Place) -> Any:
    from crewai import LLM

    return LLM(model=f"openai/{place.model(MODEL)}", base_url=place.openai_url, api_key="test", max_tokens=place.cap)


def _crew(place: Place, *, stream: bool = False, threads: bool = False, tools: list[Any] | None = None) -> Any:
    """Two agents, each with a task. With `threads` the first two tasks run at once, in threads of CrewAI's."""
    from crewai import Agent, Crew, Task

    llm = _llm(place)

    def task(role: str, *, aside: bool = False) -> Any:
        agent = Agent(role=role, goal="help", backstory="none", llm=llm, tools=tools or [])
        return Task(description=f"{role}: {{topic}}.", expected_output="a text", agent=agent, async_execution=aside)

    roles = {"researcher": True, "critic": True, "writer": False} if threads else {"researcher": False, "writer": False}
    tasks = [task(role, aside=aside) for role, aside in roles.items()]
    return Crew(agents=[one.agent for one in tasks], tasks=tasks, stream=stream)


def _topic(place: Place) -> dict[str, Any]:
    return {"inputs": {"topic": place.prompt}}


def kickoff(place: Place) -> None:
    _crew(place).kickoff(**_topic(place))


async def akickoff(place: Place) -> None:
    await _crew(place).akickoff(**_topic(place))


def kickoff_streamed(place: Place) -> None:
    for _ in _crew(place, stream=True).kickoff(**_topic(place)):
        pass


async def akickoff_streamed(place: Place) -> None:
    async for _ in await _crew(place, stream=True).akickoff(**_topic(place)):
        pass


def kickoff_with_tool(place: Place) -> None:
    from crewai.tools import tool

    llm = _llm(place)

    @tool
    def search(query: str) -> str:
        """Search."""
        return str(llm.call(query))

    _crew(place, tools=[search]).kickoff(**_topic(place))


def kickoff_in_threads(place: Place) -> None:
    _crew(place, threads=True).kickoff(**_topic(place))


async def kickoff_async(place: Place) -> None:
    await _crew(place, threads=True).kickoff_async(**_topic(place))


def kickoff_in_threads_streamed(place: Place) -> None:
    for _ in _crew(place, threads=True, stream=True).kickoff(**_topic(place)):
        pass


async def kickoff_async_streamed(place: Place) -> None:
    async for _ in await _crew(place, threads=True, stream=True).kickoff_async(**_topic(place)):
        pass


def kickoff_with_tool_in_threads(place: Place) -> None:
    from crewai.tools import tool

    llm = _llm(place)

    @tool
    def search(query: str) -> str:
        """Search."""
        with ThreadPoolExecutor(2) as pool:
            return " ".join(map(str, pool.map(llm.call, [query, f"more about {query}"])))

    _crew(place, tools=[search]).kickoff(**_topic(place))


# -- AutoGen -------------------------------------------------------------------------------------------------------------------


def _autogen_client(place: Place) -> Any:
    from autogen_core.models import ModelInfo
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    info = ModelInfo(vision=False, function_calling=True, json_output=False, family="unknown", structured_output=False)
    return OpenAIChatCompletionClient(
        model=place.model(MODEL), base_url=place.openai_url, api_key="test", max_tokens=place.cap, model_info=info
    )


def _agent(client: Any, name: str = "solo", *, stream: bool = False, tool: bool = False) -> Any:
    from autogen_agentchat.agents import AssistantAgent
    from autogen_core.models import UserMessage

    async def search(query: str) -> str:
        """Search."""
        return str((await client.create([UserMessage(content=query, source="user")])).content)

    return AssistantAgent(name, client, model_client_stream=stream, tools=[search] if tool else None, max_tool_iterations=3)


def _team(client: Any, **more: Any) -> Any:
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.teams import RoundRobinGroupChat

    agents = [_agent(client, name, **more) for name in ("researcher", "critic")]
    return RoundRobinGroupChat(agents, termination_condition=MaxMessageTermination(3))


def _autogen_row(name: str, make: Any) -> Row:
    """An agent or a team of AutoGen's, by its own methods."""

    async def run(place: Place) -> None:
        async with _closing(_autogen_client(place)) as client:
            await make(client).run(task=place.prompt)

    async def run_stream(place: Place) -> None:
        async with _closing(_autogen_client(place)) as client:
            async for _ in make(client, stream=True).run_stream(task=place.prompt):
                pass

    async def with_tool(place: Place) -> None:
        async with _closing(_autogen_client(place)) as client:
            await make(client, tool=True).run(task=place.prompt)

    no_loop = Absent("AutoGen 0.7 is asynchronous")
    forms = {SYNC: no_loop, ASYNC: run, STREAM: no_loop, ASYNC_STREAM: run_stream, TOOLS: with_tool}
    return Row(name, forms, ("autogen-agentchat", "openai"), local=True)


class _closing:  # noqa: N801 - used like a function
    """A client of AutoGen's, closed at the end."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def __aenter__(self) -> Any:
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


# -- DSPy ----------------------------------------------------------------------------------------------------------------------

#: An answer in the words that DSPy's adapter looks for, in which each of its modules finds what it wants.
IN_FIELDS = "\n\n".join(
    f"[[ ## {name} ## ]]\n{value}"
    for name, value in {
        "next_thought": "I look it up.",
        "next_tool_name": "search",
        "next_tool_args": '{"query": "rivers"}',
        "reasoning": "It is said.",
        "answer": "long",
        "completed": "",
    }.items()
)


def _lm(place: Place, **more: Any) -> Any:
    import dspy

    return dspy.LM(f"openai/{place.model(MODEL)}", api_base=place.openai_url, api_key="x", cache=False, max_tokens=place.cap, **more)


def lm(place: Place) -> None:
    _lm(place)(place.prompt)


async def lm_in_loop(place: Place) -> None:
    await _lm(place).acall(place.prompt)


def predict(place: Place) -> None:
    import dspy

    with dspy.context(lm=_lm(place)):
        assert dspy.Predict("question -> answer")(question=place.prompt).answer == "long"


async def predict_in_loop(place: Place) -> None:
    import dspy

    with dspy.context(lm=_lm(place)):
        assert (await dspy.Predict("question -> answer").acall(question=place.prompt)).answer == "long"


def predict_streamed(place: Place) -> None:
    import dspy

    with dspy.context(lm=_lm(place)):
        program = dspy.streamify(dspy.Predict("question -> answer"), async_streaming=False)
        for _ in program(question=place.prompt):  # type: ignore[attr-defined]
            pass


async def predict_streamed_in_loop(place: Place) -> None:
    import dspy

    with dspy.context(lm=_lm(place)):
        program: Any = dspy.streamify(dspy.Predict("question -> answer"))
        async for _ in program(question=place.prompt):
            pass


def react(place: Place) -> None:
    import dspy

    model, asked = _lm(place), []

    def search(query: str) -> str:
        """Search."""
        asked.append(query)
        return str(model(query))

    with dspy.context(lm=model):
        dspy.ReAct("question -> answer", tools=[search], max_iters=2)(question=place.prompt)
    assert asked == ["rivers"] * 2


ROWS = [
    _litellm_row("openai", MODEL, behave={"cache_read": 40, "reasoning": 5}),
    _litellm_row("anthropic", "claude-sonnet-4-5", behave={"cache_read": 40, "cache_write": 30}),
    Row(
        "CrewAI",
        {SYNC: kickoff, ASYNC: akickoff, STREAM: kickoff_streamed, ASYNC_STREAM: akickoff_streamed, TOOLS: kickoff_with_tool},
        ("crewai", "openai"),
        local=True,
    ),
    Row(
        "CrewAI with threads",
        {
            SYNC: kickoff_in_threads,
            ASYNC: kickoff_async,
            STREAM: kickoff_in_threads_streamed,
            ASYNC_STREAM: kickoff_async_streamed,
            TOOLS: kickoff_with_tool_in_threads,
        },
        ("crewai", "openai"),
        local=True,
    ),
    _autogen_row("AutoGen agent", _agent),
    _autogen_row("AutoGen team", _team),
    Row(
        "DSPy LM",
        {
            SYNC: lm,
            ASYNC: lm_in_loop,
            STREAM: Absent("a bare dspy.LM does not stream; programs do, in the next row"),
            ASYNC_STREAM: Absent("a bare dspy.LM does not stream; programs do, in the next row"),
            TOOLS: Absent("a bare dspy.LM runs no tools; ReAct does, in the next row"),
        },
        ("dspy",),
        local=True,
    ),
    Row(
        "DSPy programs",
        {SYNC: predict, ASYNC: predict_in_loop, STREAM: predict_streamed, ASYNC_STREAM: predict_streamed_in_loop, TOOLS: react},
        ("dspy",),
        behave={"text": IN_FIELDS},
        tools=(),  # ReAct calls them by the words of an answer
        not_local="so small a model does not keep to the form of an answer that programs want",
    ),
]
