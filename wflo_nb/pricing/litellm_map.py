"""Reads litellm's price map as plain JSON. litellm itself is never imported: that costs seconds and 165 MB.

The map is typed by many hands, so nothing in it is trusted that cannot be a price: see `refusal`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from wflo_nb.pricing.names import FREE_PROVIDERS, canonical_provider
from wflo_nb.pricing.rates import STANDARD, Card, Row

#: Only what is billed by tokens in and out. Images, speech, search and so on have units of their own.
MODES = frozenset({"chat", "completion", "responses", "embedding"})
#: Dearer than this per million tokens is a typing error: the dearest real model known is 600 USD.
ABSURD_PICO = 1000 * 1_000_000
#: And so is a fee of more than 10 USD for every call.
ABSURD_CALL_PICO = 10 * 10**12
#: Longest id worth keeping; real ones stay far below.
MAX_ID = 200

_FIELD = re.compile(
    r"(?P<base>input_cost_per_token|output_cost_per_token|output_cost_per_reasoning_token|cache_read_input_token_cost"
    r"|cache_creation_input_token_cost|(?:input|output)_cost_per_(?:audio|image|video)_token"
    r"|cache_read_input_(?:audio|image|video)_token_cost)"
    r"(?P<hour>_above_1hr)?(?:_above_(?P<k>\d+)k_tokens)?(?:_(?P<tier>priority|flex|batches|ultrafast|balanced|decisions|fast|performance))?"
)
_CLASS = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "output_cost_per_reasoning_token": "reasoning",
    "cache_read_input_token_cost": "read",
    "cache_creation_input_token_cost": "write",
}
#: Every class that is no text, by how its fields begin.
_MEDIA = {"input": "media_in", "output": "media_out", "cache": "media_read"}
_AZURE_REGIONS = frozenset({"us", "eu", "apac", "global", "global-standard", "us-gov", "standard"})
_AWS_REGION = re.compile(r"(?:[a-z]{2}(?:-gov)?-[a-z]+-\d|\*|us-gov-\w+|\d-month-commitment|invoke|converse)$")

#: What a row may leave open, in its order.
_OPTIONAL = Row._fields[3:]

Rates = dict[str, dict[tuple[int, str], int]]  # class → (start, tier) → pico


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the map under the names of our table.

    Attributes:
        regional: the price of one region only, so good for a bound and not for a bill.
        search_nano: the dearest web search, nano-USD.
    """

    provider: str
    model: str
    card: Card
    max_input: int | None
    max_output: int | None
    search_nano: int | None
    regional: bool


def pico_per_token(usd: object) -> int | None:
    """USD per token as whole pico-USD, rounded up after the noise of binary floats is cut. None: not a number."""
    if isinstance(usd, bool) or not isinstance(usd, int | float | Decimal):
        return None
    amount = Decimal(str(usd))
    if not amount.is_finite():
        return None
    return int((Decimal(f"{amount:.11e}") * 10**12).to_integral_value(ROUND_CEILING))


def read(data: dict[str, Any]) -> tuple[list[Entry], dict[str, list[str]]]:
    """The usable entries of a map, and for each reason of refusal the keys it befell."""
    entries: list[Entry] = []
    refused: dict[str, list[str]] = defaultdict(list)
    for key, fields in data.items():
        if key == "sample_spec" or not isinstance(fields, dict):
            continue
        card, reason = _card(fields)
        if card is None:
            refused[reason].append(key)
            continue
        provider, model, regional = _name(key, str(fields.get("litellm_provider") or ""))
        if provider in FREE_PROVIDERS:
            refused["free provider, needs no table"].append(key)
        elif not model or len(model) > MAX_ID:
            refused["no usable id"].append(key)
        else:
            limits = _limit(fields.get("max_input_tokens")), _limit(fields.get("max_output_tokens"))
            entries.append(Entry(provider, model, card, *limits, _search(fields), regional))
    return entries, dict(refused)


def _name(key: str, litellm_provider: str) -> tuple[str, str, bool]:
    """Table provider, model id and whether the entry speaks for one region only."""
    provider = canonical_provider(litellm_provider)
    parts = key.lower().split("/")
    while len(parts) > 1 and canonical_provider(parts[0]) == provider:
        parts.pop(0)
    regional = False
    while len(parts) > 1 and (
        (provider == "azure" and parts[0] in _AZURE_REGIONS) or (provider == "bedrock" and _AWS_REGION.match(parts[0]) is not None)
    ):
        parts.pop(0)
        regional = True
    return provider, "/".join(parts), regional


def refusal(fields: dict[str, Any], rates: Rates) -> str | None:
    """Why these prices cannot be trusted, None if they can."""
    zero = (0, STANDARD)
    given = [value for by_place in rates.values() for value in by_place.values()]
    if any(value < 0 for value in given):
        return "negative price"
    if any(value > ABSURD_PICO for value in given) or (pico_per_token(fields.get("input_cost_per_request")) or 0) > ABSURD_CALL_PICO:
        return "absurd price"
    if zero not in rates["input"]:
        return "no input price"
    if rates["input"][zero] == 0:
        return "zero price from a provider that is not free"
    if not rates["output"].get(zero) and fields.get("mode") != "embedding":
        return "no output price"
    return None


def _card(fields: dict[str, Any]) -> tuple[Card | None, str]:
    mode = fields.get("mode")
    if mode not in MODES:
        return None, f"mode {mode}"
    rates = _rates(fields)
    reason = refusal(fields, rates)
    if reason is not None:
        return None, reason
    extras = fields.get("provider_specific_entry")
    extras = extras if isinstance(extras, dict) else {}
    tiers = {tier: _rows(rates, tier) for tier in sorted({tier for _, tier in rates["input"]} | {STANDARD})}
    fast = _factor(extras.get("fast"))
    if fast > 1000:  # the speed that a request asks for by name costs a multiple of everything
        tiers["fast"] = tuple(_times(row, fast) for row in tiers[STANDARD])
    regional = [value for name, value in fields.items() if name.startswith("regional_") and "uplift" in name]
    uplift = max(_factor(value) for value in [*regional, extras.get("us"), extras.get("eu"), 1])
    call = pico_per_token(fields.get("input_cost_per_request")) or 0
    return Card(tiers, max(0, call), uplift), ""


def _times(row: Row, per_mille: int) -> Row:
    return Row._make([row.start, *(None if rate is None else -(-rate * per_mille // 1000) for rate in row[1:])])


def _rates(fields: dict[str, Any]) -> Rates:
    rates: Rates = {name: {} for name in ("input", "output", *_OPTIONAL)}
    bands = fields.get("tiered_pricing")
    for band in bands if isinstance(bands, list) else []:
        edge = band.get("range", [0])[0] if isinstance(band, dict) else None
        if isinstance(edge, int | float | Decimal):
            _take(rates, band, int(edge))
    _take(rates, fields, 0)
    return rates


def _take(rates: Rates, fields: dict[str, Any], start: int) -> None:
    for name, value in fields.items():
        found = _FIELD.fullmatch(name)
        pico = pico_per_token(value) if found else None
        if found is None or pico is None:
            continue
        base = found["base"]
        kind = _CLASS.get(base) or _MEDIA[base.partition("_")[0]]
        if found["hour"]:
            kind = "write_1h"
        if pico == 0 and kind not in ("input", "output"):
            continue  # a part that is free within a paid whole is more often a gap than a gift
        tier = {"batches": "batch", None: STANDARD}.get(found["tier"], found["tier"])
        place = (int(found["k"]) * 1000 if found["k"] else start, tier)
        rates[kind][place] = max(pico, rates[kind].get(place, 0)) if kind.startswith("media") else pico


def _rows(rates: Rates, tier: str) -> tuple[Row, ...]:
    starts = sorted({0} | {start for by_place in rates.values() for start, name in by_place if name == tier})
    return tuple(_row(rates, start, tier) for start in starts)


def _row(rates: Rates, start: int, tier: str) -> Row:
    def known(kind: str, at: int, name: str) -> int | None:
        below = [edge for edge, other in rates[kind] if other == name and edge <= at]
        return rates[kind][max(below), name] if below else None

    base_in = rates["input"][0, STANDARD]
    here_in = known("input", start, tier) or base_in

    def rate(kind: str) -> int | None:
        exact = rates[kind].get((start, tier))
        if exact is not None:
            return exact
        # A class that the map forgot to state for a tier keeps its proportion to the input, rounded up.
        base = known(kind, 0, STANDARD)
        return None if base is None else max(known(kind, start, tier) or 0, -(-base * here_in // base_in))

    output = rate("output")
    return Row(start, here_in, output or 0, *map(rate, _OPTIONAL))


def _factor(value: object) -> int:
    """A multiplier such as 1.1 as per mille; anything that cannot be one counts as 1."""
    pico = pico_per_token(value) or 0
    mille = -(-pico // 10**9)
    return mille if 1000 <= mille <= 20_000 else 1000


def _limit(value: object) -> int | None:
    return int(value) if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and 0 < value < 10**9 else None


def _search(fields: dict[str, Any]) -> int | None:
    costs = fields.get("search_context_cost_per_query")
    found = [pico_per_token(cost) or 0 for cost in costs.values()] if isinstance(costs, dict) else []
    return -(-max(found) // 1000) or None if found else None
