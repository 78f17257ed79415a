"""Finds what a model costs, and keeps the prices that users declare.

The bill (`ModelPrice.cost`) follows genai-prices where it knows the model and litellm's map otherwise: genai-prices keeps
long-context tiers, start dates and service tiers of its own, litellm's map is wider but typed by many hands. The bound
(`ModelPrice.upper_bound`) trusts neither alone: it is the dearest rate of both.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal, InvalidOperation

from wflo_nb.errors import ConfigurationError, PricingError, UnknownModelError
from wflo_nb.model import Cost, Usage
from wflo_nb.pricing.names import FREE_PROVIDERS, MAKERS, RESELLS, canonical_provider, family, spellings
from wflo_nb.pricing.rates import STANDARD, Biller, Bound, Card, Row, bounds, dearest, filled, resolved
from wflo_nb.pricing.table import Entry, Table, load

#: What providers answer when a call ran at the ordinary price.
_STANDARD_TIERS = frozenset({"", "standard", "default", "auto", "standard_only", "on_demand"})
#: What a request names to get the ordinary price for sure. ``auto`` is not among them: an account may default to priority.
_SURELY_STANDARD = frozenset({"standard", "default", "standard_only", "on_demand", "flex", "batch"})
#: Discounts: a model without a known discount is billed at the ordinary price, which is dearer.
_DISCOUNTS = frozenset({"flex", "batch"})
#: Given as the affordable output of a model whose output costs nothing and that has no known maximum.
UNLIMITED = 2**31 - 1
_SECONDS_PER_DAY = 86_400
_MISSES_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """What one model costs at one provider. All arithmetic is exact in pico-USD and rounded up once, to nano-USD.

    Attributes:
        source: ``genai-prices 0.2.3``, ``litellm 1.106.2``, ``declared`` or ``local`` (a free provider on the user's machine).
        date: ISO date of that source.
        max_input_tokens: the context window; None when unknown.
        max_output_tokens: the most the model can generate; None when unknown.
        matched: the id in the table that this price was found under; it differs from `model` for prefixes and new snapshots.
        search_nano: nano-USD that one web search of the model costs at most, on top of its tokens; None when unknown.
    """

    provider: str
    model: str
    source: str
    date: str
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    matched: str = ""
    search_nano: int | None = None
    _biller: Biller = field(repr=False, kw_only=True)
    _bounds: tuple[Bound, ...] = field(repr=False, kw_only=True)
    _standard_bounds: tuple[Bound, ...] = field(repr=False, kw_only=True)
    _call: int = field(repr=False, kw_only=True)
    _uplift: int = field(repr=False, kw_only=True)

    def cost(self, usage: Usage, *, service_tier: str | None = None, regional: bool = False, media: bool = False) -> Cost:
        """What a finished call cost.

        The whole call is billed at the rates of its input size. Prices that change with the hour are billed at their dearest,
        because the hour that counts is the provider's. Usage that contradicts itself is read the dearer way (`rates.split`).
        A model that makes audio or images is billed as if all of its visible output were that.

        Args:
            usage: the tokens, as `Usage` defines them.
            service_tier: what the provider answered. None, ``default``, ``standard`` and ``auto`` are the ordinary price, ``flex``
                and ``batch`` the discount where one is known, ``priority`` and ``fast`` their own price; anything else counts as the dearest.
            regional: the call was pinned to a region that costs extra (a data-residency host, ``inference_geo``).
            media: the input held audio, images or video; the whole input is then billed at the dearest kind.
        """
        pico = self._biller.pico(usage, self._billed_tier(service_tier), media=media)
        uplift = self._biller.card.uplift if regional else 1000
        return Cost(-(-pico * uplift // 1_000_000), self.source, self.date)

    def _billed_tier(self, service_tier: str | None) -> str | None:
        tier = (service_tier or "").lower()
        if tier in _STANDARD_TIERS:
            return STANDARD
        if tier in self._biller.tiers:
            return tier
        return STANDARD if tier in _DISCOUNTS else None

    def upper_bound(
        self, input_tokens: int, output_tokens: int, *, service_tier: str | None = None, media: bool = False, regional: bool = True
    ) -> int:
        """The most that a call of at most so many tokens can cost, in nano-USD.

        The dearest rates of both sources: every input token as a cache write or the dearest kind of input, the dearest
        long-context tier that so much input can reach, priority service, regional surcharge.

        Args:
            input_tokens: no fewer than the provider will count, cached ones included.
            output_tokens: the output cap, over all choices.
            service_tier: what the request asks for. ``default`` or ``standard`` by name leaves priority service out;
                None, ``auto`` and everything else is bounded by the dearest.
            media: the request holds audio, images or video.
            regional: False only when the call surely goes to no region that costs extra.
        """
        row = self._row(input_tokens, service_tier)
        pico = max(0, input_tokens) * (row.media_in if media else row.input) + max(0, output_tokens) * row.output + self._call
        return -(-pico * (self._uplift if regional else 1000) // 1_000_000)

    def affordable_output(
        self, nano: int, input_tokens: int, choices: int = 1, *, service_tier: str | None = None, media: bool = False, regional: bool = True
    ) -> int:
        """The most output tokens per choice whose `upper_bound` still fits into `nano` nano-USD.

        Zero or less when nothing fits (negative: not even the input does). When output is free, the model's maximum.
        """
        row = self._row(input_tokens, service_tier)
        left = nano * 1_000_000 // (self._uplift if regional else 1000)
        left -= max(0, input_tokens) * (row.media_in if media else row.input) + self._call
        if row.output == 0:
            return (self.max_output_tokens or UNLIMITED) if left >= 0 else -1
        return left // (row.output * max(1, choices))

    def _row(self, input_tokens: int, service_tier: str | None) -> Bound:
        rows = self._standard_bounds if (service_tier or "").lower() in _SURELY_STANDARD else self._bounds
        for row in reversed(rows):
            if input_tokens > row.start:
                return row
        return rows[0]

    @property
    def is_free(self) -> bool:
        """Nothing this model does can cost money."""
        return not self._call and not any(row.media_in or row.output for row in self._bounds)

    def per_million(self) -> dict[str, Decimal]:
        """The ordinary rates of a short call in USD per million tokens, for people to read."""
        rates = resolved(self._biller.card.tiers[STANDARD][0])
        names = ("input", "output", "cache_read", "cache_write", "cache_write_1h")
        return {name: Decimal(rate).scaleb(-6) for name, rate in zip(names, rates[1:6], strict=True)}


def _priced(provider: str, model: str, entry: Entry, day: str, others: Iterable[Entry] = (), *, bill_dearest: bool = False) -> ModelPrice:
    """The price by an entry; `others` widen the bound, and the bill too when it is not known which of them it is."""
    card = entry.billed_on(day)
    for listed in entry.listed:
        card = filled(card, listed)
    cards = [card, *entry.cards(day)]
    others = tuple(others)
    for other in others:
        cards += other.cards(day)
    top = dearest(cards)
    return ModelPrice(
        provider,
        model,
        str(entry.source),
        entry.source.date,
        entry.max_input,
        entry.max_output,
        entry.model,
        max((one.search_nano for one in (entry, *others) if one.search_nano is not None), default=None),
        **_parts(top if bill_dearest else card, top),
    )


def _parts(card: Card, top: Card) -> dict[str, object]:
    return {
        "_biller": Biller(card),
        "_bounds": bounds(top),
        "_standard_bounds": bounds(top, STANDARD),
        "_call": top.call,
        "_uplift": top.uplift,
    }


def _flat(provider: str, model: str, source: str, date: str, row: Row) -> ModelPrice:
    card = Card({STANDARD: (row,)})
    return ModelPrice(provider, model, source, date, matched=model, **_parts(card, card))


class PriceBook:
    """Prices of the table and those declared in this process. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._declared: dict[tuple[str, str], ModelPrice] = {}
        self._found: dict[tuple[str, str], tuple[int, ModelPrice]] = {}
        self._missed: dict[tuple[str, str], tuple[str, ...]] = {}
        self._edition = 0

    def find(self, provider: str | None, model: str) -> ModelPrice:
        """The price of a model at a provider, a declared one first.

        Args:
            provider: its OpenTelemetry name (``openai``, ``gcp.gemini``, ``aws.bedrock``, …) or another usual one. None or a name that
                the table does not have means a host nobody knows: then an id is accepted when one of the makers lists it, or all
                who list it agree, and it is billed and bounded at the dearest of them.
            model: the id as requests and answers write it.

        Raises:
            UnknownModelError: no price, with near matches.
        """
        key = (provider or "", model)
        today = int(time.time()) // _SECONDS_PER_DAY
        found = self._found.get(key)
        if found is not None and found[0] == today:
            return found[1]
        if key in self._missed:
            raise UnknownModelError(model, provider, self._missed[key])
        edition = self._edition
        try:
            price = self._look_up(provider or "", model, datetime.fromtimestamp(today * _SECONDS_PER_DAY, UTC).date().isoformat())
        except UnknownModelError as error:
            with self._lock:
                if edition == self._edition and len(self._missed) < _MISSES_KEPT:
                    self._missed[key] = error.suggestions
            raise
        with self._lock:
            if edition == self._edition:
                self._found[key] = (today, price)
        return price

    def _look_up(self, provider: str, model: str, day: str) -> ModelPrice:
        known = canonical_provider(provider)
        declared = self._declared.get((known, model)) or self._declared.get(("", model))
        if declared is None:
            return _from_table(provider, known, model, day)
        price = replace(declared, provider=provider or declared.provider)
        if price.max_output_tokens is None or price.max_input_tokens is None:
            try:  # the user told the price, the table may still know the model's limits
                listed = _from_table(provider, known, model, day)
            except UnknownModelError:
                return price
            price = replace(
                price,
                max_input_tokens=price.max_input_tokens or listed.max_input_tokens,
                max_output_tokens=price.max_output_tokens or listed.max_output_tokens,
            )
        return price

    def declare(
        self,
        model: str,
        *,
        input: object,
        output: object,
        cache_read: object = None,
        cache_write: object = None,
        cache_write_1h: object = None,
        provider: str | None = None,
        max_output_tokens: int | None = None,
        max_input_tokens: int | None = None,
        allow_absurd: bool = False,
    ) -> ModelPrice:
        """Sets the price of a model for this process, in USD per million tokens. It wins over the table.

        The id is matched exactly as written, at every provider unless one is named. Prices are numbers or text such as ``"2.50"``;
        floats count by their shortest decimal form; what is finer than 1e-6 USD per million is rounded up. 0 means free.

        Raises:
            ConfigurationError: not a finite number of zero or more, or no model id.
            PricingError: so large or so small that it was probably meant per token; `allow_absurd` takes it anyway.
        """
        if not isinstance(model, str) or not model.strip():
            raise ConfigurationError(f"A price needs the id of a model, not {model!r}.")
        given = {"input": input, "output": output, "cache_read": cache_read, "cache_write": cache_write, "cache_write_1h": cache_write_1h}
        rates = {name: _declared_pico(model, name, value, allow_absurd) for name, value in given.items() if value is not None}
        for name in ("input", "output"):
            if name not in rates:
                raise ConfigurationError(f"The price of {model} has no {name}= (USD per million tokens; 0 means free).")
        row = Row(0, rates["input"], rates["output"], rates.get("cache_read"), rates.get("cache_write"), rates.get("cache_write_1h"))
        limits = (
            _declared_limit("max_input_tokens", max_input_tokens),
            _declared_limit("max_output_tokens", max_output_tokens),
        )
        today = datetime.now(UTC).date().isoformat()
        price = replace(_flat(provider or "", model, "declared", today, row), max_input_tokens=limits[0], max_output_tokens=limits[1])
        with self._lock:
            self._declared[canonical_provider(provider), model] = price
            self._changed()
        return price

    def forget(self, model: str, provider: str | None = None) -> None:
        """Takes a declared price back; the table counts again. Without a provider, all declarations of that id go."""
        with self._lock:
            known = canonical_provider(provider)
            for key in [key for key in self._declared if key[1] == model and known in ("", key[0])]:
                del self._declared[key]
            self._changed()

    def declared(self) -> list[ModelPrice]:
        """The declared prices, in the order of their declaration."""
        with self._lock:
            return list(self._declared.values())

    def _changed(self) -> None:
        self._edition += 1
        self._found.clear()
        self._missed.clear()


def _from_table(provider: str, known: str, model: str, day: str) -> ModelPrice:
    if known in FREE_PROVIDERS and not model.lower().endswith("cloud"):  # …:cloud and …-cloud run elsewhere, on somebody's bill
        return _flat(provider, model, "local", day, Row(0, 0, 0))
    table = load()
    if not table.ids(known):
        return _anywhere(table, provider, model, day)
    for place in (known, *RESELLS.get(known, ())):
        hit = _at(table, place, model)
        if hit is not None:
            return _priced(provider, model, hit[0], day, hit[1])
    raise UnknownModelError(model, provider, _near(model, table.ids(known)))


def _at(table: Table, provider: str, model: str) -> tuple[Entry, list[Entry]] | None:
    """The entry of a model and those that share its name closely enough to count for the bound."""
    names = list(dict.fromkeys(spellings(provider, model)))
    for name in names:
        entry = table.entry(provider, name)
        if entry is not None:
            kin = [other for other in table.ids(provider) if other.endswith(f".{name}")] if provider == "bedrock" and name != names[0] else []
            return entry, _entries(table, provider, kin)
    for name in names:  # a snapshot newer than the table: as its family, bounded by the dearest snapshot of the family
        base = family(name)
        entry = table.entry(provider, base) if base else None
        if base and entry is not None:
            return entry, _entries(table, provider, table.siblings(provider, base))
    return None


def _entries(table: Table, provider: str, names: Iterable[str]) -> list[Entry]:
    return [entry for name in names if (entry := table.entry(provider, name)) is not None]


def _anywhere(table: Table, provider: str, model: str, day: str) -> ModelPrice:
    """The price of an id at a host that the table does not know."""
    places = {(host, name) for name in spellings("", model) for host in table.hosts(name)}
    maker, slash, rest = model.lower().partition("/")  # gateways write openai/gpt-4o
    if slash:
        places |= {(canonical_provider(maker), name) for name in spellings("", rest)}
    entries = [entry for host, name in sorted(places) if (entry := table.entry(host, name)) is not None]
    makers = [entry for entry in entries if entry.provider in MAKERS]
    agreed = len({resolved(entry.billed_on(day).tiers[STANDARD][0])[1:3] for entry in entries}) == 1
    if not makers and not agreed:
        near = [f"{entry.provider}/{entry.model}" for entry in entries] or _near(model, [name for one in MAKERS for name in table.ids(one)])
        raise UnknownModelError(model, provider or None, tuple(near[:3]))
    first = (makers or entries)[0]
    return _priced(provider, model, first, day, entries, bill_dearest=True)


def _near(model: str, ids: list[str]) -> tuple[str, ...]:
    return tuple(difflib.get_close_matches(model.lower().rpartition("/")[2] or model.lower(), ids, n=3))


def _declared_pico(model: str, name: str, value: object, allow_absurd: bool) -> int:
    """USD per million tokens, as users write it, as pico-USD per token."""
    shown = f"{name}={value!s} of {model}"
    try:
        amount = Decimal(str(value).strip().removeprefix("$").replace("_", ""))
    except InvalidOperation:
        raise ConfigurationError(f"The price {shown} is not a number. Write USD per million tokens, for example {name}=2.50.") from None
    if isinstance(value, bool) or not amount.is_finite() or amount < 0:
        raise ConfigurationError(f"The price {shown} is not a finite number of zero or more USD per million tokens.")
    if not allow_absurd and amount > 10_000:
        raise PricingError(
            f"The price {shown} is {amount:,f} USD per million tokens, and no model costs more than 10,000. Prices are per million tokens, "
            f"not per thousand or per token. If it is really meant, say allow_absurd=True."
        )
    if not allow_absurd and 0 < amount < Decimal("0.000001"):
        raise PricingError(
            f"The price {shown} is {amount:f} USD per million tokens, which is next to nothing. It was probably meant per token: that would be "
            f"{name}={(amount * 1_000_000).normalize():f} per million. If it is really meant, say allow_absurd=True."
        )
    if isinstance(value, float):
        amount = Decimal(f"{amount:.14e}")  # 0.1 + 0.2 is meant as 0.3
    return int((amount * 1_000_000).to_integral_value(ROUND_CEILING))


def _declared_limit(name: str, value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigurationError(f"{name}={value!r} is not a positive whole number of tokens.")
    return value
