"""Anthropic's messages, from the provider's side."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from wflo_nb.model import Usage
from wflo_nb.testing.billing import Behaviour
from wflo_nb.testing.tools import called
from wflo_nb.testing.wire import Dialect, fields, with_usage, words


def _anthropic_usage(u: Usage) -> dict[str, Any]:
    return {
        "input_tokens": u.input_tokens - u.cache_read_tokens - u.cache_write_tokens,
        "output_tokens": u.output_tokens,
        "cache_read_input_tokens": u.cache_read_tokens,
        "cache_creation_input_tokens": u.cache_write_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": u.cache_write_tokens - u.cache_write_1h_tokens,
            "ephemeral_1h_input_tokens": u.cache_write_1h_tokens,
        },
    }


def _message(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    value: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": how.answered_model or body["model"]}
    value |= {"content": [{"type": "text", "text": "".join(words(u.output_tokens, how))}], "stop_reason": "end_turn", "stop_sequence": None}
    if (call := called(body, how)) is not None:
        value |= {"content": [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}], "stop_reason": "tool_use"}
    return with_usage(value, "usage", _anthropic_usage(u), how)


def _message_events(body: dict[str, Any], how: Behaviour, u: Usage) -> list[str]:
    start = {**_message(body, how, replace(u, output_tokens=1)), "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    call = called(body, how)
    block: dict[str, Any] = {"type": "text", "text": ""}
    deltas = [{"type": "text_delta", "text": w} for w in words(u.output_tokens, how)]
    if call is not None:
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": call.text}]
    events.append({"type": "content_block_start", "index": 0, "content_block": block})
    events += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
    events.append({"type": "content_block_stop", "index": 0})
    reason = "end_turn" if call is None else "tool_use"
    last: dict[str, Any] = {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}}
    events += [with_usage(last, "usage", {"output_tokens": u.output_tokens}, how)] * (2 if how.usage == "doubled" else 1)
    events.append({"type": "message_stop"})
    return [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events]


DIALECTS = (Dialect("messages", re.compile("/messages$"), _message, _message_events, caps=fields("max_tokens")),)
