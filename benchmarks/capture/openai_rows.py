"""OpenAI's SDK, whichever version is installed: chat completions and responses."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.capture.cells import ASYNC, ASYNC_STREAM, STREAM, SYNC, TOOLS, Place, Row

MODEL = "gpt-4o-mini"
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}


def search(query: str) -> str:
    """What the tool of all rows gives."""
    return f"Nothing about {query}."


def _client(place: Place) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=place.openai_url, api_key="test")


def _in_loop(place: Place) -> Any:
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=place.openai_url, api_key="test")


# -- chat completions ----------------------------------------------------------------------------------------------------------


def _asked(place: Place, **more: Any) -> dict[str, Any]:
    return {"model": place.model(MODEL), "messages": place.messages, "max_tokens": place.cap, **more}


def chat(place: Place) -> None:
    _client(place).chat.completions.create(**_asked(place))


async def chat_in_loop(place: Place) -> None:
    async with _in_loop(place) as client:
        await client.chat.completions.create(**_asked(place))


def chat_streamed(place: Place) -> None:
    for chunk in _client(place).chat.completions.create(**_asked(place, stream=True)):
        assert chunk.choices[0]  # code that did not ask for usage has no chunk without a choice


async def chat_streamed_in_loop(place: Place) -> None:
    async with _in_loop(place) as client:
        async for chunk in await client.chat.completions.create(**_asked(place, stream=True)):
            assert chunk.choices[0]


def chat_with_tool(place: Place) -> None:
    client, messages = _client(place), place.messages
    tools = [{"type": "function", "function": {"name": "search", "description": "Search.", "parameters": SCHEMA}}]
    while True:
        answer = client.chat.completions.create(**_asked(place, messages=messages, tools=tools)).choices[0].message
        if not answer.tool_calls:
            return
        messages.append(answer)
        for call in answer.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": search(**json.loads(call.function.arguments))})


# -- responses -----------------------------------------------------------------------------------------------------------------


def _wanted(place: Place, **more: Any) -> dict[str, Any]:
    return {"model": place.model(MODEL), "input": place.messages, "max_output_tokens": place.cap, **more}


def respond(place: Place) -> None:
    _client(place).responses.create(**_wanted(place))


async def respond_in_loop(place: Place) -> None:
    async with _in_loop(place) as client:
        await client.responses.create(**_wanted(place))


def respond_streamed(place: Place) -> None:
    for _ in _client(place).responses.create(**_wanted(place, stream=True)):
        pass


async def respond_streamed_in_loop(place: Place) -> None:
    async with _in_loop(place) as client:
        async for _ in await client.responses.create(**_wanted(place, stream=True)):
            pass


def respond_with_tool(place: Place) -> None:
    client, said = _client(place), place.messages
    tools = [{"type": "function", "name": "search", "description": "Search.", "parameters": SCHEMA, "strict": False}]
    while True:
        answer = client.responses.create(**_wanted(place, input=said, tools=tools))
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            return
        said += answer.output
        for call in calls:
            said.append({"type": "function_call_output", "call_id": call.call_id, "output": search(**json.loads(call.arguments))})


def rows(name: str) -> list[Row]:
    """The rows of the version that is called so."""
    chats = {SYNC: chat, ASYNC: chat_in_loop, STREAM: chat_streamed, ASYNC_STREAM: chat_streamed_in_loop, TOOLS: chat_with_tool}
    responses = {
        SYNC: respond,
        ASYNC: respond_in_loop,
        STREAM: respond_streamed,
        ASYNC_STREAM: respond_streamed_in_loop,
        TOOLS: respond_with_tool,
    }
    cached = {"cache_read": 40, "reasoning": 5}
    return [
        Row(f"{name} chat", chats, ("openai",), behave=cached, local=True),
        Row(f"{name} responses", responses, ("openai",), behave=cached, local=True),
    ]
