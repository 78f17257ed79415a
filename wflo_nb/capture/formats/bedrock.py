"""Amazon Bedrock: converse and converse-stream, the same for all models, and the common ground of its interfaces.

Definitions: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html, …_ConverseStream.html. The model is in the
path, URL-quoted: an id, an inference profile (``us.``, ``eu.``, ``global.`` …) or an ARN. `inputTokens` excludes what was read from or
written to the cache. A stream is an AWS event stream whose last event, `metadata`, has the usage.

Requests are signed over their bytes. `write_cap` therefore has to be used before the signature; what a transport finds signed is left as
it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from wflo_nb.capture.formats import anthropic, caps, known
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat, text_or_none
from wflo_nb.capture.media import Media

#: The header in which the tier stands, of a request and of an answer.
TIER = "x-amzn-bedrock-service-tier"
_MODEL = re.compile(r"/model/(.+)/(?:converse|converse-stream|invoke|invoke-with-response-stream)/?$")
#: Claude's own name inside the ids of Bedrock: its images are counted by the same rule as at Anthropic.
_CLAUDE = re.compile(r"anthropic\.(claude-[\w.-]*?)(?:-v\d+(?::\d+\w*)*)?$")


def model_in(path: str) -> str:
    """The model that a path names, the empty text if there is none."""
    found = _MODEL.search(unquote(path))
    return unquote(found[1]) if found else ""


def claude_in(model: str) -> str | None:
    """Claude's own name in an id of Bedrock, None for other models."""
    found = _CLAUDE.search(model)
    return found[1] if found else None


def looked_at(model: str, messages: Any) -> Media:
    """What is not text in the messages of a request."""
    claude = claude_in(model)
    media = Media.at("anthropic", claude) if claude else Media.at("aws.bedrock", model)
    _look(media, messages)
    return media


def _kept(usage: dict[str, Any]) -> Any:
    """Tokens that were written to the cache for an hour."""
    details = usage.get("cacheDetails")
    found = (
        [one.get("inputTokens") for one in details if isinstance(one, dict) and one.get("ttl") == "1h"] if isinstance(details, list) else ()
    )
    return next(iter(found), None)


def fold_counts(answer: Answer, usage: dict[str, Any]) -> bool:
    """Counts as converse, Nova's own answers and the metrics of streams name them. True if all could be read."""
    plain, written = usage.get("inputTokens", usage.get("inputTokenCount")), usage.get("outputTokens", usage.get("outputTokenCount"))
    read = usage.get("cacheReadInputTokens", usage.get("cacheReadInputTokenCount"))
    write = usage.get("cacheWriteInputTokens", usage.get("cacheWriteInputTokenCount"))
    if plain is None or written is None:
        answer.problem = "usage without the tokens of one side"
        return False
    if not answer.put(output_tokens=written, cache_read_tokens=read, cache_write_tokens=write, cache_write_1h_tokens=_kept(usage)):
        return False
    if isinstance(plain, bool) or not isinstance(plain, int) or plain < 0:
        answer.problem = f"the provider reported inputTokens={plain!r}"
        return False
    return answer.put(input_tokens=plain + (read or 0) + (write or 0))


# -- converse ----------------------------------------------------------------------------------------------------------------


#: Blocks whose content is in the request.
_TEXTS = frozenset(
    ["text", "json", "toolUse", "toolResult", "guardContent", "cachePoint", "reasoningContent", "citationsContent", "searchResult"]
)


def _look(media: Media, value: Any, in_content: bool = False) -> None:
    """Find what is not text, below a list of messages or blocks."""
    if isinstance(value, list):
        for child in value:
            _look(media, child, in_content)
    elif isinstance(value, dict):
        for kind, child in value.items():
            if kind == "image" and isinstance(child, dict):
                _add_image(media, child.get("source"))
            elif kind in ("document", "video", "audio") and isinstance(child, dict):
                media.add("file" if kind == "document" else "audio", None, why=f"a block of type {kind!r}")
            elif in_content and kind not in _TEXTS:
                known.add_unknown(media, [kind])
            elif kind not in ("json", "input") and isinstance(child, dict | list):
                _look(media, child, kind == "content")


def _add_image(media: Media, source: Any) -> None:
    data = text_or_none(source.get("bytes")) if isinstance(source, dict) else None
    if data is None:
        media.add("image", None, why="an image that is not in the request")
    else:
        media.add_image(data, inline=True)


def _costs_beside(guardrail: Any, latency: Any) -> str | None:
    """Why a wish for one of these leaves a call without a bound."""
    if guardrail:
        return "a guardrail is billed by the text that it reads"
    return None if latency in (None, "standard") else "optimised latency has a price that no table states"


def heed(facts: Facts, wishes: Mapping[str, str]) -> None:
    """Take what the headers of a request ask for. `converse` has the same in its body."""
    beside = _costs_beside(wishes.get("x-amzn-bedrock-guardrailidentifier"), wishes.get("x-amzn-bedrock-performanceconfig-latency"))
    facts.usual = False
    facts.unbounded = facts.unbounded or beside
    if facts.service_tier != "fast":  # Claude's own, dearer than all that a header names
        facts.service_tier = wishes.get(TIER) or facts.service_tier


def _unbounded(body: dict[str, Any]) -> str | None:
    config, performance = body.get("toolConfig"), body.get("performanceConfig")
    tools = config.get("tools") if isinstance(config, dict) else None
    if isinstance(tools, list) and any(isinstance(tool, dict) and "systemTool" in tool for tool in tools):
        return "a tool runs at the provider and is billed by what no request limits"
    return _costs_beside(body.get("guardrailConfig"), performance.get("latency") if isinstance(performance, dict) else None)


def _tier(body: dict[str, Any], own: Facts) -> str | None:
    tier = body.get("serviceTier")
    if own.service_tier == "fast" or not isinstance(tier, dict):
        return own.service_tier or "default"
    return text_or_none(tier.get("type"))


def read(body: dict[str, Any], _seller: str | None = None, path: str = "") -> Facts:
    model, more, config = model_in(path), body.get("additionalModelRequestFields"), body.get("inferenceConfig")
    media = looked_at(model, body.get("messages"))
    own = anthropic.read(more) if isinstance(more, dict) else Facts("")  # only Claude has fields by which more runs than is asked for here
    return Facts(
        model=model,
        stream=path.rstrip("/").endswith("-stream"),
        cap=caps.stated_in((config, more), "maxTokens", "max_tokens", "max_new_tokens"),
        window=media.window or own.window,
        unbounded=_unbounded(body) or own.unbounded or media.unbounded,
        service_tier=_tier(body, own),
        media=bool(media.kinds),
        audio="audio" in media.kinds,
        inline=media.inline,
        # Tools bring a system prompt of the provider's.
        extra_input=media.tokens + own.extra_input + (2048 if body.get("toolConfig") else 0),
        images=media.tokens,
        rounds=own.rounds,
        uses=own.uses,
        most_uses=own.most_uses,
    )


def _write_cap(body: dict[str, Any], cap: int, _host: str) -> None:
    config, more = body.get("inferenceConfig"), body.get("additionalModelRequestFields")
    body["inferenceConfig"] = written = dict(config) if isinstance(config, dict) else {}
    caps.write(written, cap, "maxTokens")
    if isinstance(more, dict):
        body["additionalModelRequestFields"] = more = dict(more)
        caps.lower(more, cap)


def _fold(answer: Answer, obj: dict[str, Any]) -> None:
    if "exception" in obj:
        answer.problem = f"the stream broke ({obj['exception']})"
        return
    stop, metadata = obj.get("messageStop"), obj.get("metadata")
    if "max_tokens" in (obj.get("stopReason"), stop.get("stopReason") if isinstance(stop, dict) else None):
        answer.truncated = True
    told = metadata if isinstance(metadata, dict) else obj
    tier, usage = told.get("serviceTier"), told.get("usage")
    if isinstance(tier, dict):
        answer.service_tier = text_or_none(tier.get("type"))
    if isinstance(usage, dict):
        answer.ended = metadata is not None
        answer.complete = fold_counts(answer, usage) and (answer.ended or not answer.streaming)


def _matters(data: bytes) -> bool:
    return b"metadata" in data or b"max_tokens" in data or b"xception" in data


def said(obj: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """The text of a whole answer or of one event."""
    delta = obj.get("contentBlockDelta")
    if isinstance(delta, dict):
        content = [delta.get("delta") or {}]
    else:
        content = ((obj.get("output") or {}).get("message") or {}).get("content") or []
    for part in content:
        if isinstance(part.get("text"), str):
            yield 0, part["text"]


FORMATS = (
    WireFormat(
        "converse",
        re.compile(r"/model/.+/converse(?:-stream)?$"),
        "aws.bedrock",
        lambda b: "messages" in b,
        read,
        _fold,
        _write_cap,
        said=said,
        matters=_matters,
    ),
)
