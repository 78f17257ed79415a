"""How many tokens a request can be read as, at most, and what it can cost.

A token of a byte-level tokenizer covers at least one byte, so the bytes of the request bound its tokens, framing included. One
trap: tokenizers that normalise (NFKC) can make text longer first ('ﷺ' is three bytes and eighteen letters), so the growth
under NFKC is added.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any, Literal

from wflo_nb.capture.formats.base import Answer, Facts
from wflo_nb.pricing.price import ModelPrice
from wflo_nb.pricing.uses import Fee, fee

#: Tokens that a chat template may add beyond what is in the body (start, end, role markers).
FRAMING = 64

#: How a bound of the input was found.
FoundBy = Literal["bytes", "image formula", "window", "tokenizer"]


def input_tokens(raw: bytes, body: dict[str, Any]) -> int:
    """An upper bound of the input tokens of a JSON request whose content is all in its body."""
    return len(raw) + FRAMING + (growth(body) if not raw.isascii() or b"\\u" in raw else 0)


def encoded(body: dict[str, Any]) -> bytes:
    """A JSON body as it is sent."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def growth(value: Any) -> int:
    """By how many bytes the texts in a JSON value grow under NFKC."""
    if isinstance(value, str):
        if value.isascii():
            return 0
        normal = unicodedata.normalize("NFKC", value)
        return max(0, len(normal.encode("utf-8", "surrogatepass")) - len(value.encode("utf-8", "surrogatepass")))
    if isinstance(value, dict):
        return sum(growth(k) + growth(v) for k, v in value.items())
    if isinstance(value, list):
        return sum(map(growth, value))
    return 0


# -- tools billed per use ----------------------------------------------------------------------------------------------------


def _fees(facts: Facts, price: ModelPrice) -> dict[str, Fee] | None:
    """The fee of each tool, None if one has none that is known."""
    found = {tool: fee(tool, price, facts.model) for tool in facts.uses}
    return {tool: one for tool, one in found.items() if one} if all(found.values()) else None


def uses_nano(facts: Facts, price: ModelPrice) -> int | None:
    """The most that the uses of tools cost, in nano-USD; None if a tool's fee is not known."""
    if not facts.uses:
        return 0
    fees = _fees(facts, price)
    return None if fees is None else facts.most_uses * max(one.most for one in fees.values())


def billed_uses(facts: Facts, answer: Answer, price: ModelPrice) -> int | None:
    """What the uses that an answer reports cost, in nano-USD; None if that cannot be told."""
    if not facts.uses:
        return 0
    fees = _fees(facts, price)
    if fees is None or (not answer.lists_uses and any(one.bill for one in fees.values())):
        return None
    return sum(answer.uses.get(tool, 0) * one.bill for tool, one in fees.items())


def unasked_uses(answer: Answer, price: ModelPrice, model: str) -> int:
    """What uses cost, in nano-USD, that an answer reports of tools which its request does not name: those of a thread, say, that is kept
    at the provider. The two kinds of OpenAI's search look the same there, so the dearer counts.
    """
    billed = {tool: times * one.bill for tool, times in answer.uses.items() if (one := fee(tool, price, model)) is not None}
    searches = max(billed.pop("web_search", 0), billed.pop("web_search_preview", 0))
    return sum(billed.values()) + searches


# -- in words ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reckoning:
    """How the upper bound of a call came about, number by number. Holds no text of the request.

    ``total_nano`` is ``ceil((input_tokens · input_rate_pico + output_tokens · output_rate_pico + call_pico) · surcharge_mille / 10⁶)
    + uses · use_nano``.

    Attributes:
        model: the model asked for.
        input_tokens: the most that it can read, over all `rounds`; `input_by`: how that was found.
        input_why: what the bytes of the request do not show, if anything.
        image_tokens: how many of these are images by the provider's formula.
        rounds: how often the context may be read, because tools run at the provider.
        output_tokens: the most that it can write, over all `choices` and rounds; `output_by`: where that comes from.
        input_rate_pico, output_rate_pico: the dearest rates that can apply, in pico-USD per token.
        call_pico: what every call costs on top, in pico-USD.
        surcharge_mille: what a region may cost, in per mille (1000 = nothing).
        tiers: which service tiers are counted.
        tools, uses, use_nano: tools billed per use, how often, and nano-USD for each.
        price_source, price_date: the price table.
    """

    model: str
    input_tokens: int
    input_by: FoundBy
    output_tokens: int
    output_by: str
    input_rate_pico: int
    output_rate_pico: int
    price_source: str
    price_date: str
    total_nano: int
    input_why: str = ""
    image_tokens: int = 0
    rounds: int = 1
    choices: int = 1
    call_pico: int = 0
    surcharge_mille: int = 1000
    tiers: str = ""
    tools: str = ""
    uses: int = 0
    use_nano: int = 0

    def plain(self) -> dict[str, Any]:
        """The same as integers and short texts, for the record of the call."""
        return asdict(self)
