"""OpenAI's chat completions, responses and embeddings, also spoken by most other providers, gateways and local servers.

Definitions: https://platform.openai.com/docs/api-reference/chat, …/responses, …/embeddings. `prompt_tokens` and `input_tokens`
include cached tokens; `completion_tokens` and `output_tokens` include reasoning.
"""

from __future__ import annotations

import re
from typing import Any

from wflo_nb.capture.formats.base import Answer, Facts, WireFormat, largest, parts, text_or_none
from wflo_nb.capture.sse import without_null_usage

_MEDIA = ("image", "audio", "file", "video")
_CLIENT_TOOLS = {"function", "custom"}


def _tools_billed_per_use(body: dict[str, Any]) -> str | None:
    tools = body.get("tools")
    kinds = {str(t.get("type", "function")) for t in tools if isinstance(t, dict)} if isinstance(tools, list) else set()
    if foreign := sorted(kinds - _CLIENT_TOOLS):
        return f"the tool {', '.join(foreign)} runs at the provider and is billed per use"
    return None


def _beyond_the_bytes(content: Any) -> str | None:
    for part in parts(content):
        kind = part.get("type")
        if isinstance(kind, str) and any(word in kind for word in _MEDIA):
            return f"a content part of type {kind!r}"
        if "image_url" in part or "file_id" in part or "input_audio" in part or kind == "item_reference":
            return "content that is not in the request"
    return None


# -- chat completions ------------------------------------------------------------------------------------------------------


def _read_chat(body: dict[str, Any]) -> Facts:
    unbounded = _tools_billed_per_use(body)
    if "web_search_options" in body or body.get("plugins"):
        unbounded = "a web search is billed per use"
    elif "audio" in (body.get("modalities") or ()):
        unbounded = "audio output has rates of its own"
    elif any(not isinstance(body.get(f), int | None) for f in ("n", "best_of")):
        unbounded = "the number of answers is not a whole number"  # some servers read "4" and 4.0 as 4
    choices = largest(body, "n", "best_of") or 1
    prediction = body.get("prediction")
    return Facts(
        model=str(body.get("model") or ""),
        stream=body.get("stream") is True,
        cap=largest(body, "max_completion_tokens", "max_tokens"),
        choices=choices,
        window=(beyond := _beyond_the_bytes(body.get("messages"))),
        unbounded=unbounded,
        service_tier=text_or_none(body.get("service_tier")),
        media=beyond is not None,
        # Rejected tokens of a predicted output are billed as output; each byte of it is at most one token.
        extra_output=len(str(prediction).encode()) * choices if prediction else 0,
    )


def _with_reasoning(usage: dict[str, Any], read: str, written: str) -> Any:
    """The output as it is billed. xAI and Gemini leave reasoning out of it and count it in the total alone."""
    counts = [usage.get(name) for name in (read, written, "total_tokens")]
    if any(isinstance(c, bool) or not isinstance(c, int) for c in counts):
        return usage.get(written)
    return max(usage[written], usage["total_tokens"] - usage[read])


def _fold_openai_usage(answer: Answer, usage: dict[str, Any], read: str, written: str) -> bool:
    into = usage.get(f"{read}_details") or {}
    out = usage.get(f"{written}_details") or {}
    details = (into if isinstance(into, dict) else {}), (out if isinstance(out, dict) else {})
    for count in (read, written):
        if usage.get(count) is None:
            answer.problem = f"usage without {count}"
            return False
    return answer.put(
        input_tokens=usage[read],
        output_tokens=_with_reasoning(usage, read, written),
        cache_read_tokens=details[0].get("cached_tokens"),
        cache_write_tokens=details[0].get("cache_write_tokens"),
        reasoning_tokens=details[1].get("reasoning_tokens"),
    )


def _fold_common(answer: Answer, obj: dict[str, Any]) -> None:
    if isinstance(obj.get("model"), str):
        answer.model = obj["model"]
    if isinstance(obj.get("service_tier"), str):
        answer.service_tier = obj["service_tier"]


def _fold_chat(answer: Answer, obj: dict[str, Any]) -> None:
    _fold_common(answer, obj)
    choices = obj.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("finish_reason") == "length":
            answer.truncated = True
    usage = obj.get("usage")
    if not isinstance(usage, dict):
        groq = obj.get("x_groq")
        usage = groq.get("usage") if isinstance(groq, dict) else None
    if isinstance(usage, dict) and _fold_openai_usage(answer, usage, "prompt_tokens", "completion_tokens"):
        # A whole answer, or the last event of a stream; usage in an event with choices may still grow until the end.
        answer.complete = answer.complete or not answer.streaming or not choices


def _ask_chat(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    if body.get("stream") is not True or (isinstance(options, dict) and options.get("include_usage") is True):
        return False
    body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return True


_EXTRA = re.compile(rb'"choices"\s*:\s*\[\s*\]')


def _is_extra_chat(event: bytes) -> bool:
    # Azure's first event has no choices either; `"usage": null` in it does not make it the one that we asked for.
    return b'"usage"' in without_null_usage(event) and _EXTRA.search(event) is not None


def _cap_chat(body: dict[str, Any], cap: int, host: str) -> None:
    # Reasoning models refuse `max_tokens`; servers that only speak OpenAI's older dialect know nothing else.
    own = host.endswith(("openai.com", "azure.com"))
    for field in ("max_completion_tokens", "max_tokens"):
        body.pop(field, None)  # null, or no count: what we could not read as a cap must not overrule ours
    body["max_completion_tokens" if own else "max_tokens"] = cap


# -- responses -------------------------------------------------------------------------------------------------------------


def _read_responses(body: dict[str, Any]) -> Facts:
    beyond = window = _beyond_the_bytes(body.get("input"))
    for field in ("previous_response_id", "conversation", "prompt"):
        if body.get(field):
            window = f"context kept at the provider ({field})"
    return Facts(
        model=str(body.get("model") or ""),
        stream=body.get("stream") is True,
        cap=largest(body, "max_output_tokens"),
        window=window,
        unbounded=_tools_billed_per_use(body),
        service_tier=text_or_none(body.get("service_tier")),
        media=beyond is not None,
    )


def _fold_responses(answer: Answer, obj: dict[str, Any]) -> None:
    inner = obj.get("response")
    response = inner if isinstance(inner, dict) else obj
    _fold_common(answer, response)
    details = response.get("incomplete_details")
    if isinstance(details, dict) and details.get("reason") == "max_output_tokens":
        answer.truncated = True
    usage = response.get("usage")
    if isinstance(usage, dict) and _fold_openai_usage(answer, usage, "input_tokens", "output_tokens"):
        answer.complete = True
    answer.ended = obj.get("type") in ("response.completed", "response.incomplete", "response.failed")


def _cap_responses(body: dict[str, Any], cap: int, _host: str) -> None:
    body["max_output_tokens"] = max(cap, 16)  # the least that the interface accepts


# -- embeddings ------------------------------------------------------------------------------------------------------------


def _read_embeddings(body: dict[str, Any]) -> Facts:
    return Facts(model=str(body.get("model") or ""), produces=False)


def _fold_embeddings(answer: Answer, obj: dict[str, Any]) -> None:
    _fold_common(answer, obj)
    usage = obj.get("usage")
    if isinstance(usage, dict) and answer.put(input_tokens=usage.get("prompt_tokens", usage.get("input_tokens"))):
        answer.complete = bool(answer.counts)


def _no_cap(_body: dict[str, Any], _cap: int, _host: str) -> None:
    """Nothing is generated, so there is nothing to cap."""


FORMATS = (
    WireFormat(
        "chat", "/chat/completions", "openai", lambda b: "messages" in b, _read_chat, _fold_chat, _cap_chat, _ask_chat, _is_extra_chat
    ),
    WireFormat(
        "responses",
        "/responses",
        "openai",
        lambda b: "model" in b and ("input" in b or "prompt" in b),
        _read_responses,
        _fold_responses,
        _cap_responses,
    ),
    WireFormat("embeddings", "/embeddings", "openai", lambda b: "model" in b and "input" in b, _read_embeddings, _fold_embeddings, _no_cap),
)
