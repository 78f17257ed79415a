"""Cohere, from the provider's side."""

from __future__ import annotations

import re
from typing import Any

from wflo_nb.model import Usage
from wflo_nb.testing.billing import Behaviour
from wflo_nb.testing.tools import called
from wflo_nb.testing.wire import Dialect, fields, sse, with_usage, words


def _usage(u: Usage) -> dict[str, Any]:
    # More was read than is billed, as with the real one.
    return {
        "billed_units": {"input_tokens": u.input_tokens, "output_tokens": u.output_tokens},
        "tokens": {"input_tokens": u.input_tokens + 60, "output_tokens": u.output_tokens + 2},
    }


def _message(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    content = [{"type": "text", "text": "".join(words(u.output_tokens, how))}]
    value: dict[str, Any] = {"id": "c-1", "finish_reason": "COMPLETE", "message": {"role": "assistant", "content": content}}
    if (call := called(body, how)) is not None:
        asked = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.text}}
        value |= {"finish_reason": "TOOL_CALL", "message": {"role": "assistant", "tool_plan": "", "tool_calls": [asked]}}
    return _told(value, how, _usage(u))


def _told(value: dict[str, Any], how: Behaviour, usage: dict[str, Any], field: str = "usage") -> dict[str, Any]:
    if how.usage == "garbage":
        value[field] = {"billed_units": dict.fromkeys(usage["billed_units"], -1)}
        return value
    return with_usage(value, field, usage, how)


def _events(_body: dict[str, Any], how: Behaviour, u: Usage) -> list[str]:
    events: list[dict[str, Any]] = [
        {"type": "message-start", "id": "c-1", "delta": {"message": {"role": "assistant", "content": []}}},
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
    ]
    events += [
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": word}}}} for word in words(u.output_tokens, how)
    ]
    events.append({"type": "content-end", "index": 0})
    end = {"type": "message-end", "delta": _told({"finish_reason": "COMPLETE"}, how, _usage(u))}
    return sse([*events, *[end] * (2 if how.usage == "doubled" else 1)], named=True)


def _embedded(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    texts = body.get("texts") or []
    value: dict[str, Any] = {"id": "e-1", "embeddings": {"float": [[0.25, 0.5] for _ in texts]}, "texts": texts}
    return _told(value, how, {"billed_units": {"input_tokens": u.input_tokens}}, "meta")


def _ranked(body: dict[str, Any], how: Behaviour, _u: Usage) -> dict[str, Any]:
    results = [{"index": index, "relevance_score": 0.5} for index, _ in enumerate(body["documents"])]
    ((_, searches),) = _searches(body, how)
    return _told({"id": "r-1", "results": results}, how, {"billed_units": {"search_units": searches}}, "meta")


def _searches(body: dict[str, Any], _how: Behaviour) -> list[tuple[str, int]]:
    return [("search of rerank-v3.5", -(-len(body["documents"]) // 100))]


DIALECTS = (
    Dialect("cohere_chat", re.compile("/v2/chat$"), _message, _events, caps=fields("max_tokens")),
    Dialect("cohere_embed", re.compile("/v2/embed$"), _embedded, writes=False, read=("texts",)),
    Dialect("rerank", re.compile("/v2/rerank$"), _ranked, writes=False, read=(), units=_searches, tokens=False),
)
