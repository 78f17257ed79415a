"""Google's Gemini: generateContent, streamGenerateContent and embeddings, at the Gemini API and at Vertex AI.

Definitions: https://ai.google.dev/api/generate-content, https://ai.google.dev/api/embeddings,
https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference. The model is in the path, and so is the wish for a
stream, which comes as server-sent events (`alt=sse`) or as one growing JSON array. `promptTokenCount` includes `cachedContentTokenCount`;
`candidatesTokenCount` does not include `thoughtsTokenCount`, which is billed as output. Usage stands in every event and grows.
Every candidate ends with a `finishReason`, a refused prompt with a `blockReason`. Bodies are accepted in camelCase and in snake_case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from wflo_nb.capture.formats import caps, known
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat, largest, text_or_none
from wflo_nb.capture.media import Media

#: Where a path names the model: ``/v1beta/models/M:generateContent``, ``/v1/projects/…/publishers/google/models/M:…``, tuned models.
_MODEL = re.compile(r"/(?:models|tunedModels|endpoints)/([^/:]+(?:@[^/:]+)?):[A-Za-z]+$")
_GROUNDED = frozenset({"googleSearch", "googleSearchRetrieval"})
#: Models that pay once for a grounded prompt, however often they search; later ones pay for every search.
_PAYS_ONCE = re.compile(r"(?:models/)?gemini-(?:1|2)\.")


def model_in(path: str) -> str:
    """The model that a path names, the empty text if there is none."""
    found = _MODEL.search(unquote(path).rstrip("/"))
    return found[1] if found else ""


def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", lambda found: "_" + found[1].lower(), name)


def _get(holder: Any, name: str) -> Any:
    """A field in either spelling."""
    if not isinstance(holder, dict):
        return None
    value = holder.get(name)
    return holder.get(_snake(name)) if value is None else value


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)


# -- requests ----------------------------------------------------------------------------------------------------------------


#: What a part may be without naming anything that is not in the request, and what may stand beside that.
_TEXTS = frozenset(
    [
        "text",
        "thought",
        "thoughtSignature",
        "functionCall",
        "functionResponse",
        "executableCode",
        "codeExecutionResult",
        "videoMetadata",
        "mediaResolution",
        "partMetadata",
    ]
)


#: Values of the client's functions, of any shape: they are read as they stand.
_OF_THE_CLIENT = frozenset({"args", "response"})


def _look(media: Media, value: Any, in_parts: bool = False) -> None:
    """Find what is not text, below a list of contents or parts."""
    if isinstance(value, list):
        for child in value:
            _look(media, child, in_parts)
    elif isinstance(value, dict) and not _take(media, value):
        if in_parts and (foreign := [name for name in value if _camel(name) not in _TEXTS]):
            known.add_unknown(media, foreign)
        for name, child in value.items():
            if isinstance(child, dict | list) and name not in _OF_THE_CLIENT:
                _look(media, child, name == "parts")


def _take(media: Media, part: dict[str, Any]) -> bool:
    inline, given = _get(part, "inlineData"), _get(part, "fileData")
    holder = inline if isinstance(inline, dict) else given if isinstance(given, dict) else None
    if holder is None:
        return False
    kind = str(_get(holder, "mimeType") or "")
    data = text_or_none(holder.get("data")) if isinstance(inline, dict) else None
    if kind.startswith("image/") and data is not None:
        media.add_image(data, inline=True)
    elif kind.startswith("image/"):
        media.add("image", None, why="an image that is not in the request")
    else:
        audible = kind.startswith(("audio/", "video/")) or not kind or "youtu" in str(_get(holder, "fileUri") or "")
        media.add("audio" if audible else "file", None, data, why=f"a part of type {kind or 'unknown'}")
    return True


def _tools(body: dict[str, Any], model: str) -> tuple[tuple[str, ...], str | None]:
    """Tools that run at the provider: those billed per use, and why nothing bounds them."""
    tools = _get(body, "tools")
    if not isinstance(tools, list):
        return (), None if tools is None else "its tools are no list"
    kinds = {_camel(name) for tool in tools if isinstance(tool, dict) for name, value in tool.items() if value is not None}
    kinds -= {"functionDeclarations"}
    if not kinds:
        return (), None
    foreign = sorted(kinds - _GROUNDED)
    if foreign:
        return (), f"the tool {', '.join(foreign)} runs at the provider and is billed by what no request limits"
    if not _PAYS_ONCE.match(model):
        return ("google_search_query",), f"{model} pays for every search, and a request cannot state how many"
    return ("google_search",), None


def _unbounded(config: Any) -> str | None:
    count = _get(config, "candidateCount")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        return "the number of answers is not a whole number"
    modalities = _get(config, "responseModalities")
    if isinstance(modalities, list) and any(str(one).upper() == "AUDIO" for one in modalities):
        return "speech has no output that a cap in tokens surely limits"
    return None


def _read(body: dict[str, Any], seller: str | None = None, path: str = "") -> Facts:
    model = model_in(path) or str(body.get("model") or "").rpartition("/")[2]
    config = _get(body, "generationConfig")
    media = Media.at(seller, model)
    _look(media, _get(body, "contents"))
    _look(media, _get(body, "systemInstruction"))
    uses, why = _tools(body, model)
    window, kept = media.window, bool(_get(body, "cachedContent"))
    if kept:
        window = "context kept at the provider (cachedContent)"
    elif uses:
        window = "the results of a search"
    return Facts(
        model=model,
        stream="stream" in path.rpartition(":")[2],
        cap=caps.stated(config, *_CAPS) if isinstance(config, dict) else None,
        choices=(largest(config, "candidateCount", "candidate_count") if isinstance(config, dict) else None) or 1,
        window=window,
        unbounded=why or _unbounded(config) or media.unbounded,
        service_tier=text_or_none(_get(body, "serviceTier")),
        media=kept or "audio" in media.kinds,  # images are read at the rate of text; what is kept may be audio
        audio="audio" in media.kinds,
        inline=media.inline,
        extra_input=media.tokens,
        images=media.tokens,
        uses=uses,
        most_uses=len(uses),
    )


_CAPS = ("maxOutputTokens", "max_output_tokens")


def _write_cap(body: dict[str, Any], cap: int, _host: str) -> None:
    written: dict[str, Any] = {}
    for name in ("generation_config", "generationConfig"):
        config = body.pop(name, None)
        if isinstance(config, dict):
            written |= config
    caps.write(written, cap, "maxOutputTokens", *_CAPS)
    body["generationConfig"] = written


# -- answers -----------------------------------------------------------------------------------------------------------------


def _fold(answer: Answer, obj: dict[str, Any]) -> None:
    if isinstance(obj.get("modelVersion"), str):
        answer.model = obj["modelVersion"].rpartition("/")[2]
    if "error" in obj:
        answer.problem = "the provider reported an error in its answer"
        return
    candidates, feedback, usage = obj.get("candidates"), obj.get("promptFeedback"), obj.get("usageMetadata")
    for candidate in candidates if isinstance(candidates, list) else ():
        if not isinstance(candidate, dict):
            continue
        if candidate.get("finishReason") == "MAX_TOKENS":
            answer.truncated = True
        if candidate.get("finishReason"):
            answer.finished.add(candidate.get("index") or 0)
        _count_searches(answer, candidate.get("groundingMetadata"))
        answer.stale = answer.stale or not isinstance(usage, dict)
    if isinstance(usage, dict) and _fold_usage(answer, usage):
        answer.lists_uses = True
        answer.stale = False
        answer.complete = not answer.streaming
    refused = isinstance(feedback, dict) and bool(feedback.get("blockReason"))
    answer.closing = answer.closing or refused or len(answer.finished) >= answer.choices


def _count_searches(answer: Answer, grounding: Any) -> None:
    if isinstance(grounding, dict) and (queries := grounding.get("webSearchQueries")):
        answer.used("google_search", 1)
        answer.used("google_search_query", len(queries) if isinstance(queries, list) else 1)


def _count(answer: Answer, usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        answer.problem = f"the provider reported {name}={value!r}"
        return None
    return value


def _fold_usage(answer: Answer, usage: dict[str, Any]) -> bool:
    if usage.get("promptTokenCount") is None:
        answer.problem = "usage without promptTokenCount"
        return False
    names = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount", "totalTokenCount")
    counts = [_count(answer, usage, name) for name in names]
    if any(one is None for one in counts):
        return False
    prompt, said, thought, by_tools, total = (one or 0 for one in counts)
    if usage.get("totalTokenCount") is not None and total < prompt + said + thought:
        answer.problem = f"the provider reported {total} tokens in total, and {prompt} read and {said + thought} written"
        return False
    tier = usage.get("serviceTier") or usage.get("trafficType")
    if isinstance(tier, str):
        answer.service_tier = _TIERS.get(tier.upper())
    answer.plain = _is_plain(usage, prompt + by_tools)
    return answer.put(
        input_tokens=prompt + by_tools,
        # What stands in the total alone was written, too.
        output_tokens=max(said + thought, total - prompt - by_tools),
        cache_read_tokens=usage.get("cachedContentTokenCount"),
        reasoning_tokens=thought,
    )


#: Kinds of input at the rate of text.
_LIKE_TEXT = frozenset({"TEXT", "IMAGE", "DOCUMENT"})


def _is_plain(usage: dict[str, Any], read: int) -> bool:
    """Whether the details of the input account for all of it, cached parts included, and name nothing dearer than text."""
    told, cached = usage.get("promptTokensDetails"), usage.get("cacheTokensDetails")
    if not isinstance(told, list) or not isinstance(cached, list | None):
        return False
    if not all(isinstance(one, dict) and str(one.get("modality")) in _LIKE_TEXT for one in (*told, *(cached or ()))):
        return False
    counts = [one.get("tokenCount") for one in told]
    return all(type(count) is int and count >= 0 for count in counts) and sum(counts) >= read


#: Tiers as answers write them → as prices name them; all others are ordinary.
_TIERS = {"FLEX": "flex", "PRIORITY": "priority", "ON_DEMAND_FLEX": "flex", "ON_DEMAND_PRIORITY": "priority", "BATCH": "batch"}


def _matters(data: bytes) -> bool:
    return b"usageMetadata" in data or b"finishReason" in data or b"webSearchQueries" in data or b"blockReason" in data


def _said(obj: dict[str, Any]) -> Iterator[tuple[int, str]]:
    for candidate in obj.get("candidates") or ():
        for part in (candidate.get("content") or {}).get("parts") or ():
            if isinstance(part.get("text"), str) and not part.get("thought"):
                yield int(candidate.get("index") or 0), part["text"]


# -- embeddings --------------------------------------------------------------------------------------------------------------


def _read_embedding(body: dict[str, Any], seller: str | None = None, path: str = "") -> Facts:
    model = model_in(path)
    media = Media.at(seller, model)
    for value in (body.get("content"), body.get("requests"), body.get("instances")):
        _look(media, value)
    foreign = isinstance(body.get("instances"), list) and any(
        isinstance(one, dict) and ({"image", "video", "audio"} & one.keys()) for one in body["instances"]
    )
    why = "an input that is not text has no bound that the request shows" if foreign or media.kinds else None
    return Facts(model=model, produces=False, unbounded=why)


def _fold_embedding(answer: Answer, obj: dict[str, Any]) -> None:
    usage = obj.get("usageMetadata")
    if isinstance(usage, dict):
        answer.put(input_tokens=usage.get("promptTokenCount"))
        answer.put(input_tokens=usage.get("totalTokenCount"))
    predictions = obj.get("predictions")
    if isinstance(predictions, list):  # Vertex tells the tokens of each text
        counts = [one["embeddings"]["statistics"]["token_count"] for one in predictions]
        if all(isinstance(one, int | float) and not isinstance(one, bool) and one >= 0 for one in counts):
            answer.put(input_tokens=sum(-int(-one // 1) for one in counts))
        else:
            answer.problem = f"the provider reported token_count={counts!r:.80}"
    answer.complete = "input_tokens" in answer.counts


def _no_cap(_body: dict[str, Any], _cap: int, _host: str) -> None:
    """Nothing is generated, so there is nothing to cap."""


FORMATS = (
    WireFormat(
        "generateContent",
        re.compile(r":(?:streamGenerateContent|generateContent)$"),
        "gcp.gemini",
        lambda b: "contents" in b,
        _read,
        _fold,
        _write_cap,
        said=_said,
        matters=_matters,
        grows=True,
    ),
    WireFormat(
        "embedContent",
        re.compile(r":(?:embedContent|batchEmbedContents)$"),
        "gcp.gemini",
        lambda b: "content" in b or "requests" in b,
        _read_embedding,
        _fold_embedding,
        _no_cap,
    ),
    WireFormat(
        "predict",
        re.compile(r"/models/[^/]*embedding[^/]*:predict$"),
        "gcp.vertex_ai",
        lambda b: isinstance(b.get("instances"), list),
        _read_embedding,
        _fold_embedding,
        _no_cap,
    ),
)
