"""What a tool that runs at the provider costs for every use, beside the tokens it reads and writes.

Only fees that the provider states per use are here: what is billed by time or size (code containers, file storage, generated
images) has no bound by a number of uses. Sources, read in November 2026: https://developers.openai.com/api/docs/pricing
(“Built-in tools”), https://platform.claude.com/docs/en/about-claude/pricing (“Web search tool”),
https://github.com/microsoft/Foundry-Agent-Solution-Templates (enterprise-knowledge-agent/docs/cost.md) and
https://ai.google.dev/gemini-api/docs/pricing (“Grounding with Google Search”; its free allowance counts as paid).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from wflo_nb.pricing.names import canonical_provider
from wflo_nb.pricing.price import ModelPrice


class Fee(NamedTuple):
    """Nano-USD for one use: what is billed, and the most it may be."""

    bill: int
    most: int


#: 10 USD per thousand searches, at OpenAI and Anthropic.
_SEARCH = 10_000_000
#: OpenAI's preview of the search, with models that do not reason: 25 USD per thousand.
_PREVIEW = 25_000_000
#: Azure searches by Bing's grounding: 14 USD per thousand.
_BING = 14_000_000
_FILE_SEARCH = 2_500_000
#: Google: 35 USD per thousand grounded prompts, for later models 14 USD per thousand searches.
_GROUNDED, _GOOGLE_SEARCH = 35_000_000, 14_000_000
_REASONS = re.compile(r"(?:openai/)?(?:o\d|gpt-(?:[5-9]|\d\d))")

#: What some models are billed by instead of tokens (see `wflo_nb.pricing.units`).
_UNITS = frozenset({"page", "search", "image", "second", "character"})

#: Tools whose use costs nothing beside its tokens.
_TOKENS_ONLY = frozenset({"web_fetch", "mcp"})


def fee(tool: str, price: ModelPrice, model: str) -> Fee | None:
    """The fee for one use of a tool with a model, None if none is known.

    Args:
        price: the model's price; what its source says about searches bounds the fee.
        model: the model's id: for one tool the fee depends on it.
        tool: ``web_search``, ``web_search_preview``, ``file_search``, ``web_fetch``, ``mcp``, ``google_search`` (a grounded prompt),
            ``google_search_query``, or a unit of a model that is billed by units (``page``, …).
    """
    if tool in _TOKENS_ONLY:
        return Fee(0, 0)
    if tool == "file_search":
        return Fee(_FILE_SEARCH, _FILE_SEARCH)
    if tool in _UNITS:
        return Fee(price.unit_nano, price.unit_nano) if price.unit == tool else None
    if tool in ("google_search", "google_search_query"):
        each = _GROUNDED if tool == "google_search" else _GOOGLE_SEARCH
        return Fee(each, each)
    listed = price.search_nano or 0
    if tool in ("web_search", "web_search_preview") and canonical_provider(price.provider) == "azure":
        return Fee(_BING, max(_BING, listed))
    if tool == "web_search":
        return Fee(_SEARCH, max(_SEARCH, listed))
    if tool == "web_search_preview":
        return Fee(_SEARCH if _REASONS.match(model) else _PREVIEW, max(_PREVIEW, listed))
    return None
