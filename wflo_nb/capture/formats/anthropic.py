"""Anthropic's messages.

Definition: https://docs.anthropic.com/en/api/messages. `input_tokens` excludes what was read from or written to the cache, so
both are added here. In a stream the input side comes in `message_start` and the output, growing, in `message_delta`.
"""

from __future__ import annotations

from typing import Any

from wflo_nb.capture.formats.base import Answer, Facts, WireFormat, largest, parts, text_or_none

#: Tools that the client runs; everything else with a type of its own runs, and is billed, at the provider.
_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
#: Offering tools adds a system prompt of up to 530 tokens, the computer and editor tools up to about 1,500 more.
_TOOLS_PROMPT = 2048
_MEDIA = ("image", "document", "container_upload", "file")


def _unbounded(body: dict[str, Any]) -> str | None:
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and not kind.startswith(_CLIENT_TOOLS):
            return f"the tool {kind} runs at the provider and is billed per use"
    if body.get("mcp_servers"):
        return "MCP servers run at the provider"
    return None


def _read(body: dict[str, Any]) -> Facts:
    kinds = {p.get("type") for p in parts(body.get("messages"))} | {p.get("type") for p in parts(body.get("system"))}
    media = sorted(k for k in kinds if k in _MEDIA)
    return Facts(
        model=str(body.get("model") or ""),
        stream=body.get("stream") is True,
        cap=largest(body, "max_tokens"),
        window=f"a content part of type {media[0]!r}" if media else None,
        unbounded=_unbounded(body),
        service_tier="fast" if body.get("speed") == "fast" else text_or_none(body.get("service_tier")),
        media=bool(media),
        extra_input=_TOOLS_PROMPT if body.get("tools") else 0,
    )


def _fold_usage(answer: Answer, usage: dict[str, Any]) -> bool:
    made = usage.get("cache_creation")
    seen = answer.counts
    ok = answer.put(
        output_tokens=usage.get("output_tokens"),
        cache_read_tokens=usage.get("cache_read_input_tokens"),
        cache_write_tokens=usage.get("cache_creation_input_tokens"),
        cache_write_1h_tokens=made.get("ephemeral_1h_input_tokens") if isinstance(made, dict) else None,
    )
    plain = usage.get("input_tokens")
    if ok and plain is not None:
        if isinstance(plain, bool) or not isinstance(plain, int):
            answer.problem = f"the provider reported input_tokens={plain!r}"
            return False
        ok = answer.put(input_tokens=plain + seen.get("cache_read_tokens", 0) + seen.get("cache_write_tokens", 0))
    if isinstance(usage.get("service_tier"), str):
        answer.service_tier = usage["service_tier"]
    if usage.get("speed") == "fast":
        answer.service_tier = "fast"
    if usage.get("inference_geo") not in (None, "global", "not_available"):
        answer.regional = True
    return ok


def _fold(answer: Answer, obj: dict[str, Any]) -> None:
    kind = obj.get("type")
    answer.ended = kind == "message_stop"
    message = obj.get("message") if kind == "message_start" else obj
    if not isinstance(message, dict):
        return
    if isinstance(message.get("model"), str):
        answer.model = message["model"]
    delta = obj.get("delta")
    if message.get("stop_reason") == "max_tokens" or (isinstance(delta, dict) and delta.get("stop_reason") == "max_tokens"):
        answer.truncated = True
    usage = message.get("usage")
    if isinstance(usage, dict) and _fold_usage(answer, usage) and kind != "message_start":
        answer.complete = "input_tokens" in answer.counts and "output_tokens" in answer.counts


def _write_cap(body: dict[str, Any], cap: int, _host: str) -> None:
    body["max_tokens"] = cap


FORMATS = (WireFormat("messages", "/messages", "anthropic", lambda b: "model" in b and "messages" in b, _read, _fold, _write_cap),)
