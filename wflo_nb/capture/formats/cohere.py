"""Cohere: chat (v2, and v1), embed and rerank.

Definitions: https://docs.cohere.com/reference/chat, …/embed, …/rerank. What is billed stands in `billed_units` and is less than the tokens
that were read. A stream ends with `message-end`, which has the usage. A search unit of rerank is one query over up to 100 documents,
where each piece of 500 tokens, the query included, counts as one (https://cohere.com/pricing).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from wflo_nb.capture.formats import caps, known
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat, largest, parts

#: Tokens of a document, with the query, that are one document of a search unit; what a long query surely leaves of them.
_PIECE, _LEAST_PIECE = 500, 50
_DOCUMENTS = 100


#: Parts of messages, and what stands in the sources and calls of earlier answers.
_TEXTS = frozenset({"text", "thinking", "document", "tool", "function", "TEXT_CONTENT", "PLAN", "THINKING_CONTENT"})


def _read(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    window = unbounded = None
    for part in parts(body.get("messages")):
        if "image_url" in part:
            window = "an image, for which the provider documents no bound that surely holds"
        elif isinstance(kind := part.get("type"), str) and kind not in _TEXTS:
            window = window or f"a content part of type {kind!r}"
    if known.fetches(body):
        unbounded = "connectors search at the provider, billed per use"
    elif body.get("conversation_id"):
        window = "context kept at the provider (conversation_id)"
    thinking = body.get("thinking")
    return Facts(
        model=str(body.get("model") or ""),
        stream=body.get("stream") is True,
        cap=caps.stated(body, "max_tokens"),
        window=window,
        unbounded=unbounded,
        media=window is not None,
        extra_output=(largest(thinking, "token_budget") or 0) if isinstance(thinking, dict) else 0,
    )


def _write_cap(body: dict[str, Any], cap: int, _host: str) -> None:
    caps.write(body, cap, "max_tokens")


def _billed(obj: dict[str, Any]) -> dict[str, Any] | None:
    """The billed units, wherever this interface has them."""
    delta, response = obj.get("delta"), obj.get("response")
    for holder in (obj, delta if isinstance(delta, dict) else {}, response if isinstance(response, dict) else {}):
        for name in ("usage", "meta"):
            usage = holder.get(name)
            units = usage.get("billed_units") if isinstance(usage, dict) else None
            if isinstance(units, dict):
                return units
    return None


def _whole(value: Any) -> Any:
    """A count that may be written as 5.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fold(answer: Answer, obj: dict[str, Any]) -> None:
    delta = obj.get("delta")
    if "MAX_TOKENS" in (obj.get("finish_reason"), delta.get("finish_reason") if isinstance(delta, dict) else None):
        answer.truncated = True
    answer.ended = obj.get("type") == "message-end" or obj.get("event_type") == "stream-end"
    units = _billed(obj)
    if units is not None and (answer.ended or not answer.streaming):
        answer.put(input_tokens=_whole(units.get("input_tokens")), output_tokens=_whole(units.get("output_tokens")))
        answer.complete = "input_tokens" in answer.counts and "output_tokens" in answer.counts


def _read_embedding(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    pictures = body.get("images") or any("image_url" in part for part in parts(body.get("inputs")))
    why = "an input that is not text has no bound that the request shows" if pictures else None
    return Facts(model=str(body.get("model") or ""), produces=False, unbounded=why)


def _fold_embedding(answer: Answer, obj: dict[str, Any]) -> None:
    units = _billed(obj)
    if units is not None:
        answer.put(input_tokens=_whole(units.get("input_tokens")))
        answer.put(input_tokens=_whole(units.get("image_tokens")))
        answer.complete = "input_tokens" in answer.counts


def _read_rerank(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    query, documents = body.get("query"), body.get("documents")
    piece = max(_LEAST_PIECE, _PIECE - _size(query))
    pieces = sum(1 + _size(one) // piece for one in documents) if isinstance(documents, list) else 1
    return Facts(model=str(body.get("model") or ""), produces=False, uses=("search",), most_uses=max(1, -(-pieces // _DOCUMENTS)))


def _size(value: Any) -> int:
    return len(str(value).encode("utf-8", "surrogatepass"))


def _fold_rerank(answer: Answer, obj: dict[str, Any]) -> None:
    units = _billed(obj)
    searches = _whole(units.get("search_units")) if units is not None else None
    if searches == 0:
        answer.problem = "the provider reported no search"
    elif searches is not None:
        answer.used("search", searches)
        answer.put(input_tokens=0)
        answer.lists_uses = answer.complete = True


def _no_cap(_body: dict[str, Any], _cap: int, _host: str) -> None:
    """Nothing is generated, so there is nothing to cap."""


def _said(obj: dict[str, Any]) -> Iterator[tuple[int, str]]:
    kind = obj.get("type")
    if kind == "content-delta":
        text = obj["delta"]["message"]["content"].get("text")
        if isinstance(text, str):
            yield 0, text
    elif kind is None and isinstance(obj.get("message"), dict):
        for part in obj["message"].get("content") or ():
            if isinstance(part.get("text"), str):
                yield 0, part["text"]
    elif isinstance(obj.get("text"), str):
        yield 0, obj["text"]


def _matters(data: bytes) -> bool:
    return b"billed_units" in data or b"message-end" in data or b"stream-end" in data


FORMATS = (
    WireFormat(
        "cohere_chat",
        re.compile(r"/v[12]/chat$"),
        "cohere",
        lambda b: "model" in b and ("messages" in b or "message" in b),
        _read,
        _fold,
        _write_cap,
        said=_said,
        matters=_matters,
    ),
    WireFormat(
        "cohere_embed",
        re.compile(r"/v[12]/embed$"),
        "cohere",
        lambda b: "model" in b and any(name in b for name in ("texts", "images", "inputs")),
        _read_embedding,
        _fold_embedding,
        _no_cap,
    ),
    WireFormat(
        "rerank",
        re.compile(r"/v[12]/rerank$"),
        "cohere",
        lambda b: "model" in b and "query" in b and "documents" in b,
        _read_rerank,
        _fold_rerank,
        _no_cap,
    ),
)
