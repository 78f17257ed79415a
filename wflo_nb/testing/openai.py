"""OpenAI's interfaces, from the provider's side."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from wflo_nb.model import Usage
from wflo_nb.testing.billing import Behaviour
from wflo_nb.testing.tools import ToolCall, called
from wflo_nb.testing.wire import Dialect, fields, sse, with_usage, words

_CAPS = ("max_completion_tokens", "max_tokens")


def _chat_usage(u: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": u.input_tokens,
        "completion_tokens": u.output_tokens,
        "total_tokens": u.input_tokens + u.output_tokens,
        "prompt_tokens_details": {"cached_tokens": u.cache_read_tokens, "cache_write_tokens": u.cache_write_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": u.reasoning_tokens, "audio_tokens": 0},
    }


def _chat(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    n = body.get("n") or 1
    capped = any(body.get(f) and body[f] < how.tokens for f in _CAPS)
    choice: dict[str, Any] = {
        "message": {"role": "assistant", "content": "".join(words(u.output_tokens // n, how))},
        "finish_reason": "length" if capped else "stop",
    }
    if (call := called(body, how)) is not None:
        choice = {"message": {"role": "assistant", "content": None, "tool_calls": [_tool_call(call)]}, "finish_reason": "tool_calls"}
    value: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": how.answered_model or body["model"]}
    value["choices"] = [{"index": i, **choice} for i in range(n)]
    return with_usage(value, "usage", _chat_usage(u), how)


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.text}}


def _chat_events(body: dict[str, Any], how: Behaviour, u: Usage) -> list[str]:
    head: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": how.answered_model or body["model"],
    }
    asked = bool((body.get("stream_options") or {}).get("include_usage"))
    extra = {"usage": None} if asked and how.usage != "missing" else {}
    call, finish = called(body, how), "stop"
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": w} for w in words(u.output_tokens, how)]
    if call is not None:
        deltas, finish = [{"role": "assistant", "content": None, "tool_calls": [{"index": 0, **_tool_call(call)}]}], "tool_calls"
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **extra} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}], **extra})
    if how.usage_in == "last":
        with_usage(chunks[-1], "usage", _chat_usage(u), how)
    elif how.usage_in == "x_groq":
        chunks[-1]["x_groq"] = with_usage({"id": "req_1"}, "usage", _chat_usage(u), how)
    elif asked and how.usage != "missing":
        chunks += [with_usage({**head, "choices": []}, "usage", _chat_usage(u), how)] * (2 if how.usage == "doubled" else 1)
    return [f"data: {json.dumps(c)}\n\n" for c in chunks] + ["data: [DONE]\n\n"]


def _response(body: dict[str, Any], how: Behaviour, u: Usage, status: str = "completed") -> dict[str, Any]:
    text = {"type": "output_text", "text": "".join(words(u.output_tokens, how)), "annotations": []}
    value: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": how.answered_model or body["model"],
    }
    value |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "output": []}
    if status != "completed":
        return value
    value["output"] = [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}]
    if (call := called(body, how)) is not None:
        value["output"] = [_function_call(call)]
    usage = {
        "input_tokens": u.input_tokens,
        "output_tokens": u.output_tokens,
        "total_tokens": u.input_tokens + u.output_tokens,
        "input_tokens_details": {"cached_tokens": u.cache_read_tokens, "cache_write_tokens": u.cache_write_tokens},
        "output_tokens_details": {"reasoning_tokens": u.reasoning_tokens},
    }
    return with_usage(value, "usage", usage, how)


def _function_call(call: ToolCall, status: str = "completed") -> dict[str, Any]:
    item = {"type": "function_call", "id": "fc_1", "call_id": call.id, "name": call.name, "status": status}
    return item | {"arguments": call.text if status == "completed" else ""}


def _response_events(body: dict[str, Any], how: Behaviour, u: Usage) -> list[str]:
    events: list[dict[str, Any]] = [{"type": "response.created", "response": _response(body, how, u, "in_progress")}]
    call = called(body, how)
    events += _spoken_events(how, u) if call is None else _called_events(call)
    events.append({"type": "response.completed", "response": _response(body, how, u)})
    return [f"event: {e['type']}\ndata: {json.dumps({**e, 'sequence_number': i})}\n\n" for i, e in enumerate(events)]


def _called_events(call: ToolCall) -> list[dict[str, Any]]:
    where = {"item_id": "fc_1", "output_index": 0}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": _function_call(call, "in_progress")},
        {"type": "response.function_call_arguments.delta", **where, "delta": call.text},
        {"type": "response.function_call_arguments.done", **where, "arguments": call.text, "name": call.name},
        {"type": "response.output_item.done", "output_index": 0, "item": _function_call(call)},
    ]


def _spoken_events(how: Behaviour, u: Usage) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    item: dict[str, Any] = {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}
    part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    # The SDK's `responses.stream` helper insists on the frame around the words.
    events.append({"type": "response.output_item.added", "output_index": 0, "item": item})
    events.append({"type": "response.content_part.added", **where, "part": part})
    events += [{"type": "response.output_text.delta", **where, "delta": w, "logprobs": []} for w in words(u.output_tokens, how)]
    text = "".join(words(u.output_tokens, how))
    done = {**part, "text": text}
    events.append({"type": "response.output_text.done", **where, "text": text, "logprobs": []})
    events.append({"type": "response.content_part.done", **where, "part": done})
    events.append({"type": "response.output_item.done", "output_index": 0, "item": {**item, "status": "completed", "content": [done]}})
    return events


def _embeddings(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = [{"object": "embedding", "index": i, "embedding": [0.25, 0.5]} for i, _ in enumerate(inputs)]
    value = {"object": "list", "model": how.answered_model or body["model"], "data": data}
    return with_usage(value, "usage", {"prompt_tokens": u.input_tokens, "total_tokens": u.input_tokens}, how)


def _completion(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    number = _prompts(body)
    text = "".join(words(u.output_tokens // number, how))
    value: dict[str, Any] = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": how.answered_model or body["model"]}
    value["choices"] = [{"index": i, "text": text, "finish_reason": "stop", "logprobs": None} for i in range(number)]
    return with_usage(value, "usage", _chat_usage(u), how)


def _completion_events(body: dict[str, Any], how: Behaviour, u: Usage) -> list[str]:
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": how.answered_model or body["model"]}
    chunks: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "text": word, "finish_reason": None, "logprobs": None}]} for word in words(u.output_tokens, how)
    ]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append(with_usage({**head, "choices": []}, "usage", _chat_usage(u), how))
    return [*sse(chunks), "data: [DONE]\n\n"]


def _prompts(body: dict[str, Any]) -> int:
    prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
    return int(prompts * (body.get("best_of") or body.get("n") or 1))


def _images(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    usage = {
        "input_tokens": u.input_tokens,
        "output_tokens": u.output_tokens,
        "total_tokens": u.input_tokens + u.output_tokens,
        "input_tokens_details": {"text_tokens": u.input_tokens, "image_tokens": 0},
    }
    return with_usage({"created": 1, "data": [{"b64_json": "AAAA"}] * (body.get("n") or 1)}, "usage", usage, how)


def _read_pages(body: dict[str, Any], how: Behaviour, _u: Usage) -> dict[str, Any]:
    size = {"dpi": 200, "height": 10, "width": 10}
    pages = [{"index": i, "markdown": "text", "images": [], "dimensions": size} for i in range(how.pages)]
    value: dict[str, Any] = {"model": how.answered_model or body["model"], "pages": pages}
    return with_usage(value, "usage_info", {"pages_processed": how.pages, "doc_size_bytes": 100}, how)


def _pages(_body: dict[str, Any], how: Behaviour) -> list[tuple[str, int]]:
    return [("page of mistral-ocr-latest", how.pages)]


def _spoken(body: dict[str, Any], _how: Behaviour) -> list[tuple[str, int]]:
    return [("character of tts-1", len(body["input"]))]


DIALECTS = (
    Dialect("chat", re.compile("/chat/completions$"), _chat, _chat_events, caps=fields(*_CAPS)),
    Dialect("responses", re.compile("/responses$"), _response, _response_events, caps=fields("max_output_tokens")),
    Dialect(
        "fim",
        re.compile("/fim/completions$"),
        _chat,
        lambda body, how, u: _chat_events(body, replace(how, usage_in="last"), u),
        caps=fields("max_tokens"),
        read=("prompt", "suffix"),
    ),
    Dialect(
        "agents",
        re.compile("/agents/completions$"),
        _chat,
        lambda body, how, u: _chat_events(body, replace(how, usage_in="last"), u),
        caps=fields("max_tokens"),
        model=lambda _path, body: body.get("agent_id") and "mistral-small-latest",
    ),
    Dialect(
        "completions",
        re.compile("/completions$"),
        _completion,
        _completion_events,
        caps=fields("max_tokens"),
        choices=_prompts,
        read=("prompt", "suffix"),
    ),
    Dialect("ocr", re.compile("/v1/ocr$"), _read_pages, read=(), writes=False, units=_pages, tokens=False),
    Dialect("images", re.compile("/images/generations$"), _images, read=("prompt",)),
    Dialect(
        "speech",
        re.compile("/audio/speech$"),
        lambda *_: b"\xff\xf3sound",
        plain_kind="audio/mpeg",
        read=(),
        writes=False,
        units=_spoken,
        tokens=False,
    ),
    Dialect("embeddings", re.compile("/embeddings$"), _embeddings, writes=False),
)
