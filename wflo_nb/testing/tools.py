"""Tools that the stand-in provider calls, in whatever way a request offers them and tells their results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wflo_nb.testing.billing import Behaviour

#: Fields of a request that hold what was said so far.
_SAID = ("messages", "input", "contents")
#: Fields that hold what a tool takes, as a JSON schema.
_TAKES = ("parameters", "input_schema", "parametersJsonSchema", "parameters_json_schema", "inputSchema")
#: Parts of a conversation that are results, by their type or by the field that they have.
_RESULTS = frozenset(("tool_result", "function_call_output", "custom_tool_call_output"))
_RESULT_FIELDS = frozenset(("functionResponse", "toolResult"))

_VALUES: dict[str, Any] = {"string": "rivers", "integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool, called with arguments that its schema asks for."""

    id: str
    name: str
    arguments: dict[str, Any]

    @property
    def text(self) -> str:
        """The arguments as JSON."""
        return json.dumps(self.arguments)


def called(body: dict[str, Any], how: Behaviour) -> ToolCall | None:
    """The tool that an answer calls: of `how.tools` the next one without a result, if the request offers it; None for words."""
    if not how.tools:
        return None
    done = _results([body.get(field) for field in _SAID])
    if done >= len(how.tools):
        return None
    wanted = how.tools[done]
    for name, schema in _offered(body):
        if wanted in ("*", name):
            return ToolCall(f"call_{done}", name, _arguments(schema))
    return None


def _results(said: Any) -> int:
    """How many results are in a conversation."""
    if isinstance(said, list):
        return sum(_results(one) for one in said)
    if not isinstance(said, dict):
        return 0
    if said.get("role") == "tool" or said.get("type") in _RESULTS or not _RESULT_FIELDS.isdisjoint(said):
        return 1
    return sum(_results(said.get(field)) for field in ("content", "parts"))


def _offered(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and schemas of the tools that a request offers."""
    tools = body.get("tools") or (body.get("toolConfig") or {}).get("tools") or []
    for tool in tools:
        held = tool.get("functionDeclarations") or [tool.get("function") or tool.get("toolSpec") or tool]
        for one in held:
            if "name" in one:
                schema: dict[str, Any] = next((one[field] for field in _TAKES if isinstance(one.get(field), dict)), {})
                yield one["name"], schema.get("json", schema)


def _arguments(schema: dict[str, Any]) -> dict[str, Any]:
    """A value for each property that must be given; for each at all where none must."""
    properties: dict[str, Any] = schema.get("properties") or {}
    return {name: _value(properties.get(name) or {}) for name in schema.get("required") or properties}


def _value(schema: dict[str, Any]) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    return _VALUES.get(str(schema.get("type", "string")).lower(), "rivers")
