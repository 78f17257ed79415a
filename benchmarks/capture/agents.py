"""Agent frameworks on OpenAI's SDK 3: pydantic-ai, openai-agents, smolagents."""

from __future__ import annotations

from typing import Any

from benchmarks.capture.cells import ASYNC, ASYNC_STREAM, STREAM, SYNC, TOOLS, Absent, Place, Row
from benchmarks.capture.openai_rows import MODEL, chat

CLAUDE = "claude-sonnet-4-5"
CACHED = {"cache_read": 40, "reasoning": 5}


# -- pydantic-ai ---------------------------------------------------------------------------------------------------------------


def _pydantic_chat(place: Place) -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIChatModel(place.model(MODEL), provider=OpenAIProvider(base_url=place.openai_url, api_key="test"))


def _pydantic_responses(place: Place) -> Any:
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIResponsesModel(place.model(MODEL), provider=OpenAIProvider(base_url=place.openai_url, api_key="test"))


def _pydantic_claude(place: Place) -> Any:
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    return AnthropicModel(place.model(CLAUDE), provider=AnthropicProvider(base_url=place.url, api_key="test"))


def _pydantic_row(name: str, make: Any, **more: Any) -> Row:
    """An agent of pydantic-ai, by its own methods."""

    def agent(place: Place) -> Any:
        from pydantic_ai import Agent

        return Agent(make(place), name="helper", model_settings={"max_tokens": place.cap})

    def run_sync(place: Place) -> None:
        agent(place).run_sync(place.prompt)

    async def run(place: Place) -> None:
        await agent(place).run(place.prompt)

    def stream_sync(place: Place) -> None:
        for _ in agent(place).run_stream_sync(place.prompt).stream_text():
            pass

    async def stream(place: Place) -> None:
        async with agent(place).run_stream(place.prompt) as result:
            async for _ in result.stream_text():
                pass

    def with_tool(place: Place) -> None:
        asking = agent(place)

        @asking.tool_plain
        def search(query: str) -> str:  # in a thread of the framework's, where it lets no other agent run
            """Search."""
            chat(place)
            return f"Nothing about {query}."

        asking.run_sync(place.prompt)

    forms = {SYNC: run_sync, ASYNC: run, STREAM: stream_sync, ASYNC_STREAM: stream, TOOLS: with_tool}
    return Row(name, forms, ("pydantic-ai-slim",), local=True, **more)


# -- openai-agents -------------------------------------------------------------------------------------------------------------


def _agents_row(name: str, kind: str, **more: Any) -> Row:
    """An agent of openai-agents, by its runner."""

    def agent(place: Place, **extra: Any) -> Any:
        import agents
        import openai

        agents.set_tracing_disabled(True)
        client = openai.AsyncOpenAI(base_url=place.openai_url, api_key="test")
        model = getattr(agents, kind)(place.model(MODEL), openai_client=client)
        settings = agents.ModelSettings(max_tokens=place.cap)
        return agents.Agent("helper", model=model, model_settings=settings, **extra)

    def run_sync(place: Place) -> None:
        from agents import Runner

        Runner.run_sync(agent(place), place.prompt)

    async def run(place: Place) -> None:
        from agents import Runner

        await Runner.run(agent(place), place.prompt)

    async def streamed(place: Place) -> None:
        from agents import Runner

        async for _ in Runner.run_streamed(agent(place), place.prompt).stream_events():
            pass

    async def with_tool(place: Place) -> None:
        from agents import Runner

        other = agent(place)
        await Runner.run(agent(place, tools=[other.as_tool("search", "Search.")]), place.prompt)

    only = Absent("openai-agents streams in a loop only")
    forms = {SYNC: run_sync, ASYNC: run, STREAM: only, ASYNC_STREAM: streamed, TOOLS: with_tool}
    return Row(name, forms, ("openai-agents", "openai"), local=True, **more)


# -- smolagents ----------------------------------------------------------------------------------------------------------------


def _smol(place: Place, kind: str = "ToolCallingAgent", tools: Any = (), steps: int = 1) -> Any:
    """An agent that is asked for an answer in words when its steps are used up."""
    import smolagents

    model = smolagents.OpenAIServerModel(place.model(MODEL), api_base=place.openai_url, api_key="test", max_tokens=place.cap)
    quiet = smolagents.LogLevel.OFF
    return getattr(smolagents, kind)(tools=[*tools], model=model, max_steps=steps, verbosity_level=quiet)


def _smol_row(name: str, kind: str, **more: Any) -> Row:
    """An agent of smolagents, by `run`."""

    def run(place: Place) -> None:
        _smol(place, kind).run(place.prompt)

    def streamed(place: Place) -> None:
        agent = _smol(place, kind)
        agent.stream_outputs = True  # the model streams as well
        for _ in agent.run(place.prompt, stream=True):
            pass

    def with_tool(place: Place) -> None:
        from smolagents import tool

        model = _smol(place).model

        @tool
        def search(query: str) -> str:
            """Search.

            Args:
                query: what for.
            """
            return str(model.generate([{"role": "user", "content": query}]).content)

        agent = _smol(place, kind, [search], steps=2)
        if kind == "CodeAgent":
            _writes_code(agent)
        agent.run(place.prompt)

    loop = Absent("smolagents is synchronous")
    forms = {SYNC: run, ASYNC: loop, STREAM: streamed, ASYNC_STREAM: loop, TOOLS: with_tool}
    return Row(name, forms, ("smolagents", "openai"), local=True, **more)


def _writes_code(agent: Any) -> None:
    """What the agent's model says is paid, and thrown away: none of ours writes code that runs."""
    ask = agent.model.generate

    def generate(*args: Any, **options: Any) -> Any:
        answer = ask(*args, **options)
        answer.content = "<code>\nfinal_answer(search('rivers'))\n</code>"
        return answer

    agent.model.generate = generate


ROWS = [
    _pydantic_row("pydantic-ai", _pydantic_chat, behave=CACHED),
    _pydantic_row("pydantic-ai responses", _pydantic_responses, behave=CACHED),
    _pydantic_row("pydantic-ai anthropic", _pydantic_claude, behave={"cache_read": 40, "cache_write": 30}),
    _agents_row("openai-agents", "OpenAIResponsesModel", behave=CACHED),
    _agents_row("openai-agents chat", "OpenAIChatCompletionsModel", behave=CACHED),
    _smol_row("smolagents", "ToolCallingAgent", behave=CACHED),
    _smol_row("smolagents code", "CodeAgent", behave=CACHED, tools=()),
]
