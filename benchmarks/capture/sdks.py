"""SDKs of the project's own environment, each as it comes from its maker."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.capture import bedrock_rows, openai_rows
from benchmarks.capture.cells import ASYNC, ASYNC_STREAM, STREAM, SYNC, TOOLS, Place, Row
from benchmarks.capture.openai_rows import SCHEMA, search

FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "search", "description": "Search.", "parameters": SCHEMA}}


def tool_results(message: Any, calls: Any) -> list[Any]:
    """What goes on in a conversation of OpenAI's kind: the message that calls tools, and their results."""
    results = [
        {"role": "tool", "tool_call_id": call.id, "name": "search", "content": search(**json.loads(call.function.arguments))}
        for call in calls
    ]
    return [message, *results]


# -- anthropic -----------------------------------------------------------------------------------------------------------------


def _claude(place: Place) -> Any:
    from anthropic import Anthropic

    return Anthropic(base_url=place.url, api_key="test")


def _claude_in_loop(place: Place) -> Any:
    from anthropic import AsyncAnthropic

    return AsyncAnthropic(base_url=place.url, api_key="test")


def _to_claude(place: Place, **more: Any) -> dict[str, Any]:
    return {"model": place.model("claude-sonnet-4-5"), "messages": place.messages, "max_tokens": place.cap, **more}


def claude(place: Place) -> None:
    _claude(place).messages.create(**_to_claude(place))


async def claude_in_loop(place: Place) -> None:
    async with _claude_in_loop(place) as client:
        await client.messages.create(**_to_claude(place))


def claude_streamed(place: Place) -> None:
    for _ in _claude(place).messages.create(**_to_claude(place, stream=True)):
        pass


async def claude_streamed_in_loop(place: Place) -> None:
    async with _claude_in_loop(place) as client, client.messages.stream(**_to_claude(place)) as stream:
        async for _ in stream.text_stream:
            pass


def claude_with_tool(place: Place) -> None:
    client, messages = _claude(place), place.messages
    tools = [{"name": "search", "description": "Search.", "input_schema": SCHEMA}]
    while True:
        answer = client.messages.create(**_to_claude(place, messages=messages, tools=tools))
        calls = [block for block in answer.content if block.type == "tool_use"]
        if not calls:
            return
        messages.append({"role": "assistant", "content": answer.content})
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": search(**call.input)} for call in calls]
        messages.append({"role": "user", "content": results})


# -- google-genai --------------------------------------------------------------------------------------------------------------


def _gemini(place: Place) -> Any:
    from google import genai

    return genai.Client(api_key="test", http_options=genai.types.HttpOptions(base_url=place.url))


def _to_gemini(place: Place, **more: Any) -> dict[str, Any]:
    return {"model": "gemini-2.5-flash", "contents": place.prompt, "config": {"max_output_tokens": place.cap, **more}}


def gemini(place: Place) -> None:
    client = _gemini(place)  # a temporary one closes itself
    client.models.generate_content(**_to_gemini(place))


async def gemini_in_loop(place: Place) -> None:
    async with _gemini(place).aio as client:
        await client.models.generate_content(**_to_gemini(place))


def gemini_streamed(place: Place) -> None:
    client = _gemini(place)
    for _ in client.models.generate_content_stream(**_to_gemini(place)):
        pass


async def gemini_streamed_in_loop(place: Place) -> None:
    async with _gemini(place).aio as client:
        async for _ in await client.models.generate_content_stream(**_to_gemini(place)):
            pass


def gemini_with_tool(place: Place) -> None:
    client = _gemini(place)
    client.models.generate_content(**_to_gemini(place, tools=[search]))  # the SDK runs it and asks again


# -- mistralai -----------------------------------------------------------------------------------------------------------------


def _mistral(place: Place) -> Any:
    from mistralai.client import Mistral

    return Mistral(api_key="test", server_url=place.url)


def _to_mistral(place: Place, **more: Any) -> dict[str, Any]:
    return {"model": "mistral-small-latest", "messages": place.messages, "max_tokens": place.cap, **more}


def mistral(place: Place) -> None:
    _mistral(place).chat.complete(**_to_mistral(place))


async def mistral_in_loop(place: Place) -> None:
    async with _mistral(place) as client:
        await client.chat.complete_async(**_to_mistral(place))


def mistral_streamed(place: Place) -> None:
    with _mistral(place).chat.stream(**_to_mistral(place)) as stream:
        for _ in stream:
            pass


async def mistral_streamed_in_loop(place: Place) -> None:
    async with _mistral(place) as client, await client.chat.stream_async(**_to_mistral(place)) as stream:
        async for _ in stream:
            pass


def mistral_with_tool(place: Place) -> None:
    client, messages = _mistral(place), place.messages
    while True:
        answer = client.chat.complete(**_to_mistral(place, messages=messages, tools=[FUNCTION])).choices[0].message
        if not answer.tool_calls:
            return
        messages += tool_results(answer, answer.tool_calls)


# -- cohere --------------------------------------------------------------------------------------------------------------------


def _cohere(place: Place) -> Any:
    from cohere import ClientV2

    return ClientV2(api_key="test", base_url=place.url)


def _cohere_in_loop(place: Place) -> Any:
    from cohere import AsyncClientV2

    return AsyncClientV2(api_key="test", base_url=place.url)


def _to_cohere(place: Place, **more: Any) -> dict[str, Any]:
    return {"model": "command-a-03-2025", "messages": place.messages, "max_tokens": place.cap, **more}


def cohere(place: Place) -> None:
    _cohere(place).chat(**_to_cohere(place))


async def cohere_in_loop(place: Place) -> None:
    async with _cohere_in_loop(place) as client:
        await client.chat(**_to_cohere(place))


def cohere_streamed(place: Place) -> None:
    for _ in _cohere(place).chat_stream(**_to_cohere(place)):
        pass


async def cohere_streamed_in_loop(place: Place) -> None:
    async with _cohere_in_loop(place) as client:
        async for _ in client.chat_stream(**_to_cohere(place)):
            pass


def cohere_with_tool(place: Place) -> None:
    client, messages = _cohere(place), place.messages
    while True:
        answer = client.chat(**_to_cohere(place, messages=messages, tools=[FUNCTION])).message
        if not answer.tool_calls:
            return
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": search(**json.loads(call.function.arguments))}
            for call in answer.tool_calls
        ]
        messages += [answer, *results]


# -- groq ----------------------------------------------------------------------------------------------------------------------


def _groq(place: Place) -> Any:
    from groq import Groq

    return Groq(base_url=place.url, api_key="test")


def _groq_in_loop(place: Place) -> Any:
    from groq import AsyncGroq

    return AsyncGroq(base_url=place.url, api_key="test")


def _to_groq(place: Place, **more: Any) -> dict[str, Any]:
    return {"model": place.model("llama-3.3-70b-versatile"), "messages": place.messages, "max_completion_tokens": place.cap, **more}


def groq(place: Place) -> None:
    _groq(place).chat.completions.create(**_to_groq(place))


async def groq_in_loop(place: Place) -> None:
    async with _groq_in_loop(place) as client:
        await client.chat.completions.create(**_to_groq(place))


def groq_streamed(place: Place) -> None:
    for _ in _groq(place).chat.completions.create(**_to_groq(place, stream=True)):
        pass


async def groq_streamed_in_loop(place: Place) -> None:
    async with _groq_in_loop(place) as client:
        async for _ in await client.chat.completions.create(**_to_groq(place, stream=True)):
            pass


def groq_with_tool(place: Place) -> None:
    client, messages = _groq(place), place.messages
    while True:
        answer = client.chat.completions.create(**_to_groq(place, messages=messages, tools=[FUNCTION])).choices[0].message
        if not answer.tool_calls:
            return
        messages += tool_results(answer.model_dump(exclude_none=True), answer.tool_calls)


# -- ollama --------------------------------------------------------------------------------------------------------------------


def _to_ollama(place: Place, **more: Any) -> dict[str, Any]:
    return {"model": "llama3.2", "messages": place.messages, "options": {"num_predict": place.cap}, **more}


def ollama(place: Place) -> None:
    from ollama import Client

    Client(host=place.url).chat(**_to_ollama(place))


async def ollama_in_loop(place: Place) -> None:
    from ollama import AsyncClient

    await AsyncClient(host=place.url).chat(**_to_ollama(place))


def ollama_streamed(place: Place) -> None:
    from ollama import Client

    for _ in Client(host=place.url).chat(**_to_ollama(place, stream=True)):
        pass


async def ollama_streamed_in_loop(place: Place) -> None:
    from ollama import AsyncClient

    async for _ in await AsyncClient(host=place.url).chat(**_to_ollama(place, stream=True)):
        pass


def ollama_with_tool(place: Place) -> None:
    from ollama import Client

    client, messages = Client(host=place.url), place.messages
    while True:
        answer = client.chat(**_to_ollama(place, messages=messages, tools=[search])).message
        if not answer.tool_calls:
            return
        results = [{"role": "tool", "content": search(**call.function.arguments)} for call in answer.tool_calls]
        messages += [answer, *results]


def _row(name: str, package: str, plain: Any, in_loop: Any, streamed: Any, streamed_in_loop: Any, with_tool: Any, **more: Any) -> Row:
    forms = {SYNC: plain, ASYNC: in_loop, STREAM: streamed, ASYNC_STREAM: streamed_in_loop, TOOLS: with_tool}
    return Row(name, forms, (package,), **more)


ROWS = [
    *openai_rows.rows("openai 3"),
    _row(
        "anthropic 2",
        "anthropic",
        claude,
        claude_in_loop,
        claude_streamed,
        claude_streamed_in_loop,
        claude_with_tool,
        behave={"cache_read": 40, "cache_write": 30},
        local=True,
    ),
    _row(
        "google-genai",
        "google-genai",
        gemini,
        gemini_in_loop,
        gemini_streamed,
        gemini_streamed_in_loop,
        gemini_with_tool,
        owner="gcp.gemini",
        behave={"cache_read": 40, "reasoning": 5},
    ),
    _row(
        "mistralai",
        "mistralai",
        mistral,
        mistral_in_loop,
        mistral_streamed,
        mistral_streamed_in_loop,
        mistral_with_tool,
        owner="mistral_ai",
        behave={"usage_in": "last", "cache_read": 40},
    ),
    _row("cohere", "cohere", cohere, cohere_in_loop, cohere_streamed, cohere_streamed_in_loop, cohere_with_tool, owner="cohere"),
    _row(
        "groq",
        "groq",
        groq,
        groq_in_loop,
        groq_streamed,
        groq_streamed_in_loop,
        groq_with_tool,
        owner="groq",
        behave={"usage_in": "x_groq"},
        local=True,
    ),
    _row(
        "ollama",
        "ollama",
        ollama,
        ollama_in_loop,
        ollama_streamed,
        ollama_streamed_in_loop,
        ollama_with_tool,
        owner="ollama",
        rates={"llama3.2": (1, 2)},  # it costs nothing, and then no budget refuses it: a price is declared
    ),
    *bedrock_rows.ROWS,
]
