"""Models of other makers at Vertex AI: the maker's own body at ``…/publishers/MAKER/models/MODEL:rawPredict`` and ``:streamRawPredict``.

Definition: https://cloud.google.com/vertex-ai/generative-ai/docs/partner-models/claude/use-claude. The model is in the path
(``claude-sonnet-4-5@20250929``) and missing in the body.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from wflo_nb.capture.formats import anthropic, openai
from wflo_nb.capture.formats.base import Facts, WireFormat
from wflo_nb.capture.formats.gemini import model_in


def _read_anthropic(body: dict[str, Any], seller: str | None = None, path: str = "") -> Facts:
    model = model_in(path)
    facts = anthropic.read({**body, "model": model}, seller, path)
    facts.stream = facts.stream or ":stream" in path
    return facts


def _read_mistral(body: dict[str, Any], seller: str | None = None, path: str = "") -> Facts:
    facts = openai.CHAT.read({**body, "model": model_in(path) or body.get("model")}, seller, path)
    facts.stream = facts.stream or ":stream" in path
    return facts


def _at(maker: str) -> re.Pattern[str]:
    """The paths of a maker's models; ``count-tokens`` stands where a model does, and is none."""
    return re.compile(rf"/publishers/{maker}/models/(?!count-tokens:)[^/]+:(?:stream)?[rR]awPredict$")


FORMATS = (
    WireFormat(
        "messages",
        _at("anthropic"),
        "gcp.vertex_ai",
        lambda b: "messages" in b,
        _read_anthropic,
        anthropic.fold,
        anthropic.write_cap,
        said=anthropic.said,
    ),
    replace(openai.CHAT, path=_at("mistralai"), provider="gcp.vertex_ai", read=_read_mistral, ask_usage=lambda _body, _seller=None: False),
)
