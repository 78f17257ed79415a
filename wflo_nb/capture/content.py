"""What a call asks and what it answers, as messages of OpenTelemetry's GenAI conventions, for those who asked to see it.

Nobody sees it by default (`wflo_nb.events.follow_content`). Bodies are read by their shape: the formats differ in names, and one that is
not known here gives the text that its own reader finds. What looks like a key, or stands under a name such as ``password``, is taken out;
so are images, sounds and files, of which only the kind is told. Long conversations keep their end.

Definitions: gen-ai-input-messages.json and gen-ai-output-messages.json of https://github.com/open-telemetry/semantic-conventions-genai.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from wflo_nb import events
from wflo_nb.capture.formats.base import WireFormat
from wflo_nb.credentials import environment_secrets, is_secret, masked

_log = logging.getLogger(__name__)

#: Characters that are kept of what is asked, and as many of what is answered.
MOST = 50_000
_SECRET = "[secret]"
_DEEPEST = 12

Part = dict[str, Any]
Message = dict[str, Any]


def tell(call_id: str, format: WireFormat, body: dict[str, Any], objects: Iterable[Any]) -> None:
    """Tell those who follow contents what a call asked and was answered. Never raises."""
    try:
        instructions, asked, left_out = _asked(body)
        events.tell_content(events.CallContent(call_id, instructions, asked, _answered(format, objects), left_out))
    except Exception as error:  # a body of shapes that nobody documents; what the error says may quote it
        _log.warning("the content of a call could not be read (%s); the call is not affected", type(error).__name__)


class _Room:
    """How much may still be kept, and how it is made fit to be kept."""

    def __init__(self) -> None:
        self.left = MOST
        self._known = environment_secrets()

    def text(self, value: str) -> str:
        kept = masked(value, max(0, self.left))
        for secret in self._known:
            kept = kept.replace(secret, _SECRET)
        self.left -= len(kept)
        return kept

    def value(self, value: Any, name: str = "", depth: int = 0) -> Any:
        """Any JSON value: arguments and results of tools."""
        if isinstance(value, str):
            return _SECRET if name and is_secret(name, value) else self.text(value)
        if isinstance(value, dict) and depth < _DEEPEST:
            return {str(key): self.value(item, str(key), depth + 1) for key, item in value.items() if self.left > 0}
        if isinstance(value, list) and depth < _DEEPEST:
            return [self.value(item, name, depth + 1) for item in value if self.left > 0]
        return value if value is None or isinstance(value, bool | int | float) else self.text(str(value))

    def arguments(self, value: Any) -> Any:
        """The arguments of a tool, which many providers write as a text of JSON."""
        with suppress(ValueError, RecursionError, TypeError):
            value = json.loads(value)
        return self.value(value)


# -- what is asked ---------------------------------------------------------------------------------------------------------

#: Where a request has what the model is told beside the conversation, and where it has the conversation or the text.
_INSTRUCTIONS = ("system", "instructions", "systemInstruction", "system_instruction", "preamble")
_CONVERSATION = (
    "messages",
    "input",
    "contents",
    "prompt",
    "message",
    "inputText",
    "texts",
    "content",
    "query",
    "instances",
    "requests",
    "document",
)
_ROLES = {"model": "assistant", "function": "tool", "CHATBOT": "assistant", "USER": "user"}


def _asked(body: dict[str, Any]) -> tuple[list[Part], list[Message], int]:
    room = _Room()
    instructions = [part for name in _INSTRUCTIONS for part in _parts(body.get(name), room)]
    given: Any = next((body[name] for name in _CONVERSATION if body.get(name) not in (None, "", [])), [])
    items = [*(body.get("chat_history") or []), *(given if isinstance(given, list) else [given])]
    found: list[Message] = []
    for at, item in reversed(list(enumerate(items))):
        if room.left <= 0:
            return instructions, found[::-1], at + 1
        found.append(_message(item, room))
    return instructions, found[::-1], 0


def _message(item: Any, room: _Room) -> Message:
    """One message, item or text of a request."""
    if not isinstance(item, dict):
        return {"role": "user", "parts": _parts(item, room)}
    kind = item.get("type")
    if kind == "function_call_output":
        return {"role": "tool", "parts": [_response(item.get("call_id"), item.get("output"), room)]}
    if kind == "function_call":
        return {"role": "assistant", "parts": [_call(item.get("call_id"), item.get("name"), item.get("arguments"), room)]}
    role = _ROLES.get(str(item.get("role")), str(item.get("role") or "user"))
    if role == "tool" and "content" in item and "tool_call_id" in item:
        return {"role": role, "parts": [_response(item["tool_call_id"], item["content"], room)]}
    content = next((item[name] for name in ("content", "parts", "message", "text") if item.get(name) is not None), None)
    parts = _parts(item if content is None and "role" not in item else content, room)
    return {"role": role, "parts": [*parts, *_calls(item.get("tool_calls"), room)]}


def _parts(content: Any, room: _Room) -> list[Part]:
    if content is None or room.left <= 0:
        return []
    if isinstance(content, dict) and isinstance(content.get("parts"), list):
        content = content["parts"]
    if isinstance(content, list) and content and all(isinstance(one, int) for one in content):
        return [{"type": "tokens"}]
    return [_part(one, room) for one in (content if isinstance(content, list) else [content]) if room.left > 0]


def _part(part: Any, room: _Room) -> Part:
    if not isinstance(part, dict):
        return {"type": "text", "content": room.text(str(part))}
    kind = part.get("type")
    call = part if kind == "tool_use" else part.get("toolUse") or part.get("functionCall")
    if isinstance(call, dict):
        return _call(call.get("id") or call.get("toolUseId"), call.get("name"), call.get("input", call.get("args")), room)
    given = part if kind == "tool_result" else part.get("toolResult") or part.get("functionResponse")
    if isinstance(given, dict):
        id = given.get("tool_use_id") or given.get("toolUseId") or given.get("id") or given.get("name")
        return _response(id, given.get("content", given.get("response")), room)
    text = next((part[name] for name in ("text", "refusal", "thinking", "content") if isinstance(part.get(name), str)), None)
    if text is not None:
        return {"type": "reasoning" if kind == "thinking" or part.get("thought") is True else "text", "content": room.text(text)}
    return {"type": str(kind or next(iter(part), "unknown"))}  # an image, a sound, a file: not its bytes


def _call(id: Any, name: Any, arguments: Any, room: _Room) -> Part:
    return {"type": "tool_call", "id": str(id or ""), "name": str(name or ""), "arguments": room.arguments(arguments)}


def _calls(calls: Any, room: _Room) -> Iterator[Part]:
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") or call
        yield _call(call.get("id"), function.get("name"), function.get("arguments"), room)


def _response(id: Any, result: Any, room: _Room) -> Part:
    return {"type": "tool_call_response", "id": str(id or ""), "response": room.value(result)}


# -- what is answered ------------------------------------------------------------------------------------------------------

_FINISHES = {
    "stop": ("stop", "end_turn", "stop_sequence", "complete", "completed", "finish"),
    "length": ("length", "max_tokens", "max_output_tokens"),
    "tool_call": ("tool_calls", "tool_use", "tool_call", "function_call"),
    "content_filter": ("content_filter", "safety", "refusal", "guardrail_intervened", "recitation"),
    "error": ("error", "failed"),
}
_FINISH = {theirs: ours for ours, several in _FINISHES.items() for theirs in several}


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    calls: dict[Any, list[str]] = field(default_factory=dict)  # id, name, arguments: pieces of a stream are put together
    finish: str = ""

    def call(self, slot: Any, id: Any = None, name: Any = None, arguments: Any = None) -> None:
        known = self.calls.setdefault(slot, ["", "", ""])
        written = arguments if isinstance(arguments, str) else "" if arguments is None else json.dumps(arguments)
        known[:] = [known[0] or str(id or ""), known[1] or str(name or ""), known[2] + written]


def _answered(format: WireFormat, objects: Iterable[Any]) -> list[Message]:
    choices: dict[int, _Choice] = {}
    for obj in objects:
        if not isinstance(obj, dict):
            continue
        with suppress(Exception):  # broken in a way that the settlement has told
            for choice, text in format.said(obj) if format.said is not None else ():
                choices.setdefault(choice, _Choice()).text.append(str(text or ""))
        with suppress(Exception):
            _notice(choices, obj)
    room = _Room()
    return [_told(choices[choice], room) for choice in sorted(choices)]


def _told(choice: _Choice, room: _Room) -> Message:
    text = "".join(choice.text)
    parts = [{"type": "text", "content": room.text(text)}] if text else []
    parts += [_call(id, name, arguments, room) for id, name, arguments in choice.calls.values()]
    return {"role": "assistant", "parts": parts, "finish_reason": _FINISH.get(choice.finish.lower(), choice.finish.lower()) or "unknown"}


def _notice(choices: dict[int, _Choice], obj: dict[str, Any]) -> None:
    """Calls of tools, and why an answer ended, in a whole answer or in one event of a stream."""

    def at(number: Any) -> _Choice:
        return choices.setdefault(int(number or 0), _Choice())

    for one in obj.get("choices") or ():
        if one.get("finish_reason"):
            at(one.get("index")).finish = one["finish_reason"]
        _openai_calls(at(one.get("index")), (one.get("delta") or one.get("message") or {}).get("tool_calls"))
    for number, one in enumerate(obj.get("outputs") or obj.get("results") or ()):
        if finish := one.get("stop_reason") or one.get("completionReason"):
            at(number).finish = finish
    for one in obj.get("candidates") or ():
        if one.get("finishReason"):
            at(one.get("index")).finish = one["finishReason"]
        for part in (one.get("content") or {}).get("parts") or ():
            if "functionCall" in part:
                _whole(at(one.get("index")), part["functionCall"], "args")
    kind, inner = obj.get("type"), obj.get("response")
    if (isinstance(inner, dict) and str(kind).startswith("response.")) or obj.get("object") == "response":
        _response_ended(at, inner if isinstance(inner, dict) else obj)
    elif kind in ("content_block_start", "content_block_delta", "message_delta", "message"):
        _anthropic(at(0), obj)
    elif "choices" not in obj and "candidates" not in obj:
        _others(at, obj)


def _whole(choice: _Choice, call: dict[str, Any], arguments: str) -> None:
    choice.call(len(choice.calls), call.get("id") or call.get("toolUseId"), call.get("name"), call.get(arguments))


def _openai_calls(choice: _Choice, calls: Any) -> None:
    for number, call in enumerate(calls or ()):
        function = call.get("function") or {}
        choice.call(call.get("index", number), call.get("id"), function.get("name"), function.get("arguments"))


def _response_ended(at: Any, response: dict[str, Any]) -> None:
    if response.get("status") not in ("completed", "incomplete", "failed"):
        return
    choice = at(0)
    for item in response.get("output") or ():
        if item.get("type") == "function_call":
            choice.call(item.get("call_id"), item.get("call_id"), item.get("name"), item.get("arguments"))
    why = (response.get("incomplete_details") or {}).get("reason")
    choice.finish = why or ("tool_call" if choice.calls else response["status"])


def _anthropic(choice: _Choice, obj: dict[str, Any]) -> None:
    delta, block = obj.get("delta") or {}, obj.get("content_block") or {}
    choice.finish = obj.get("stop_reason") or delta.get("stop_reason") or choice.finish
    if block.get("type") == "tool_use":
        choice.call(obj.get("index"), block.get("id"), block.get("name"))
    elif isinstance(delta.get("partial_json"), str):
        choice.call(obj.get("index"), arguments=delta["partial_json"])
    for part in obj.get("content") or ():
        if part.get("type") == "tool_use":
            _whole(choice, part, "input")


def _others(at: Any, obj: dict[str, Any]) -> None:
    """Bedrock's converse, Cohere, Ollama."""
    message = (obj.get("output") or {}).get("message") if isinstance(obj.get("output"), dict) else obj.get("message")
    delta = obj.get("delta") or {}
    finish = obj.get("stopReason") or (obj.get("messageStop") or {}).get("stopReason") or obj.get("done_reason")
    finish = finish or obj.get("finish_reason") or (delta.get("finish_reason") if isinstance(delta, dict) else None)
    if finish:
        at(0).finish = str(finish)
    for name in ("contentBlockStart", "contentBlockDelta"):
        if isinstance(event := obj.get(name), dict):
            tool = ((event.get("start") or event.get("delta")) or {}).get("toolUse")
            if isinstance(tool, dict):
                at(0).call(event.get("contentBlockIndex"), tool.get("toolUseId"), tool.get("name"), tool.get("input"))
    if obj.get("type") in ("tool-call-start", "tool-call-delta"):
        call = delta["message"]["tool_calls"]
        at(0).call(obj.get("index"), call.get("id"), call["function"].get("name"), call["function"].get("arguments"))
    elif isinstance(message, dict):
        _openai_calls(at(0), message.get("tool_calls")) if message.get("tool_calls") else None
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part.get("toolUse"), dict):
                _whole(at(0), part["toolUse"], "input")
