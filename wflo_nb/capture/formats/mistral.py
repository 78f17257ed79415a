"""Mistral's document reading, billed by the page, and its agents, whose model and instructions are kept at the provider.

Definitions: https://docs.mistral.ai/api/#tag/ocr, https://docs.mistral.ai/api/#tag/agents. A request may name the pages to read; a document
has at most 1,000. The answer says how many were processed. Mistral's chat and embeddings are OpenAI's format; its fill-in-the-middle is in
`openai_completions`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from wflo_nb.capture.formats.base import Answer, Facts, WireFormat
from wflo_nb.capture.formats.openai import CHAT

#: The largest document that is taken, in pages.
_LARGEST = 1000
_RANGE = re.compile(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*$")


def _pages(body: dict[str, Any]) -> int:
    """The most pages that a request can cost."""
    document, asked = body.get("document"), body.get("pages")
    if isinstance(document, dict) and document.get("type") == "image_url":
        return 1
    if isinstance(asked, list) and asked:
        return min(len(asked), _LARGEST)
    if isinstance(asked, str):
        found = [_RANGE.match(piece) for piece in asked.split(",")]
        numbers = [(int(one[1]), int(one[2] or one[1])) for one in found if one]
        if len(numbers) == len(found):
            return min(sum(max(0, last - first) + 1 for first, last in numbers), _LARGEST)
    return _LARGEST


def _read(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    annotated = any(body.get(name) for name in ("bbox_annotation_format", "document_annotation_format"))
    return Facts(
        model=str(body.get("model") or ""),
        produces=False,
        uses=("page",),
        most_uses=_pages(body),
        unbounded="annotated pages have a price of their own, which the price table does not state" if annotated else None,
    )


def _fold(answer: Answer, obj: dict[str, Any]) -> None:
    if isinstance(obj.get("model"), str):
        answer.model = obj["model"]
    usage = obj.get("usage_info")
    pages = usage.get("pages_processed") if isinstance(usage, dict) else None
    if pages == 0:
        answer.problem = "the provider reported no page"
    elif pages is not None:
        answer.used("page", pages)
        answer.put(input_tokens=0)
        answer.lists_uses = answer.complete = True


def _no_cap(_body: dict[str, Any], _cap: int, _host: str) -> None:
    """Pages are read, not written."""


def _read_agent(body: dict[str, Any], seller: str | None = None, path: str = "") -> Facts:
    """The agent stands for its model, whose price can be declared under the agent's name."""
    facts = CHAT.read({**body, "model": body.get("agent_id")}, seller, path)
    facts.window = facts.window or "instructions of an agent, kept at the provider"
    return facts


FORMATS = (
    replace(
        CHAT,
        api="agents",
        path="/agents/completions",
        provider="mistral_ai",
        recognises=lambda b: "agent_id" in b and "messages" in b,
        read=_read_agent,
        ask_usage=lambda _body, _seller=None: False,
        texts=None,
    ),
    WireFormat("ocr", "/v1/ocr", "mistral_ai", lambda b: "model" in b and "document" in b, _read, _fold, _no_cap),
)
