"""Google's generateContent and embeddings, from the provider's side."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from wflo_nb.model import Usage
from wflo_nb.testing.anthropic import _message, _message_events
from wflo_nb.testing.billing import Behaviour
from wflo_nb.testing.tools import called
from wflo_nb.testing.wire import READ, Dialect, fields, sse, with_usage, words

_MODEL = re.compile(r"/models/([^/:]+):")


def _model(path: str, _body: dict[str, Any]) -> str | None:
    found = _MODEL.search(path)
    return found[1] if found else None


def _streams(path: str, _body: dict[str, Any]) -> bool:
    return ":stream" in path


def _metadata(u: Usage) -> dict[str, Any]:
    found = {
        "promptTokenCount": u.input_tokens,
        "candidatesTokenCount": u.output_tokens - u.reasoning_tokens,
        "totalTokenCount": u.input_tokens + u.output_tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": u.input_tokens}],
    }
    if u.cache_read_tokens:
        found["cachedContentTokenCount"] = u.cache_read_tokens
    if u.reasoning_tokens:
        found["thoughtsTokenCount"] = u.reasoning_tokens
    return found


def _choices(body: dict[str, Any]) -> int:
    return (body.get("generationConfig") or {}).get("candidateCount") or 1


def _content(body: dict[str, Any], how: Behaviour, u: Usage, text: str, finish: str | None) -> dict[str, Any]:
    call = called(body, how)
    part = {"text": text} if call is None else {"functionCall": {"name": call.name, "args": call.arguments}}
    candidate: dict[str, Any] = {"content": {"parts": [part], "role": "model"}}
    if finish:
        candidate["finishReason"] = finish
        if how.searches:
            candidate["groundingMetadata"] = {"webSearchQueries": [f"query {i}" for i in range(how.searches)]}
    value: dict[str, Any] = {"candidates": [{**candidate, "index": i} for i in range(_choices(body))]}
    value |= {"modelVersion": how.answered_model or body["model"], "responseId": "resp-1"}
    return with_usage(value, "usageMetadata", _metadata(u), how)


def _generated(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    capped = any(cap and cap <= how.tokens for cap in _CAPS(body))
    return _content(body, how, u, "".join(words(u.output_tokens, how)), "MAX_TOKENS" if capped else "STOP")


def _events(body: dict[str, Any], how: Behaviour, u: Usage) -> list[str]:
    said = words(u.output_tokens, how) if called(body, how) is None else []
    growing = [
        _content(body, how, replace(u, output_tokens=max(number, u.reasoning_tokens)), word, None) for number, word in enumerate(said, 1)
    ]
    return sse([*growing, *[_content(body, how, u, "", "STOP")] * (2 if how.usage == "doubled" else 1)])


def _embedded(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    usage = {"promptTokenCount": u.input_tokens, "totalTokenCount": u.input_tokens}
    values = {"values": [0.25, 0.5]}
    value: dict[str, Any] = {"embeddings": [values for _ in body["requests"]]} if "requests" in body else {"embedding": values}
    return with_usage(value, "usageMetadata", usage, how)


def _predicted(body: dict[str, Any], _how: Behaviour, u: Usage) -> dict[str, Any]:
    each, rest = divmod(u.input_tokens, len(body["instances"]))
    counts = [each + (rest if number == 0 else 0) for number, _ in enumerate(body["instances"])]
    return {"predictions": [{"embeddings": {"values": [0.25], "statistics": {"truncated": False, "token_count": n}}} for n in counts]}


def _searched(_body: dict[str, Any], how: Behaviour) -> list[tuple[str, int]]:
    return [("google_search", 1)] if how.searches else []


_CAPS = fields("generationConfig.maxOutputTokens")
_READ = ("contents", "systemInstruction", "tools")

DIALECTS = (
    Dialect(
        "generateContent",
        re.compile(r":(?:streamGenerateContent|generateContent)$"),
        _generated,
        _events,
        caps=_CAPS,
        choices=_choices,
        read=_READ,
        model=_model,
        streams=_streams,
        units=_searched,
    ),
    Dialect(
        "embedContent",
        re.compile(r":(?:embedContent|batchEmbedContents)$"),
        _embedded,
        writes=False,
        read=("content", "requests"),
        model=_model,
    ),
    Dialect("predict", re.compile(r":predict$"), _predicted, writes=False, read=("instances",), model=_model),
    Dialect(
        "messages",
        re.compile(r"/publishers/anthropic/models/[^/]+:(?:stream)?[rR]awPredict$"),
        _message,
        _message_events,
        caps=fields("max_tokens"),
        read=READ,
        model=_model,
        streams=_streams,
    ),
)
