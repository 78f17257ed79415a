"""Amazon Bedrock's invoke and invoke-with-response-stream: each maker's own body.

Definitions: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html,
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html. Whoever made the model, the counts also stand in headers of a
whole answer, and in the metrics that come with the last event of a stream. A body in none of the forms below is not read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from wflo_nb.capture.formats import anthropic, bedrock, caps, cohere, openai
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat
from wflo_nb.capture.formats.bedrock import fold_counts, model_in


class _Maker(NamedTuple):
    """How one maker's bodies look.

    Attributes:
        body: whether a body is in this form.
        cap: where the output cap is: a field, or two, the second inside the first.
        writes: whether anything is generated.
        usual: the length that an answer has at most if the request states no cap, None if the model decides.
    """

    body: Callable[[dict[str, Any]], bool]
    cap: tuple[str, ...] = ()
    writes: bool = True
    usual: int | None = None


#: By the form of the body, the most telling first: a profile's ARN need not name the maker.
_MAKERS: dict[str, _Maker] = {
    "anthropic": _Maker(lambda b: "anthropic_version" in b, ("max_tokens",)),
    "nova": _Maker(lambda b: "messages" in b and ("inferenceConfig" in b or "schemaVersion" in b), ("inferenceConfig", "maxTokens")),
    "titan": _Maker(lambda b: "inputText" in b and "textGenerationConfig" in b, ("textGenerationConfig", "maxTokenCount"), usual=512),
    "titan-embed": _Maker(lambda b: "inputText" in b and "inputImage" not in b, writes=False),
    "nova-embed": _Maker(lambda b: "singleEmbeddingParams" in b or "segmentedEmbeddingParams" in b, writes=False),
    "cohere-embed": _Maker(lambda b: "texts" in b and "input_type" in b, writes=False),
    "llama": _Maker(lambda b: "prompt" in b and "max_gen_len" in b, ("max_gen_len",), usual=512),
    "chat": _Maker(lambda b: "messages" in b, ("max_tokens",)),
    "cohere": _Maker(lambda b: "message" in b, ("max_tokens",)),
    "text": _Maker(lambda b: "prompt" in b, ("max_tokens",)),
}


#: What there may be in an embedding of Nova beside the text.
_EMBEDS_TEXT = frozenset({"embeddingPurpose", "embeddingDimension", "text"})


def _maker(fixed: str | None, body: dict[str, Any]) -> str | None:
    return fixed or next((name for name, maker in _MAKERS.items() if maker.body(body)), None)


def _read(fixed: str | None, body: dict[str, Any], seller: str | None = None, path: str = "") -> Facts:
    model, maker = model_in(path), _maker(fixed, body)
    if maker == "anthropic":
        claude = bedrock.claude_in(model)
        facts = anthropic.read({**body, "model": claude or model}, "anthropic" if claude else seller, path)
        facts.model, facts.service_tier = model, "fast" if facts.service_tier == "fast" else "default"
    elif maker == "chat":
        facts = openai.CHAT.read({**body, "model": model}, seller, path)
    elif maker == "nova":
        facts = bedrock.read(body, seller, path)
        facts.cap = _cap(body, maker)
    else:
        facts = Facts(model=model, cap=_cap(body, maker), service_tier="default")
        facts.produces = maker is None or _MAKERS[maker].writes
        if body.get("num_generations") not in (None, 1):
            facts.unbounded = "how many answers it asks for has a meaning of its maker's own"
        if maker == "nova-embed" and not _shows_its_text(body):
            facts.unbounded = "images, audio, video and texts from elsewhere are embedded by units that the request does not show"
    facts.stream = path.rstrip("/").endswith("-stream")
    return facts


def _shows_its_text(body: dict[str, Any]) -> bool:
    """Whether an embedding of Nova is of a text in the request and nothing else."""
    asked = body.get("singleEmbeddingParams")
    if not isinstance(asked, dict) or not _EMBEDS_TEXT.issuperset(asked):
        return False
    text = asked.get("text")
    return isinstance(text, dict) and isinstance(text.get("value"), str) and "source" not in text


def _cap(body: dict[str, Any], maker: str | None) -> int | None:
    where = _MAKERS[maker].cap if maker else ()
    if maker is None or not where:
        return None
    holder: Any = body
    for name in where[:-1]:
        holder = holder.get(name, {})
    if not isinstance(holder, dict):
        return None
    usual = _MAKERS[maker].usual
    if usual is not None:
        holder = {where[-1]: usual, **holder}
    return caps.stated(holder, where[-1], *(["max_new_tokens"] if maker == "nova" else []))


def _write_cap(fixed: str | None, body: dict[str, Any], cap: int, host: str) -> None:
    maker = _maker(fixed, body)
    if maker == "chat":
        openai.CHAT.write_cap(body, cap, host)
        return
    where = _MAKERS[maker].cap if maker else ("max_tokens",)
    for name in where[:-1]:
        inner = body.get(name)
        body[name] = body = dict(inner) if isinstance(inner, dict) else {}
    caps.write(body, cap, where[-1], "max_new_tokens")


def _fold(answer: Answer, obj: dict[str, Any]) -> None:
    if "exception" in obj:
        answer.problem = f"the stream broke ({obj['exception']})"
        return
    kind = obj.get("type")
    if isinstance(kind, str) and (kind.startswith(("message", "content_block")) or kind == "ping"):
        tier = answer.service_tier
        anthropic.fold(answer, obj)
        answer.model = None  # Anthropic's own name of it, which Bedrock's prices do not know
        if tier in _TIERS and answer.service_tier != "fast":  # Bedrock's word in the header, not Claude's of a tier at Anthropic
            answer.service_tier = tier
        return
    metrics = obj.get("amazon-bedrock-invocationMetrics")
    if isinstance(metrics, dict):
        answer.complete = fold_counts(answer, metrics)
        answer.ended = True
        return
    _fold_maker(answer, obj)


def _fold_maker(answer: Answer, obj: dict[str, Any]) -> None:
    usage, metadata = obj.get("usage"), obj.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("usage"), dict):
        usage = metadata["usage"]
    if "max_tokens" in (obj.get("stopReason"), obj.get("stop_reason")) or obj.get("stop_reason") == "length":
        answer.truncated = True
    if "embeddings" in obj:  # nothing is written; what was read stands in a header
        answer.put(output_tokens=0)
        answer.complete = "input_tokens" in answer.counts
        return
    found: tuple[Any, Any] = (None, None)
    if isinstance(usage, dict) and "prompt_tokens" in usage:
        openai.CHAT.fold(answer, {"usage": usage, "choices": obj.get("choices")})
        return
    if isinstance(usage, dict) and "inputTokens" in usage:
        answer.complete = fold_counts(answer, usage) and not answer.streaming
        return
    if "prompt_token_count" in obj:
        found = obj["prompt_token_count"], obj.get("generation_token_count")
    elif "inputTextTokenCount" in obj:
        results = obj.get("results")
        counts = [one.get("tokenCount") for one in results] if isinstance(results, list) else [0] if "embedding" in obj else []
        written = sum(counts) if counts and all(isinstance(one, int) for one in counts) else obj.get("totalOutputTextTokenCount")
        found = obj["inputTextTokenCount"], written
    if found != (None, None):
        both = answer.put(input_tokens=found[0], output_tokens=found[1]) and None not in found
        answer.complete = answer.complete or (both and not answer.streaming)


#: Tiers of Bedrock that are not billed as the ordinary one.
_TIERS = frozenset({"priority", "flex", "reserved"})
#: Counts in the headers of a whole answer. What was cached is not in them: the body counts that.
_COUNTS = {
    "x-amzn-bedrock-input-token-count": "input_tokens",
    "x-amzn-bedrock-output-token-count": "output_tokens",
}


def _told(answer: Answer, name: str, value: str) -> None:
    """Take what stands in the headers of an answer."""
    if name == bedrock.TIER:
        answer.service_tier = value
    elif value.isascii() and value.isdigit():
        answer.put(**{_COUNTS[name]: int(value)})
        answer.complete = not answer.streaming and "input_tokens" in answer.counts and "output_tokens" in answer.counts


def _said(obj: dict[str, Any]) -> Iterator[tuple[int, str]]:
    if isinstance(obj.get("type"), str):
        yield from anthropic.said(obj)
    elif isinstance(obj.get("generation"), str):
        yield 0, obj["generation"]
    elif isinstance(obj.get("outputText"), str):
        yield 0, obj["outputText"]
    elif isinstance(obj.get("results") or obj.get("outputs"), list):
        for number, one in enumerate(obj.get("results") or obj["outputs"]):
            yield number, one.get("outputText") or one.get("text") or ""
    elif "choices" in obj and openai.CHAT.said is not None:
        yield from openai.CHAT.said(obj)
    else:
        yield from bedrock.said(obj)


# -- rerank ------------------------------------------------------------------------------------------------------------------

_RERANK = next(one for one in cohere.FORMATS if one.api == "rerank")


def _read_rerank(body: dict[str, Any], seller: str | None = None, path: str = "") -> Facts:
    return _RERANK.read({**body, "model": model_in(path)}, seller, path)


def _count_searches(answer: Answer, facts: Facts) -> None:
    """The answer says nothing of what is billed: the most that the request can come to."""
    answer.put(input_tokens=0, output_tokens=0)
    answer.used("search", facts.most_uses)
    answer.lists_uses = answer.complete = True


def _format(model: str, fixed: str | None) -> WireFormat:
    return WireFormat(
        "invoke",
        re.compile(rf"/model/.*{model}.*/invoke(?:-with-response-stream)?$"),
        "aws.bedrock",
        lambda b: _maker(fixed, b) is not None,
        functools.partial(_read, fixed),
        _fold,
        functools.partial(_write_cap, fixed),
        said=_said,
        matters=lambda _: True,
        headers=(bedrock.TIER, *_COUNTS),
        told=_told,
    )


FORMATS = (
    # Their bodies without a cap do not show whose they are.
    _format(r"meta\.llama", "llama"),
    _format(r"amazon\.nova-2-multimodal-embeddings", "nova-embed"),
    _format(r"amazon\.nova-(?:micro|lite|pro|premier|2)", "nova"),
    _format(r"amazon\.titan-text", "titan"),
    _format("", None),
    WireFormat(
        "rerank",
        re.compile(r"/model/.+/invoke$"),
        "aws.bedrock",
        lambda b: "query" in b and "documents" in b,
        _read_rerank,
        lambda _answer, _obj: None,
        _RERANK.write_cap,
        by_request=_count_searches,
    ),
)
