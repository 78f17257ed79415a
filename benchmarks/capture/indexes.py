"""LlamaIndex, which stands on OpenAI's SDK 2: models, an agent, a query engine."""

from __future__ import annotations

from typing import Any

from benchmarks.capture.cells import ASYNC, ASYNC_STREAM, STREAM, SYNC, TOOLS, Absent, Place, Row
from benchmarks.capture.openai_rows import MODEL, search

CLAUDE = "claude-sonnet-4-5"
CACHED = {"cache_read": 40, "reasoning": 5}


def _in_place_of_the_model(place: Place) -> dict[str, Any]:
    """LlamaIndex looks up what a model can; one that it does not know goes in behind its back."""
    return {} if place.local is None else {"model": place.local}


def _chat(place: Place) -> Any:
    from llama_index.llms.openai import OpenAI

    other = _in_place_of_the_model(place)
    return OpenAI(MODEL, api_base=place.openai_url, api_key="test", max_tokens=place.cap, additional_kwargs=other)


def _responses(place: Place) -> Any:
    from llama_index.llms.openai import OpenAIResponses

    other = _in_place_of_the_model(place)
    return OpenAIResponses(MODEL, api_base=place.openai_url, api_key="test", max_output_tokens=place.cap, additional_kwargs=other)


def _claude(place: Place) -> Any:
    from llama_index.llms.anthropic import Anthropic

    return Anthropic(CLAUDE, base_url=place.url, api_key="test", max_tokens=place.cap, additional_kwargs=_in_place_of_the_model(place))


def _model_row(name: str, make: Any, package: str, **more: Any) -> Row:
    """A model of LlamaIndex's, by its own methods."""

    def messages(place: Place) -> list[Any]:
        from llama_index.core.llms import ChatMessage

        return [ChatMessage(role="user", content=place.prompt)]

    def complete(place: Place) -> None:
        make(place).complete(place.prompt)

    async def achat(place: Place) -> None:
        await make(place).achat(messages(place))

    def stream(place: Place) -> None:
        for _ in make(place).stream_chat(messages(place)):
            pass

    async def astream(place: Place) -> None:
        async for _ in await make(place).astream_chat(messages(place)):
            pass

    def with_tool(place: Place) -> None:
        from llama_index.core.llms import ChatMessage
        from llama_index.core.tools import FunctionTool

        model, said, known = make(place), messages(place), [FunctionTool.from_defaults(search)]
        while True:
            answer = model.chat_with_tools(known, chat_history=said)
            calls = model.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
            if not calls:
                return
            said.append(answer.message)
            for call in calls:
                told = {"tool_call_id": call.tool_id}
                said.append(ChatMessage(role="tool", content=search(**call.tool_kwargs), additional_kwargs=told))

    forms = {SYNC: complete, ASYNC: achat, STREAM: stream, ASYNC_STREAM: astream, TOOLS: with_tool}
    return Row(name, forms, (package, "llama-index-core"), local=True, **more)


# -- agents --------------------------------------------------------------------------------------------------------------------


async def agent_run(place: Place, *, streaming: bool = False, tools: Any = ()) -> None:
    from llama_index.core.agent.workflow import FunctionAgent

    handler = FunctionAgent(name="helper", llm=_chat(place), tools=[*tools], streaming=streaming).run(user_msg=place.prompt)
    async for _ in handler.stream_events():
        pass
    await handler


async def agent_asked(place: Place) -> None:
    await agent_run(place)


async def agent_streamed(place: Place) -> None:
    await agent_run(place, streaming=True)


async def agent_with_tool(place: Place) -> None:
    model = _chat(place)

    def search(query: str) -> str:  # in a thread of the framework's
        """Search."""
        return str(model.complete(query))

    await agent_run(place, tools=[search])


# -- engines -------------------------------------------------------------------------------------------------------------------


def _engine(place: Place, **more: Any) -> Any:
    from llama_index.core import Document, SummaryIndex

    return SummaryIndex.from_documents([Document(text="Rivers are long.")]).as_query_engine(llm=_chat(place), **more)


def queried(place: Place) -> None:
    _engine(place).query(place.prompt)


async def queried_in_loop(place: Place) -> None:
    await _engine(place).aquery(place.prompt)


def query_streamed(place: Place) -> None:
    for _ in _engine(place, streaming=True).query(place.prompt).response_gen:
        pass


async def query_streamed_in_loop(place: Place) -> None:
    answer = await _engine(place, streaming=True, use_async=True).aquery(place.prompt)
    async for _ in answer.async_response_gen():
        pass


_LOOP_ONLY = Absent("LlamaIndex's agents are asynchronous")

ROWS = [
    _model_row("llama-index openai", _chat, "llama-index-llms-openai", behave=CACHED),
    _model_row("llama-index openai responses", _responses, "llama-index-llms-openai", behave=CACHED),
    _model_row("llama-index anthropic", _claude, "llama-index-llms-anthropic", behave={"cache_read": 40, "cache_write": 30}),
    Row(
        "LlamaIndex agent",
        {SYNC: _LOOP_ONLY, ASYNC: agent_asked, STREAM: _LOOP_ONLY, ASYNC_STREAM: agent_streamed, TOOLS: agent_with_tool},
        ("llama-index-core", "llama-index-workflows"),
        local=True,
    ),
    Row(
        "LlamaIndex query engine",
        {
            SYNC: queried,
            ASYNC: queried_in_loop,
            STREAM: query_streamed,
            ASYNC_STREAM: query_streamed_in_loop,
            TOOLS: Absent("a query engine calls no tools"),
        },
        ("llama-index-core",),
        local=True,
    ),
]
