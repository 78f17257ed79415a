"""Ollama, from the provider's side."""

from __future__ import annotations

import json
import re
from typing import Any

from wflo_nb.model import Usage
from wflo_nb.testing.billing import Behaviour
from wflo_nb.testing.tools import called
from wflo_nb.testing.wire import Dialect, fields, words

_NDJSON = "application/x-ndjson"


def _line(body: dict[str, Any], text: str, **more: Any) -> dict[str, Any]:
    value: dict[str, Any] = {"model": body["model"], "created_at": "2026-11-25T12:00:00Z", "done": False}
    return value | ({"message": {"role": "assistant", "content": text}} if "messages" in body else {"response": text}) | more


def _last(how: Behaviour, u: Usage) -> dict[str, Any]:
    told: dict[str, Any] = {"done": True, "done_reason": "stop", "total_duration": 1, "prompt_eval_duration": 1, "eval_duration": 1}
    if how.usage in ("full", "doubled"):
        told |= {"prompt_eval_count": u.input_tokens, "eval_count": u.output_tokens}
    elif how.usage == "garbage":
        told |= {"prompt_eval_count": "many", "eval_count": "many"}
    return told


def _answered(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    if (call := called(body, how)) is not None:
        asked = [{"function": {"name": call.name, "arguments": call.arguments}}]
        return _line(body, "", **_last(how, u)) | {"message": {"role": "assistant", "content": "", "tool_calls": asked}}
    return _line(body, "".join(words(u.output_tokens, how)), **_last(how, u))


def _lines(body: dict[str, Any], how: Behaviour, u: Usage) -> list[str]:
    lines = [_line(body, word) for word in words(u.output_tokens, how)]
    return [json.dumps(line) + "\n" for line in (*lines, _line(body, "", **_last(how, u)))]


def _embedded(body: dict[str, Any], _how: Behaviour, u: Usage) -> dict[str, Any]:
    return {
        "model": body["model"],
        "embeddings": [[0.25, 0.5]],
        "total_duration": 1,
        "load_duration": 1,
        "prompt_eval_count": u.input_tokens,
    }


def _streams(_path: str, body: dict[str, Any]) -> bool:
    return body.get("stream") is not False


_CAP = fields("options.num_predict")

DIALECTS = (
    Dialect("ollama_chat", re.compile("/api/chat$"), _answered, _lines, kind=_NDJSON, caps=_CAP, streams=_streams),
    Dialect(
        "ollama_generate",
        re.compile("/api/generate$"),
        _answered,
        _lines,
        kind=_NDJSON,
        caps=_CAP,
        streams=_streams,
        read=("prompt", "system"),
    ),
    Dialect("ollama_embed", re.compile("/api/embed$"), _embedded, writes=False),
)
