"""The stand-in provider finds the tools that a request offers and the results that it holds, as each interface tells them."""

from __future__ import annotations

from typing import Any

import pytest

from wflo_nb.testing.billing import Behaviour
from wflo_nb.testing.tools import called

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"query": {"type": "string"}, "most": {"type": "integer"}}, "required": ["query"]}

#: Interface → a request that offers a tool, and what a conversation has beside once the tool has answered.
CONVERSATIONS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "chat": (
        {"tools": [{"type": "function", "function": {"name": "search", "parameters": SCHEMA}}]},
        "messages",
        {"role": "tool", "tool_call_id": "1", "content": "found"},
    ),
    "responses": (
        {"tools": [{"type": "function", "name": "search", "parameters": SCHEMA}]},
        "input",
        {"type": "function_call_output", "call_id": "1", "output": "found"},
    ),
    "messages": (
        {"tools": [{"name": "search", "input_schema": SCHEMA}]},
        "messages",
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "found"}]},
    ),
    "generateContent": (
        {"tools": [{"functionDeclarations": [{"name": "search", "parameters": SCHEMA}]}]},
        "contents",
        {"role": "user", "parts": [{"functionResponse": {"name": "search", "response": {"result": "found"}}}]},
    ),
    "converse": (
        {"toolConfig": {"tools": [{"toolSpec": {"name": "search", "inputSchema": {"json": SCHEMA}}}]}},
        "messages",
        {"role": "user", "content": [{"toolResult": {"toolUseId": "1", "content": [{"text": "found"}]}}]},
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_tool_is_called_until_its_result_is_there(name: str) -> None:
    offered, field, result = CONVERSATIONS[name]
    asked = {"role": "user", "content": "Which rivers?", "parts": [{"text": "Which rivers?"}]}
    call = called({**offered, field: [asked]}, Behaviour(tools=("search",)))
    assert call is not None
    assert (call.name, call.arguments) == ("search", {"query": "rivers"})
    assert called({**offered, field: [asked, result]}, Behaviour(tools=("search",))) is None
    again = called({**offered, field: [asked, result]}, Behaviour(tools=("*", "*")))
    assert again is not None and again.id != call.id


def test_tool_that_is_not_offered_is_not_called() -> None:
    offered, field, _ = CONVERSATIONS["chat"]
    assert called({**offered, field: []}, Behaviour(tools=("another",))) is None
    assert called({field: []}, Behaviour(tools=("*",))) is None
    assert called({**offered, field: []}, Behaviour()) is None


def test_arguments_are_of_the_kinds_that_the_schema_wants() -> None:
    kinds = {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"enum": ["x", "y"]}, "d": {"type": "STRING"}, "e": {"type": "array"}}
    tool = {"name": "search", "input_schema": {"type": "object", "properties": kinds}}
    call = called({"tools": [tool], "messages": []}, Behaviour(tools=("*",)))
    assert call is not None and call.arguments == {"a": 1, "b": True, "c": "x", "d": "rivers", "e": []}
