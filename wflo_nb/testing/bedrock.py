"""Amazon Bedrock, from the provider's side: converse, and invoke for Claude and Llama. Signatures are not looked at."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from wflo_nb.capture.framing import aws_message
from wflo_nb.model import Usage
from wflo_nb.testing.anthropic import _message, _message_events
from wflo_nb.testing.billing import Behaviour
from wflo_nb.testing.tools import called
from wflo_nb.testing.wire import Dialect, fields, with_usage, words

_MODEL = re.compile(r"/model/(.+)/[a-z-]+$")
_EVENTS = "application/vnd.amazon.eventstream"


def _model(path: str, _body: dict[str, Any]) -> str | None:
    found = _MODEL.search(path)
    return found[1] if found else None


def _streams(path: str, _body: dict[str, Any]) -> bool:
    return path.endswith("-stream")


def _counts(u: Usage) -> dict[str, Any]:
    plain = u.input_tokens - u.cache_read_tokens - u.cache_write_tokens
    cached = {"cacheReadInputTokens": u.cache_read_tokens, "cacheWriteInputTokens": u.cache_write_tokens}
    return {"inputTokens": plain, "outputTokens": u.output_tokens, "totalTokens": u.input_tokens + u.output_tokens, **cached}


def _conversed(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"text": "".join(words(u.output_tokens, how))}]
    call = called(body, how)
    if call is not None:
        content = [{"toolUse": {"toolUseId": call.id, "name": call.name, "input": call.arguments}}]
    reason = "end_turn" if call is None else "tool_use"
    value = {"output": {"message": {"role": "assistant", "content": content}}, "stopReason": reason, "metrics": {"latencyMs": 1}}
    return with_usage(value, "usage", _counts(u), how)


def _event(kind: str, value: dict[str, Any]) -> bytes:
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return aws_message(headers, json.dumps(value).encode())


def _converse_events(_body: dict[str, Any], how: Behaviour, u: Usage) -> list[bytes]:
    said = [_event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": word}}) for word in words(u.output_tokens, how)]
    last = _event("metadata", with_usage({"metrics": {"latencyMs": 1}}, "usage", _counts(u), how))
    return [_event("messageStart", {"role": "assistant"}), *said, _event("messageStop", {"stopReason": "end_turn"}), last]


def _invoked(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    if "anthropic_version" in body:
        return _message({**body, "model": "claude-sonnet-4-5-20250929"}, how, u)
    counts = {"prompt_token_count": u.input_tokens, "generation_token_count": u.output_tokens} if how.usage == "full" else {}
    return {"generation": "".join(words(u.output_tokens, how)), "stop_reason": "stop", **counts}


def _invoke_events(body: dict[str, Any], how: Behaviour, u: Usage) -> list[bytes]:
    if "anthropic_version" in body:
        named = {**body, "model": "claude-sonnet-4-5-20250929"}
        inner = [json.loads(event.partition("data: ")[2]) for event in _message_events(named, how, u)]
    else:
        inner = [{"generation": word, "prompt_token_count": None, "generation_token_count": 1} for word in words(u.output_tokens, how)]
        inner.append({"generation": "", "stop_reason": "stop"})
    if how.usage == "full":
        inner[-1]["amazon-bedrock-invocationMetrics"] = {"inputTokenCount": u.input_tokens, "outputTokenCount": u.output_tokens}
    return [_event("chunk", {"bytes": base64.b64encode(json.dumps(one).encode()).decode()}) for one in inner]


DIALECTS = (
    Dialect(
        "converse",
        re.compile("/converse(?:-stream)?$"),
        _conversed,
        _converse_events,
        kind=_EVENTS,
        caps=fields("inferenceConfig.maxTokens"),
        model=_model,
        streams=_streams,
    ),
    Dialect(
        "invoke",
        re.compile("/invoke(?:-with-response-stream)?$"),
        _invoked,
        _invoke_events,
        kind=_EVENTS,
        caps=fields("max_tokens", "max_gen_len"),
        read=("messages", "system", "tools", "prompt"),
        model=_model,
        streams=_streams,
    ),
)
