"""Rates of one model by one source, and the arithmetic on them. Integer pico-USD (1e-12 USD) per token throughout.

A *row* holds the rates that apply once the whole input of a call is larger than `start` tokens; the whole call is then billed
at that row, which is how the providers bill long contexts. A *card* holds the rows of every service tier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wflo_nb.model import Usage

STANDARD = "standard"


class Row(NamedTuple):
    """Rates above `start` input tokens, pico-USD per token. None: the source does not say (see `resolved`)."""

    start: int
    input: int
    output: int
    read: int | None = None
    write: int | None = None
    write_1h: int | None = None
    reasoning: int | None = None
    media_in: int | None = None
    media_out: int | None = None
    media_read: int | None = None


class Rates(NamedTuple):
    """A row without gaps."""

    start: int
    input: int
    output: int
    read: int
    write: int
    write_1h: int
    reasoning: int
    media_in: int
    media_out: int
    media_read: int


@dataclass(frozen=True, slots=True)
class Card:
    """Everything one source says about one model.

    Attributes:
        tiers: service tier → rows by rising `start`; ``standard`` is always there and its first row starts at 0.
        call: pico-USD that every call costs on top of its tokens.
        uplift: per mille, what calls pinned to a region cost (1100 = ten per cent more, 1000 = the same).
    """

    tiers: dict[str, tuple[Row, ...]]
    call: int = 0
    uplift: int = 1000

    def rows(self, tier: str) -> tuple[Row, ...]:
        """The rows of a tier; those of ``standard`` when this source does not know the tier."""
        return self.tiers.get(tier) or self.tiers[STANDARD]

    def as_json(self) -> dict[str, Any]:
        """The compact form kept in the table: trailing gaps are cut, ordinary values left out."""
        out: dict[str, Any] = {"t": {tier: [_trimmed(row) for row in rows] for tier, rows in sorted(self.tiers.items())}}
        if self.call:
            out["c"] = self.call
        if self.uplift != 1000:
            out["u"] = self.uplift
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Card:
        """The card that `as_json` wrote."""
        return cls({tier: tuple(Row(*row) for row in rows) for tier, rows in data["t"].items()}, data.get("c", 0), data.get("u", 1000))


def _trimmed(row: Row) -> list[int | None]:
    values: list[int | None] = list(row)
    while values[-1] is None:
        values.pop()
    return values


def row_above(rows: tuple[Row, ...], start: int) -> Row:
    """The row that holds for an input of just more than `start` tokens."""
    return next((row for row in reversed(rows) if row.start <= start), rows[0])


def resolved(row: Row) -> Rates:
    """The row with its gaps closed: a class without a rate of its own is billed like the class it is part of.

    Media out of a cache is billed like text out of it only where media is never dearer than text; elsewhere as if it were not cached.
    """
    read = row.input if row.read is None else row.read
    write = row.input if row.write is None else row.write
    media_in = row.input if row.media_in is None else row.media_in
    return Rates(
        row.start,
        row.input,
        row.output,
        read,
        write,
        write if row.write_1h is None else row.write_1h,
        row.output if row.reasoning is None else row.reasoning,
        media_in,
        row.output if row.media_out is None else row.media_out,
        row.media_read if row.media_read is not None else read if media_in <= row.input else media_in,
    )


def filled(first: Card, second: Card) -> Card:
    """`first`, with the service tiers and token classes it does not know taken from `second`, where both state the same price.

    A gap is not filled from a source that speaks of another price: a cache rate belongs to its input rate.
    """
    if first.tiers[STANDARD][0][:3] != second.tiers[STANDARD][0][:3]:
        return first
    tiers = dict(second.tiers)
    for tier, rows in first.tiers.items():
        pairs = [(row, row_above(second.rows(tier), row.start)) for row in rows]
        tiers[tier] = tuple(
            Row._make(b if a is None else a for a, b in zip(row, other, strict=True)) if row.input == other.input else row
            for row, other in pairs
        )
    return Card(tiers, first.call or second.call, max(first.uplift, second.uplift))


def dearest(cards: Iterable[Card]) -> Card:
    """One card that is at least as dear as each of `cards` for every token class, tier and input size."""
    many = list(cards)
    if len(many) == 1:
        return many[0]
    tiers: dict[str, tuple[Row, ...]] = {}
    for tier in sorted(set().union(*(card.tiers for card in many))):
        starts = sorted({row.start for card in many for row in card.rows(tier)})
        rows = []
        for start in starts:
            here = [resolved(row_above(card.rows(tier), start)) for card in many]
            rows.append(Row._make([start, *(max(column) for column in list(zip(*here, strict=True))[1:])]))
        tiers[tier] = tuple(rows)
    return Card(tiers, max(card.call for card in many), max(card.uplift for card in many))


def _never_free(rates: Rates, ordinary: Rates) -> Rates:
    """A tier's rates, with the ordinary ones in place of zeros: a part that is free in one tier alone is a gap in the source."""
    return Rates._make(there if here == 0 else here for here, there in zip(rates, ordinary, strict=True))._replace(start=rates.start)


class Bound(NamedTuple):
    """The dearest that any token of a call can cost above `start` input tokens."""

    start: int
    input: int
    media_in: int
    output: int


def bounds(card: Card, tiers: Collection[str] | None = None) -> tuple[Bound, ...]:
    """The dearest rates of a card by input size, over all service tiers or some, never falling as the input grows.

    An upper bound of the input must also cover every smaller input, so the rates of smaller inputs carry over.
    """
    tiers = card.tiers if tiers is None else tiers
    starts = sorted({row.start for name in tiers for row in card.rows(name)})
    found: list[Bound] = []
    top_in = top_media = top_out = 0
    for start in starts:
        for name in tiers:
            rates = resolved(row_above(card.rows(name), start))
            top_in = max(top_in, rates.input, rates.read, rates.write, rates.write_1h)
            top_media = max(top_media, top_in, rates.media_in, rates.media_read)
            top_out = max(top_out, rates.output, rates.reasoning, rates.media_out)
        found.append(Bound(start, top_in, top_media, top_out))
    return tuple(found)


class Tokens(NamedTuple):
    """The tokens of one call, split into parts that are billed apart and do not overlap."""

    total_input: int
    plain: int
    read: int
    write: int
    write_1h: int
    output: int
    reasoning: int


def split(usage: Usage) -> Tokens:
    """The usage as parts that add up.

    Usage that contradicts itself is read the dearer way: a part that is larger than its whole was evidently not counted in it,
    so it is added instead of subtracted; negative counts are zero.
    """
    total, output = usage.input_tokens, usage.output_tokens
    read, write = usage.cache_read_tokens, usage.cache_write_tokens
    write_1h, reasoning = usage.cache_write_1h_tokens, usage.reasoning_tokens
    if read >= 0 <= write_1h <= write and read + write <= total and 0 <= reasoning <= output:  # nearly always
        return Tokens(total, total - read - write, read, write - write_1h, write_1h, output - reasoning, reasoning)
    total, output = max(0, usage.input_tokens), max(0, usage.output_tokens)
    read, write = max(0, usage.cache_read_tokens), max(0, usage.cache_write_tokens)
    write_1h, reasoning = max(0, usage.cache_write_1h_tokens), max(0, usage.reasoning_tokens)
    if write_1h > write:
        write += write_1h
    if read + write > total:
        total += read + write
    if reasoning > output:
        output += reasoning
    return Tokens(total, total - read - write, read, write - write_1h, write_1h, output - reasoning, reasoning)


@dataclass(frozen=True, slots=True)
class Biller:
    """Prices usage by one card, with everything looked up beforehand."""

    card: Card
    tiers: dict[str, tuple[Rates, ...]] = field(init=False)

    def __post_init__(self) -> None:
        ordinary = self.card.tiers[STANDARD]
        by_tier = {
            tier: tuple(_never_free(resolved(row), resolved(row_above(ordinary, row.start))) for row in reversed(rows))
            for tier, rows in self.card.tiers.items()
        }
        object.__setattr__(self, "tiers", by_tier)

    def pico(self, usage: Usage, tier: str | None, *, media: bool) -> int:
        """Pico-USD of a call at a service tier; None means that the tier is not known, so the dearest counts."""
        tokens = split(usage)
        if tier is not None:
            return self._at(self.tiers.get(tier) or self.tiers[STANDARD], tokens, media)
        return max(self._at(rows, tokens, media) for rows in self.tiers.values())

    def _at(self, rows: tuple[Rates, ...], tokens: Tokens, media: bool) -> int:
        rates = rows[-1]
        for row in rows:
            if tokens.total_input > row.start:
                rates = row
                break
        plain, read = (max(rates.input, rates.media_in), max(rates.read, rates.media_read)) if media else (rates.input, rates.read)
        return (
            tokens.plain * plain
            + tokens.read * read
            + tokens.write * rates.write
            + tokens.write_1h * rates.write_1h
            # Nobody reports how much of the output was audio or an image in one way, so a model that makes them is
            # billed at its dearest kind of output.
            + tokens.output * max(rates.output, rates.media_out)
            + tokens.reasoning * rates.reasoning
            + self.card.call
        )
