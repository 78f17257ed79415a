"""What in a request is known to be text, and what makes a provider fetch more than the request shows.

Bytes bound the tokens of text. A part of a kind that nobody listed here may name a document somewhere else, so it is not bounded by
its bytes: then the context window is the bound. Kinds: the types of the OpenAI and Anthropic SDKs, and the reasoning and thinking
parts of OpenRouter, LiteLLM and Mistral.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from wflo_nb.capture.media import Media

#: Parts and items of chat completions and responses.
OPENAI = frozenset(
    [
        "text",
        "input_text",
        "output_text",
        "refusal",
        "summary_text",
        "reasoning_text",
        "reasoning",
        "reasoning.text",
        "reasoning.summary",
        "reasoning.encrypted",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_result",
        "message",
        "function",
        "custom",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "local_shell_call",
        "local_shell_call_output",
        "shell_call",
        "shell_call_output",
        "apply_patch_call",
        "apply_patch_call_output",
        "computer_call",
        "computer_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
    ]
)
#: Blocks of messages. What a search found is told by its `encrypted_content`.
ANTHROPIC = frozenset(
    [
        "text",
        "content",
        "document",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_result",
        "server_tool_use",
        "mcp_tool_use",
        "mcp_tool_result",
        "search_result",
        "web_search_tool_result",
        "web_search_tool_result_error",
        "web_search_result",
        "web_fetch_tool_result",
        "web_fetch_tool_result_error",
        "web_fetch_result",
        "code_execution_tool_result",
        "code_execution_tool_result_error",
        "code_execution_result",
        "bash_code_execution_tool_result",
        "bash_code_execution_tool_result_error",
        "bash_code_execution_result",
        "text_editor_code_execution_tool_result",
        "text_editor_code_execution_tool_result_error",
        "text_editor_code_execution_view_result",
        "text_editor_code_execution_create_result",
        "text_editor_code_execution_str_replace_result",
    ]
)
#: Fields of parts whose values are settings, or words that only the client acts upon, whatever `type` they have.
SETTINGS = frozenset(
    [
        "cache_control",
        "prompt_cache_breakpoint",
        "annotations",
        "logprobs",
        "citations",
        "caller",
        "input",
        "arguments",
        "action",
        "operation",
        "outcome",
    ]
)
#: Where a list holds parts.
CONTENT = frozenset({"content", "output"})
#: All that a part without a type may have, if it is a text.
_PLAIN = SETTINGS | {"text"}
_SOUNDS = ("audio", "video")


Take = Callable[[Media, dict[str, Any]], bool]


def look(media: Media, value: Any, texts: frozenset[str], take: Take, in_content: bool = False) -> None:
    """Find what is not text, below a list of messages, items or parts. `take` counts a part of a kind that is no text, and says False to
    any other; those of the kinds `texts` are text.
    """
    if isinstance(value, dict):
        if not take(media, value) and not notice(media, value, texts, in_content):
            for name, child in value.items():
                if child is not None and not isinstance(child, str) and name not in SETTINGS:
                    look(media, child, texts, take, name in CONTENT)
    elif isinstance(value, list):
        for child in value:
            look(media, child, texts, take, in_content)


def notice(media: Media, part: dict[str, Any], texts: frozenset[str], in_content: bool) -> bool:
    """Count a part that is not known to be text, as the context window. False if it is, so that others may be further down."""
    kind = part.get("type")
    if isinstance(kind, str):
        if kind in texts:
            return False
        media.add("audio" if any(sound in kind for sound in _SOUNDS) else "file", None, why=f"a content part of type {kind!r}")
    elif in_content and not _PLAIN.issuperset(part):
        add_unknown(media, part)
    else:
        return False
    return True


def add_unknown(media: Media, names: Iterable[object]) -> None:
    """Count a part of unknown kind, which is told by the names of its fields, as the context window."""
    words = ", ".join(map(str, names))
    media.add("audio" if any(sound in words for sound in _SOUNDS) else "file", None, why=f"a content part of unknown type ({words})")


#: Fields by which providers and gateways search, or load what they keep, without a tool in the request.
_FETCHING = frozenset(
    [
        "web_search_options",
        "search_parameters",
        "plugins",
        "enable_search",
        "enable_web_search",
        "web_search",
        "forced_search",
        "connectors",
        "venice_parameters",
    ]
)


def fetches(body: dict[str, Any]) -> bool:
    """Whether a field of a request makes the provider search."""
    return not _FETCHING.isdisjoint(body) and any(body.get(field) not in (None, False, []) for field in _FETCHING)


def elsewhere(body: dict[str, Any]) -> str | None:
    """Why a gateway may do more with a request than the model that it names; None if it shows everything."""
    if body.get("models") or body.get("route") or body.get("fallbacks") or "models" in str(body.get("providerOptions") or ""):
        return "it names further models to fall back to, each with a price of its own"
    if body.get("preset"):
        return "a preset is kept at the provider, and may bring instructions, tools and further models"
    return None


def unlimited(body: dict[str, Any]) -> str | None:
    """Why nothing bounds what the fields of a request, beside its tools, make the provider do; None if they are bounded."""
    if "compact" in str(body.get("context_management") or ""):
        return "compaction runs further passes over the context at the provider"
    agents = body.get("multi_agent")
    if agents and not (isinstance(agents, dict) and agents.get("enabled") is False):
        return "it may start any number of further agents at the provider (multi_agent)"
    if fetches(body):
        return "a search that no tool limits is billed per use"
    return elsewhere(body)
