"""Amazon Bedrock by boto3 and by aiobotocore: converse for any model, invoke with the vendor's own body."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.capture.cells import ASYNC, ASYNC_STREAM, STREAM, SYNC, TOOLS, Absent, Place, Row
from benchmarks.capture.openai_rows import SCHEMA, search

MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
KEYS = {"aws_access_key_id": "AKIDTEST", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
SPEC: dict[str, Any] = {"toolSpec": {"name": "search", "description": "Search.", "inputSchema": {"json": SCHEMA}}}


def _client(place: Place) -> Any:
    import boto3

    return boto3.client("bedrock-runtime", endpoint_url=place.url, **KEYS)


def _in_loop(place: Place) -> Any:
    import aiobotocore.session

    return aiobotocore.session.get_session().create_client("bedrock-runtime", endpoint_url=place.url, **KEYS)


# -- converse ------------------------------------------------------------------------------------------------------------------


def _conversing(place: Place, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": [{"text": place.prompt}]}]
    return {"modelId": MODEL, "messages": said, "inferenceConfig": {"maxTokens": place.cap}, **more}


def _go_on(said: list[Any], answer: Any) -> bool:
    """Put an answer and the results of the tools that it calls into a conversation; whether there were any."""
    message = answer["output"]["message"]
    calls = [part["toolUse"] for part in message["content"] if "toolUse" in part]
    results = [{"toolResult": {"toolUseId": call["toolUseId"], "content": [{"text": search(**call["input"])}]}} for call in calls]
    said += [message, {"role": "user", "content": results}]
    return bool(calls)


def converse(place: Place) -> None:
    _client(place).converse(**_conversing(place))


def converse_streamed(place: Place) -> None:
    for _ in _client(place).converse_stream(**_conversing(place))["stream"]:
        pass


def converse_with_tool(place: Place) -> None:
    client, asked = _client(place), _conversing(place, toolConfig={"tools": [SPEC]})
    while _go_on(asked["messages"], client.converse(**asked)):
        pass


async def converse_in_loop(place: Place) -> None:
    async with _in_loop(place) as client:
        await client.converse(**_conversing(place))


async def converse_streamed_in_loop(place: Place) -> None:
    async with _in_loop(place) as client:
        answer = await client.converse_stream(**_conversing(place))
        async for _ in answer["stream"]:
            pass


async def converse_with_tool_in_loop(place: Place) -> None:
    asked = _conversing(place, toolConfig={"tools": [SPEC]})
    async with _in_loop(place) as client:
        while _go_on(asked["messages"], await client.converse(**asked)):
            pass


# -- invoke --------------------------------------------------------------------------------------------------------------------


def _claude(place: Place, **more: Any) -> dict[str, Any]:
    return {"anthropic_version": "bedrock-2023-05-31", "messages": place.messages, "max_tokens": place.cap, **more}


def _invoking(body: dict[str, Any]) -> dict[str, Any]:
    return {"modelId": MODEL, "body": json.dumps(body)}


def _carry_on(body: dict[str, Any], answer: dict[str, Any]) -> bool:
    calls = [block for block in answer["content"] if block["type"] == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": search(**call["input"])} for call in calls]
    body["messages"] += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": results}]
    return bool(calls)


def _with_tools(place: Place) -> dict[str, Any]:
    return _claude(place, tools=[{"name": "search", "description": "Search.", "input_schema": SCHEMA}])


def invoke(place: Place) -> None:
    _client(place).invoke_model(**_invoking(_claude(place)))["body"].read()


def invoke_streamed(place: Place) -> None:
    for _ in _client(place).invoke_model_with_response_stream(**_invoking(_claude(place)))["body"]:
        pass


def invoke_with_tool(place: Place) -> None:
    client, body = _client(place), _with_tools(place)
    while _carry_on(body, json.loads(client.invoke_model(**_invoking(body))["body"].read())):
        pass


async def invoke_in_loop(place: Place) -> None:
    async with _in_loop(place) as client:
        answer = await client.invoke_model(**_invoking(_claude(place)))
        await answer["body"].read()


async def invoke_streamed_in_loop(place: Place) -> None:
    async with _in_loop(place) as client:
        answer = await client.invoke_model_with_response_stream(**_invoking(_claude(place)))
        async for _ in answer["body"]:
            pass


async def invoke_with_tool_in_loop(place: Place) -> None:
    body = _with_tools(place)
    async with _in_loop(place) as client:
        while True:
            answer = await client.invoke_model(**_invoking(body))
            if not _carry_on(body, json.loads(await answer["body"].read())):
                return


_NO_LOOP = Absent("boto3 has no asynchronous client; aiobotocore is it")
_LOOP_ONLY = Absent("aiobotocore has asynchronous clients only; boto3 has the others")


def _boto3(name: str, plain: Any, streamed: Any, with_tool: Any) -> Row:
    forms = {SYNC: plain, ASYNC: _NO_LOOP, STREAM: streamed, ASYNC_STREAM: _NO_LOOP, TOOLS: with_tool}
    return Row(f"boto3 {name}", forms, ("boto3",), owner="aws.bedrock", behave={"cache_read": 40})


def _aiobotocore(name: str, plain: Any, streamed: Any, with_tool: Any) -> Row:
    forms = {SYNC: _LOOP_ONLY, ASYNC: plain, STREAM: _LOOP_ONLY, ASYNC_STREAM: streamed, TOOLS: with_tool}
    return Row(f"aiobotocore {name}", forms, ("aiobotocore",), owner="aws.bedrock", behave={"cache_read": 40})


ROWS = [
    _boto3("converse", converse, converse_streamed, converse_with_tool),
    _boto3("invoke", invoke, invoke_streamed, invoke_with_tool),
    _aiobotocore("converse", converse_in_loop, converse_streamed_in_loop, converse_with_tool_in_loop),
    _aiobotocore("invoke", invoke_in_loop, invoke_streamed_in_loop, invoke_with_tool_in_loop),
]
