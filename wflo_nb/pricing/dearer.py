"""One price for a call that two budgets with different prices of its model pay: what is dearer counts, rate by rate.

A block may declare a price of its own. The cap around it was promised by another table, and must hold by that one, too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from decimal import Decimal
from itertools import chain

from wflo_nb.model import Cost, Usage
from wflo_nb.pricing.price import ModelPrice
from wflo_nb.pricing.rates import Bound

_MANY = 1_000_000


def dearer(price: ModelPrice, other: ModelPrice) -> ModelPrice:
    """A price that is never below any of the two, in its bounds and in its costs. `price` itself, if they are the same."""
    if price is other or "declared" not in (price.source, other.source) or price == other:
        return price
    above = max(price, other, key=lambda one: one.upper_bound(_MANY, _MANY))
    a, b = price.basis, other.basis
    basis = replace(
        a,
        usual=_joined(a.usual, b.usual),
        standard=_joined(a.standard, b.standard),
        any_tier=_joined(a.any_tier, b.any_tier),
        call=max(a.call, b.call),
        uplift=max(a.uplift, b.uplift),
        free=a.free and b.free,
    )
    given = {f.name: getattr(price, f.name) for f in fields(ModelPrice) if f.init}
    given.update(
        source=above.source,
        date=above.date,
        max_input_tokens=_most(price.max_input_tokens, other.max_input_tokens),
        max_output_tokens=price.max_output_tokens or other.max_output_tokens,
        search_nano=_most(price.search_nano, other.search_nano),
        basis=basis,
    )
    return _Dearer(**given, both=(price, other))


def _most(one: int | None, other: int | None) -> int | None:
    return max((n for n in (one, other) if n is not None), default=None)


def _joined(one: tuple[Bound, ...], other: tuple[Bound, ...]) -> tuple[Bound, ...]:
    starts = sorted({row.start for row in chain(one, other)})
    return tuple(Bound(start, *map(max, zip(_above(one, start)[1:], _above(other, start)[1:], strict=True))) for start in starts)


def _above(rows: tuple[Bound, ...], start: int) -> Bound:
    return next((row for row in reversed(rows) if row.start <= start), rows[0])


@dataclass(frozen=True, slots=True)
class _Dearer(ModelPrice):
    both: tuple[ModelPrice, ...] = ()

    def cost(self, usage: Usage, *, service_tier: str | None = None, regional: bool = False, media: bool = False) -> Cost:
        costs = (price.cost(usage, service_tier=service_tier, regional=regional, media=media) for price in self.both)
        return max(costs, key=lambda cost: cost.nano_usd)

    @property
    def knows_media(self) -> bool:
        return all(price.knows_media for price in self.both)

    def per_million(self) -> dict[str, Decimal]:
        rates = [price.per_million() for price in self.both]
        return {name: max(one[name] for one in rates) for name in rates[0]}
