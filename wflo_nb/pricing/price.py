"""The price of one model: what a finished call cost, and the most that a call can cost.

The bill follows genai-prices where it knows the model and litellm's map otherwise: genai-prices keeps long-context tiers, start
dates and service tiers of its own, litellm's map is wider but typed by many hands; it fills what the first leaves open. The
bound trusts neither alone: it is the dearest rate of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from wflo_nb.model import Cost, Usage
from wflo_nb.pricing.rates import STANDARD, Biller, Bound, Card, bounds, dearest, resolved

#: What providers answer when a call ran at the ordinary price.
_STANDARD_TIERS = frozenset({"", "standard", "default", "auto", "standard_only", "on_demand"})
#: What a request names to get no more than the ordinary price. ``auto`` is not among them: an account may default to priority.
_NO_DEARER = frozenset({"standard", "default", "standard_only", "on_demand", "flex", "batch"})
#: Requests that leave the tier to the account, which may have set priority; and those that ask for priority.
_USUAL = frozenset({"", "auto", "priority"})
#: Tiers that nobody gets without naming them in the request (OpenAI's ultrafast, Anthropic's fast mode; OpenAI's fast is its
#: priority under a new name and has the same rates).
_BY_NAME_ONLY = frozenset({"ultrafast", "fast"})
#: Discounts: a model without a known discount is billed at the ordinary price, which is dearer.
_DISCOUNTS = frozenset({"flex", "batch"})
#: What was paid for in advance, and is answered with unasked: OpenAI's ``scale``, Anthropic's ``priority``. Where no rates of its own are
#: known, it costs what an account may run at by default.
_COMMITTED = frozenset({"scale", "priority"})
#: The affordable output of a model whose output costs nothing and that has no known maximum.
UNLIMITED = 2**31 - 1


def tiers_counted(service_tier: str | None) -> str:
    """Which service tiers bound a request that names this one, in words."""
    tier = (service_tier or "").lower()
    if tier in _USUAL:
        return "priority included"
    return "ordinary price" if tier in _NO_DEARER else "the dearest of all"


@dataclass(frozen=True, slots=True)
class Basis:
    """The numbers behind a price: the card that bills, and the dearest rates that bound.

    Attributes:
        usual: bounds of a request that names no tier; `standard` of one that asks for the ordinary price; `any_tier` of all others.
    """

    bill: Biller
    usual: tuple[Bound, ...]
    standard: tuple[Bound, ...]
    any_tier: tuple[Bound, ...]
    call: int
    uplift: int
    free: bool

    @classmethod
    def of(cls, bill: Card, cards: Sequence[Card] = ()) -> Basis:
        """`bill` bills; `bill` and all `cards` together bound."""
        top = dearest([bill, *cards])
        # A discount may be refused and the ordinary price taken instead, so it never lowers a bound.
        standard = bounds(top, {STANDARD, *_DISCOUNTS})
        usual = bounds(top, {STANDARD, *(top.tiers.keys() - _BY_NAME_ONLY)})
        every = bounds(top)
        free = not top.call and not any(row.media_in or row.output for row in every)
        return cls(Biller(bill), usual, standard, every, top.call, top.uplift, free)


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
        is_free: whether nothing that the model does can cost money.
        bills_tokens: whether tokens cost money.
        unit: what is billed instead of tokens (``page``, ``search``, ``image``, ``second``, ``character``), and `unit_nano` nano-USD for
            each; None where tokens are billed.
    """

    provider: str
    model: str
    source: str
    date: str
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    matched: str = ""
    search_nano: int | None = None
    unit: str | None = None
    unit_nano: int = 0
    basis: Basis = field(repr=False, kw_only=True)
    is_free: bool = field(init=False, repr=False, compare=False)
    bills_tokens: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_free", self.basis.free and not self.unit_nano)
        object.__setattr__(self, "bills_tokens", not self.basis.free)

    def cost(self, usage: Usage, *, service_tier: str | None = None, regional: bool = False, media: bool = False) -> Cost:
        """What a finished call cost.

        The whole call is billed at the rates of its input size. Prices that change with the hour are billed at their dearest,
        because the hour that counts is the provider's. Usage that contradicts itself is read the dearer way (`rates.split`).
        A model that makes audio or images is billed as if all of its visible output were that.

        Args:
            usage: the tokens, as `Usage` defines them.
            service_tier: what the provider answered. None, ``default``, ``standard`` and ``auto`` are the ordinary price,
                ``flex`` and ``batch`` the discount where one is known, ``priority`` and ``fast`` their own price. ``priority``
                and ``scale`` without one count as the dearest that has not to be asked for by name, anything else as the dearest.
            regional: the call was pinned to a region that costs extra (a data-residency host, ``inference_geo``).
            media: the input held audio, images or video; the whole input is then billed at the dearest kind.
        """
        bill = self.basis.bill
        tier = STANDARD if service_tier is None or service_tier == "default" else self._billed_tier(service_tier)
        if tier is None and service_tier is not None and service_tier.lower() in _COMMITTED:
            pico = max(bill.pico(usage, name, media=media) for name in bill.tiers if name not in _BY_NAME_ONLY)
        else:
            pico = bill.pico(usage, tier, media=media)
        return Cost(-(-pico * (bill.card.uplift if regional else 1000) // 1_000_000), self.source, self.date)

    def _billed_tier(self, service_tier: str) -> str | None:
        tier = service_tier.lower()
        if tier in _STANDARD_TIERS:
            return STANDARD
        if tier in self.basis.bill.tiers:
            return tier
        if tier == "fast" and "priority" in self.basis.bill.tiers:
            return "priority"
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
            service_tier: what the request asks for. ``default`` or ``standard`` by name leaves priority service out; None,
                ``auto`` and ``priority`` leave out what has to be asked for by another name (``ultrafast``, and ``fast``, the
                `speed` of an Anthropic request); anything else is bounded by the dearest of all.
            media: the request holds audio, images or video.
            regional: False only when the call surely goes to no region that costs extra.
        """
        rows = self.basis.usual
        row = rows[0] if service_tier is None and len(rows) == 1 else self._row(input_tokens, service_tier)
        pico = max(0, input_tokens) * (row.media_in if media else row.input) + max(0, output_tokens) * row.output + self.basis.call
        return -(-pico * (self.basis.uplift if regional else 1000) // 1_000_000)

    def affordable_output(
        self, nano: int, input_tokens: int, choices: int = 1, *, service_tier: str | None = None, media: bool = False, regional: bool = True
    ) -> int:
        """The most output tokens per choice whose `upper_bound` still fits into `nano` nano-USD.

        Zero or less when nothing fits (negative: not even the input does). When output is free, the model's maximum.
        """
        row = self._row(input_tokens, service_tier)
        left = nano * 1_000_000 // (self.basis.uplift if regional else 1000)
        left -= max(0, input_tokens) * (row.media_in if media else row.input) + self.basis.call
        if row.output == 0:
            return (self.max_output_tokens or UNLIMITED) if left >= 0 else -1
        return left // (row.output * max(1, choices))

    def _row(self, input_tokens: int, service_tier: str | None) -> Bound:
        tier = (service_tier or "").lower()
        rows = self.basis.usual if tier in _USUAL else self.basis.standard if tier in _NO_DEARER else self.basis.any_tier
        for row in reversed(rows):
            if input_tokens > row.start:
                return row
        return rows[0]

    def dearest(self, input_tokens: int, *, service_tier: str | None = None, media: bool = False, regional: bool = True) -> tuple[int, ...]:
        """The numbers behind `upper_bound`, for people to read.

        Returns:
            the input and the output rate in pico-USD per token, the pico-USD that every call costs, and the regional surcharge in
            per mille.
        """
        row = self._row(input_tokens, service_tier)
        uplift = self.basis.uplift if regional else 1000
        return (row.media_in if media else row.input), row.output, self.basis.call, uplift

    @property
    def knows_media(self) -> bool:
        """Whether a rate of its own is known for audio and the like. A price that the user declared stands for everything."""
        return self.source == "declared" or any(row.media_in is not None for row in self.basis.bill.card.tiers[STANDARD])

    def per_million(self) -> dict[str, Decimal]:
        """The ordinary rates of a short call in USD per million tokens, for people to read."""
        rates = resolved(self.basis.bill.card.tiers[STANDARD][0])
        names = ("input", "output", "cache_read", "cache_write", "cache_write_1h")
        return {name: Decimal(rate).scaleb(-6) for name, rate in zip(names, rates[1:6], strict=True)}
