"""From the names in a request to a price of the table: exact ids first, then safe other spellings, never a guess."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from wflo_nb.pricing import units
from wflo_nb.pricing.names import FREE_PROVIDERS, MAKERS, RESELLS, canonical_provider, family, spellings
from wflo_nb.pricing.price import Basis, ModelPrice
from wflo_nb.pricing.rates import STANDARD, Card, Row, dearest, filled, resolved
from wflo_nb.pricing.table import Entry, Table, load


def flat(provider: str, model: str, source: str, date: str, row: Row) -> ModelPrice:
    """A price that knows no tiers."""
    return ModelPrice(provider, model, source, date, matched=model, basis=Basis.of(Card({STANDARD: (row,)})))


def from_table(provider: str, model: str, day: str) -> ModelPrice | None:
    """The price of a model on an ISO day, None if the table has none."""
    known = canonical_provider(provider)
    if known in FREE_PROVIDERS and not model.lower().endswith("cloud"):  # …:cloud and …-cloud run elsewhere, on somebody's bill
        return flat(provider, model, "local", day, Row(0, 0, 0))
    table = load()
    if not table.ids(known):
        return _anywhere(table, provider, model, day) or _by_unit(provider, "", model)
    for place in (known, *RESELLS.get(known, ())):
        hit = _at(table, place, model)
        if hit is not None:
            entry, kin = hit
            return _priced(provider, model, entry, _bill(entry, day), [entry, *kin], day)
    return _by_unit(provider, known, model)


def _by_unit(provider: str, known: str, model: str) -> ModelPrice | None:
    found = next((unit for name in spellings(known, model) if (unit := units.find(known, name)) is not None), None)
    if found is None:
        return None
    price = flat(provider, model, units.SOURCE, units.DATE, Row(0, 0, 0))
    return replace(price, unit=found.name, unit_nano=found.nano)


def near(provider: str, model: str) -> tuple[str, ...]:
    """Known ids that an unknown one may have meant: of the same provider, else by whoever lists the id, else of the makers."""
    import difflib

    table = load()
    ids = table.ids(canonical_provider(provider))
    if not ids:
        listed = [f"{entry.provider}/{entry.model}" for entry in _listed(table, model)]
        if listed:
            return tuple(listed[:3])
        ids = [name for one in MAKERS for name in table.ids(one)]
    name = model.lower()
    return tuple(difflib.get_close_matches(name, ids, n=3) or difflib.get_close_matches(name.rpartition("/")[2], ids, n=3))


def _at(table: Table, provider: str, model: str) -> tuple[Entry, list[Entry]] | None:
    """The entry of a model at a provider, and those so close to it by name that a bound has to cover them."""
    names = list(dict.fromkeys(spellings(provider, model)))
    for name in names:
        entry = table.entry(provider, name)
        if entry is not None:
            # Without its region an id may stand for any region.
            kin = [other for other in table.ids(provider) if other.endswith(f".{name}")] if provider == "bedrock" else []
            return entry, _entries(table, provider, kin)
    for name in names:  # a snapshot newer than the table: as its family, bounded by the dearest snapshot of the family
        base = family(name)
        entry = table.entry(provider, base) if base else None
        if base and entry is not None:
            return entry, _entries(table, provider, table.siblings(provider, base))
    return None


def _entries(table: Table, provider: str, names: Iterable[str]) -> list[Entry]:
    return [entry for name in names if (entry := table.entry(provider, name)) is not None]


def _bill(entry: Entry, day: str) -> Card:
    card = entry.billed_on(day)
    for listed in entry.listed:
        card = filled(card, listed)
    return card


def _priced(provider: str, model: str, entry: Entry, bill: Card, covered: Sequence[Entry], day: str) -> ModelPrice:
    cards = [card for one in covered for card in one.cards(day)]
    searches = [one.search_nano for one in covered if one.search_nano is not None]
    source = entry.source
    limits = (entry.max_input, entry.max_output)
    return ModelPrice(
        provider, model, str(source), source.date, *limits, entry.model, max(searches, default=None), basis=Basis.of(bill, cards)
    )


def _listed(table: Table, model: str) -> list[Entry]:
    """Everybody who lists an id, also as gateways write it (openai/gpt-4o)."""
    places = {(host, name) for name in spellings("", model) for host in table.hosts(name)}
    maker, slash, rest = model.lower().partition("/")
    if slash:
        places |= {(canonical_provider(maker), name) for name in spellings("", rest)}
    return [entry for host, name in sorted(places) if (entry := table.entry(host, name)) is not None]


def _anywhere(table: Table, provider: str, model: str, day: str) -> ModelPrice | None:
    """The price of an id at a host that the table does not know.

    It is accepted when a maker of models lists it or when all who list it agree, and bounded by the dearest of all. A gateway
    passes the maker's price on; but where other hosts ask clearly more, anybody may serve the model, so the dearest bills too.
    A free offer of one host says nothing about another.
    """
    entries = [entry for entry in _listed(table, model) if entry.billed_on(day).tiers[STANDARD][0].input > 0]
    makers = [entry for entry in entries if entry.provider in MAKERS]
    agreed = len({resolved(entry.billed_on(day).tiers[STANDARD][0])[1:3] for entry in entries}) == 1
    if not makers and not agreed:
        return None
    bill, most = (dearest([_bill(entry, day) for entry in some]) for some in (makers or entries, entries))
    ours, theirs = (resolved(card.tiers[STANDARD][0]) for card in (bill, most))
    if 4 * theirs.input > 5 * ours.input or 4 * theirs.output > 5 * ours.output:
        bill = most
    return _priced(provider, model, (makers or entries)[0], bill, entries, day)
