"""The tokens of an answer that never crossed a transport of ours: an object or a dict of any SDK, or a piece of its stream.

Where each provider puts its usage, and what is inside what (OpenTelemetry's meaning: input includes cache, output reasoning):

* OpenAI chat, Mistral, Groq, LiteLLM: ``usage.prompt_tokens`` with the cached ones inside, ``usage.completion_tokens``
  (platform.openai.com/docs/api-reference/chat/object);
* OpenAI responses: ``usage.input_tokens`` with the cached ones inside (platform.openai.com/docs/api-reference/responses/object);
* Anthropic: ``usage.input_tokens`` without cache reads and writes (docs.anthropic.com/en/api/messages);
* Gemini: ``usage_metadata.prompt_token_count``, thoughts outside of candidates (ai.google.dev/api/generate-content#UsageMetadata);
* Bedrock converse: ``usage.inputTokens`` without cache (docs.aws.amazon.com, API_runtime_TokenUsage);
* Cohere: ``usage.billed_units`` or ``meta.billed_units`` (docs.cohere.com/reference/chat);
* Ollama: ``prompt_eval_count``, ``eval_count`` of the answer itself (ollama's docs/api.md);
* LangChain: ``usage_metadata`` of an ``AIMessage`` with ``input_token_details`` inside (python.langchain.com, UsageMetadata).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from wflo_nb.model import Usage

#: Where a usage may be found from the answer, tried in this order; () is the answer itself.
_PLACES: tuple[tuple[str, ...], ...] = (
    ("usage",),
    ("usage_metadata",),
    ("usageMetadata",),
    ("response", "usage"),  # the last event of a stream of OpenAI's responses
    ("message", "usage"),  # the first event of a stream of Anthropic's
    ("delta", "usage"),  # the last event of a stream of Cohere's
    ("metadata", "usage"),  # the last event of a stream of Bedrock's
    ("x_groq", "usage"),
    ("meta",),
    ("raw", "usage"),  # LlamaIndex keeps the provider's answer
    ("response_metadata", "token_usage"),
    (),
)
_MODELS: tuple[tuple[str, ...], ...] = (
    ("model",),
    ("model_name",),
    ("model_version",),
    ("modelVersion",),
    ("response_metadata", "model_name"),
    ("response_metadata", "model"),
    ("response", "model"),
    ("message", "model"),
    ("raw", "model"),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says about itself.

    Attributes:
        usage: None where it says nothing of tokens.
        model: None where it names none.
    """

    usage: Usage | None = None
    model: str | None = None

    def plus(self, other: Reading, *, added: bool) -> Reading:
        """Two pieces of one stream: their tokens `added`, or the larger of each where the provider counts up."""
        model = self.model or other.model
        if self.usage is None or other.usage is None:
            return Reading(self.usage or other.usage, model)
        mine, theirs = self.usage, other.usage
        pairs = {name: (getattr(mine, name), getattr(theirs, name)) for name in Usage.__dataclass_fields__}
        return Reading(Usage(**{name: sum(both) if added else max(both) for name, both in pairs.items()}), model)


def read(answer: Any) -> Reading:
    """The usage and the model of an answer. Runs no code of the user's but attribute access, and never raises."""
    if isinstance(answer, Reading):
        return answer
    if isinstance(answer, Usage):
        return Reading(answer)
    model = next((name for place in _MODELS if isinstance(name := _at(answer, place), str) and name), None)
    for place in _PLACES:
        usage = _usage(_at(answer, place))
        if usage is not None:
            return Reading(usage, model)
    return Reading(None, model)


def adds_up(piece: Any) -> bool:
    """Whether the usages in the pieces of such a stream are parts of a sum (LangChain's chunks) and not a count so far."""
    return type(piece).__name__.endswith("MessageChunk")


def _at(thing: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        thing = _get(thing, name)
    return thing


def _get(thing: Any, name: str) -> Any:
    if thing is None or isinstance(thing, (str, bytes, int, float)):
        return None
    try:
        if isinstance(thing, Mapping):
            return thing.get(name)
        return getattr(thing, name, None)
    except Exception:  # a property of somebody's class
        return None


def _count(block: Any, *names: str) -> int | None:
    """The first of these that is a number of tokens."""
    for name in names:
        value = _get(block, name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**53:
            return int(value)
    return None


def _usage(block: Any) -> Usage | None:
    if block is None or isinstance(block, (str, bytes, int, float)):
        return None
    if isinstance(block, Usage):
        return block
    billed = _get(block, "billed_units")
    block = block if _count(billed, "input_tokens", "output_tokens") is None else billed
    found_in = _count(block, "prompt_tokens", "prompt_token_count", "promptTokenCount", "prompt_eval_count", "input_tokens", "inputTokens")
    found_out = _count(
        block, "completion_tokens", "candidates_token_count", "candidatesTokenCount", "eval_count", "output_tokens", "outputTokens"
    )
    if found_in is None and found_out is None:
        return None
    usage = Usage(found_in or 0, found_out or 0)
    if _count(block, "prompt_token_count", "promptTokenCount") is not None:
        return _gemini(block, usage)
    if _count(block, "input_tokens", "inputTokens") is not None or found_in is None:
        return _with_cache(block, usage)
    return _openai(block, usage, "prompt_tokens_details", "completion_tokens_details")


def _openai(block: Any, usage: Usage, of_input: str, of_output: str) -> Usage:
    within, beyond = _get(block, of_input), _get(block, of_output)
    return replace(
        usage,
        cache_read_tokens=_count(within, "cached_tokens") or 0,
        cache_write_tokens=_count(within, "cache_write_tokens", "cache_creation_tokens") or 0,
        reasoning_tokens=_count(beyond, "reasoning_tokens") or 0,
    )


def _gemini(block: Any, usage: Usage) -> Usage:
    thoughts = _count(block, "thoughts_token_count", "thoughtsTokenCount") or 0
    return replace(
        usage,
        input_tokens=usage.input_tokens + (_count(block, "tool_use_prompt_token_count", "toolUsePromptTokenCount") or 0),
        output_tokens=usage.output_tokens + thoughts,
        cache_read_tokens=_count(block, "cached_content_token_count", "cachedContentTokenCount") or 0,
        reasoning_tokens=thoughts,
    )


def _with_cache(block: Any, usage: Usage) -> Usage:
    """``input_tokens`` is written by four families, which are told apart by where they put what comes from a cache."""
    details, beyond = _get(block, "input_token_details"), _get(block, "output_token_details")
    if details is not None or beyond is not None:  # LangChain: inside
        return replace(
            usage,
            cache_read_tokens=_count(details, "cache_read") or 0,
            cache_write_tokens=_count(details, "cache_creation") or 0,
            reasoning_tokens=_count(beyond, "reasoning") or 0,
        )
    if _get(block, "input_tokens_details") is not None or _get(block, "output_tokens_details") is not None:
        return _openai(block, usage, "input_tokens_details", "output_tokens_details")
    read = _count(block, "cache_read_input_tokens", "cacheReadInputTokens") or 0  # Anthropic, Bedrock: outside
    write = _count(block, "cache_creation_input_tokens", "cacheWriteInputTokens") or 0
    long = _count(_get(block, "cache_creation"), "ephemeral_1h_input_tokens") or 0
    return replace(
        usage,
        input_tokens=usage.input_tokens + read + write,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=min(long, write),
    )
