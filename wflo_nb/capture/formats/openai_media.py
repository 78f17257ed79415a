"""Images and sound at OpenAI's interfaces, also spoken by xAI, Groq and Mistral.

Definitions: https://platform.openai.com/docs/api-reference/images, …/audio. Images of gpt-image models are billed by tokens, which the
answer tells; those of other models each; speech by the characters of its text, or by tokens that nobody tells; transcriptions by seconds
or tokens of a recording whose length no request states.
"""

from __future__ import annotations

import math
import re
from typing import Any

from wflo_nb.capture.formats.base import Answer, Facts, WireFormat, from_json, largest

#: The most tokens of one image at the dearest quality and size (6,208 and 6,240 by the guide), and of each partial image.
_IMAGE_TOKENS = 6250
_PARTIAL = 100
_BY_TOKENS = re.compile(r"(?:openai/)?(?:gpt-image-|chatgpt-image-)")
#: Models whose images have that limit; later ones draw larger ones.
_LIMITED = re.compile(r"(?:openai/)?gpt-image-1(?:-mini|\.5)?(?:-20\d\d-\d\d-\d\d)?$")
_LENGTH = "the length of a recording is not stated in a request, and a transcription is billed by it"


def _no_cap(_body: dict[str, Any], _cap: int, _host: str) -> None:
    """The number and the kind of what is made are the request's own."""


# -- images ------------------------------------------------------------------------------------------------------------------


def _read_images(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    model = str(body.get("model") or "dall-e-2")
    count = body.get("n")
    number = largest(body, "n") or 1
    why = (
        None if count is None or (isinstance(count, int) and not isinstance(count, bool)) else "the number of images is not a whole number"
    )
    if not _BY_TOKENS.match(model):
        return Facts(model=model, produces=False, uses=("image",), most_uses=number, unbounded=why)
    if not _LIMITED.match(model):
        why = why or f"the tokens of an image of {model} are not limited by its request"
    partial = largest(body, "partial_images") or 0
    stream = body.get("stream") is True
    return Facts(model=model, stream=stream, cap=_IMAGE_TOKENS + _PARTIAL * partial, choices=number, unbounded=why)


def _fold_images(answer: Answer, obj: dict[str, Any]) -> None:
    usage, data = obj.get("usage"), obj.get("data")
    if isinstance(usage, dict):
        if isinstance(usage.get("cost_in_usd_ticks"), int):  # xAI's own figure: ten thousand millionths of a dollar
            answer.claimed(str(usage["cost_in_usd_ticks"] / 10**10))
        details = usage.get("input_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        answer.put(input_tokens=usage.get("input_tokens"), output_tokens=usage.get("output_tokens"), cache_read_tokens=cached)
        whole = not answer.streaming or str(obj.get("type")).endswith(".completed")
        answer.complete = whole and "input_tokens" in answer.counts and "output_tokens" in answer.counts
    if isinstance(data, list) and not answer.paid:
        if not data:
            answer.problem = "the provider sent no image"
        answer.used("image", len(data))
        answer.lists_uses = True
        answer.put(input_tokens=0, output_tokens=0)
        answer.complete = True


_EDITED = (
    "the images that are worked on are billed at a rate of their own, which the price table does not state; make them from words alone, or "
    "outside the budget"
)


def _read_edits(body: dict[str, Any], seller: str | None = None, path: str = "") -> Facts:
    told = {name: int(value) if isinstance(value, str) and value.isdecimal() else value for name, value in body.items()}
    facts = _read_images({**told, "stream": str(body.get("stream")).lower() == "true"}, seller, path)
    facts.unbounded = _EDITED if _BY_TOKENS.match(facts.model) else facts.unbounded
    facts.media = True
    return facts


def form_or_json(content: bytes) -> dict[str, Any] | None:
    """The fields of a request that SDKs write as a form where it has files, and as JSON where it has none."""
    return form(content) if content.startswith(b"--") else from_json(content)


# -- speech and transcriptions -------------------------------------------------------------------------------------------------


def _read_speech(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    model, text = str(body.get("model") or ""), body.get("input")
    by_tokens = "tts-1" not in model and "gpt-" in model
    why = f"{model} is billed by the length of its speech, which no request limits" if by_tokens else None
    characters = len(text) if isinstance(text, str) else 0
    return Facts(model=model, produces=False, uses=("character",), most_uses=max(1, characters), unbounded=why)


def _count_characters(answer: Answer, facts: Facts) -> None:
    """The answer is sound; what it costs is in the request."""
    if answer.paid or facts.unbounded:
        return
    answer.put(input_tokens=0, output_tokens=0)
    answer.used("character", facts.most_uses)
    answer.lists_uses = answer.complete = True


def _read_transcription(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    model = str(body.get("model") or "")
    uses = () if "gpt-" in model else ("second",)
    return Facts(model=model, stream=body.get("stream") == "true", uses=uses, most_uses=1, unbounded=_LENGTH, media=True)


def _fold_transcription(answer: Answer, obj: dict[str, Any]) -> None:
    usage = obj.get("usage")
    if not isinstance(usage, dict):
        return
    seconds = usage.get("seconds", usage.get("prompt_audio_seconds"))
    if answer.paid:
        into, out = usage.get("input_tokens", usage.get("prompt_tokens")), usage.get("output_tokens", usage.get("completion_tokens"))
        answer.put(input_tokens=into, output_tokens=out)
        answer.complete = "input_tokens" in answer.counts and "output_tokens" in answer.counts
    elif isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < 10**9:
        answer.put(input_tokens=0, output_tokens=0)
        answer.used("second", math.ceil(seconds))
        answer.lists_uses = answer.complete = True


_FIELD = re.compile(rb'content-disposition:[^\r\n]*?\bname="([^"]*)"([^\r\n]*)', re.IGNORECASE)


def form(content: bytes) -> dict[str, Any] | None:
    """The text fields of a multipart form; files are None. None if it is no form."""
    boundary, line, _ = content.partition(b"\r\n")
    if not boundary.startswith(b"--") or not line:
        return None
    fields: dict[str, Any] = {}
    for part in content.split(boundary)[1:]:
        head, found, value = part.partition(b"\r\n\r\n")
        named = _FIELD.search(head) if found else None
        if named is not None:
            is_file = b"filename" in named[2]
            fields[named[1].decode("utf-8", "replace")] = None if is_file else value.removesuffix(b"\r\n").decode("utf-8", "replace")
    return fields


_TOKENS_OF_SOUND = (b"usage", b"transcript.text.done")

FORMATS = (
    WireFormat(
        "images",
        "/images/generations",
        "openai",
        lambda b: "prompt" in b,
        _read_images,
        _fold_images,
        _no_cap,
        matters=lambda data: b'"usage"' in data,
    ),
    WireFormat(
        "image_edits",
        re.compile(r"/images/(?:edits|variations)$"),
        "openai",
        lambda b: "model" in b and ("image" in b or "image[]" in b or "images" in b),
        _read_edits,
        _fold_images,
        _no_cap,
        parse=form_or_json,
        matters=lambda data: b'"usage"' in data,
    ),
    WireFormat(
        "speech",
        "/audio/speech",
        "openai",
        lambda b: "model" in b and "input" in b,
        _read_speech,
        lambda _answer, _obj: None,
        _no_cap,
        by_request=_count_characters,
    ),
    WireFormat(
        "transcriptions",
        re.compile(r"/audio/(?:transcriptions|translations)$"),
        "openai",
        lambda b: "model" in b,
        _read_transcription,
        _fold_transcription,
        _no_cap,
        parse=form,
        matters=lambda data: any(word in data for word in _TOKENS_OF_SOUND),
    ),
)
