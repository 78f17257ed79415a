"""The price table: a slim copy of genai-prices and litellm's map in the wheel, read at first use and never at import.

An installed litellm that is newer than the copy adds its own map, read by path. Nothing goes over the network.
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wflo_nb.errors import PricingError, tell
from wflo_nb.pricing.names import family
from wflo_nb.pricing.rates import Card, dearest

if TYPE_CHECKING:
    from wflo_nb.pricing import litellm_map

#: Version of the layout of ``prices.json``.
FORMAT = 1
MAP_NAME = "model_prices_and_context_window_backup.json"
#: Releases that carried stolen credentials or are known to be broken: not even their data is read.
_BAD_LITELLM = re.compile(r"1\.82\.[78]$|1\.107\.")


class Source(NamedTuple):
    """Where prices come from."""

    name: str
    version: str
    date: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Entry:
    """All that the sources say about one id of one provider.

    Attributes:
        billed: cards of genai-prices with the ISO date from which each holds (empty: from ever), the newest last; else of litellm.
        listed: the card of the second source.
        regional: further cards for the same id (regions, other doors of the same provider): they count for bounds only.
        search_nano: nano-USD of one web search at most, None if unknown.
    """

    provider: str
    model: str
    source: Source
    billed: tuple[tuple[str, Card], ...]
    listed: tuple[Card, ...] = ()
    regional: tuple[Card, ...] = ()
    max_input: int | None = None
    max_output: int | None = None
    search_nano: int | None = None

    def billed_on(self, day: str) -> Card:
        """The card by which a call of that ISO day is billed."""
        return next((card for start, card in reversed(self.billed) if start <= day), self.billed[0][1])

    def cards(self, day: str) -> tuple[Card, ...]:
        """Every card that may hold on that day or later: what a bound has to cover."""
        later = tuple(card for start, card in self.billed if start > day)
        return (self.billed_on(day), *later, *self.listed, *self.regional)


@dataclass
class Table:
    """Prices by provider and id. Entries are decoded when asked for: a session uses few of thousands."""

    sources: tuple[Source, ...]
    _cards: list[dict[str, Any]]
    _models: dict[str, dict[str, Any]]
    _newer: dict[tuple[str, str], list[litellm_map.Entry]] = field(default_factory=dict)
    _newer_source: Source | None = None
    _families: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def providers(self) -> list[str]:
        """All providers with at least one price."""
        return list(self._models)

    def ids(self, provider: str) -> list[str]:
        """All ids of a provider."""
        return list(self._models.get(provider, ()))

    def hosts(self, model: str) -> list[str]:
        """The providers that list exactly this id."""
        return [provider for provider, models in self._models.items() if model in models]

    def siblings(self, provider: str, base: str) -> list[str]:
        """The dated ids of a base model that have prices of their own."""
        known = self._families.get(provider)
        if known is None:
            known = {}
            for name in self.ids(provider):
                short = family(name)
                if short:
                    known.setdefault(short, []).append(name)
            self._families[provider] = known
        return known.get(base, [])

    def entry(self, provider: str, model: str) -> Entry | None:
        """The entry of an exact id, None if there is none."""
        raw = self._models.get(provider, {}).get(model)
        if raw is None:
            return None
        if isinstance(raw, str):  # another spelling of that id
            model, raw = raw, self._models[provider][raw]
        return self._entry(provider, model, raw)

    def _card(self, number: int) -> Card:
        return Card.from_json(self._cards[number])

    def _entry(self, provider: str, model: str, raw: dict[str, Any]) -> Entry:
        genai, litellm = self.sources[:2]
        billed = [(start, self._card(number)) for start, number in raw.get("g", ())]
        listed = [self._card(raw["l"])] if "l" in raw else []
        regional = [self._card(number) for number in raw.get("b", ())]
        limits = {"i": [raw.get("i")], "o": [raw.get("o")], "s": [raw.get("s")]}
        source = genai if billed else litellm
        newer = self._newer.get((provider, model), ())
        if newer and self._newer_source is not None:
            regional += listed + [one.card for one in newer if one.regional]  # an older price still counts for the bound
            listed = [one.card for one in newer if not one.regional] or listed
            for one in newer:
                for key, value in (("i", one.max_input), ("o", one.max_output), ("s", one.search_nano)):
                    limits[key].append(value)
            source = source if billed else self._newer_source
        if not billed:  # known to litellm only; known by region only, the dearest region bills
            billed = [("", listed[0] if listed else dearest(regional))]
        tops = {key: max((value for value in values if value is not None), default=None) for key, values in limits.items()}
        return Entry(provider, model, source, tuple(billed), tuple(listed), tuple(regional), tops["i"], tops["o"], tops["s"])

    def add_litellm(self, entries: list[litellm_map.Entry], source: Source) -> None:
        """Adds a newer map of litellm: it replaces the older one for billing and joins it for bounds."""
        for one in entries:
            self._newer.setdefault((one.provider, one.model), []).append(one)
            models = self._models.setdefault(one.provider, {})
            if isinstance(models.get(one.model), str):
                models[one.model] = dict(models[models[one.model]])
            models.setdefault(one.model, {})
        self._newer_source = source
        self.sources = (*self.sources, source)
        self._families.clear()


def compact(table: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The layout of ``prices.json``: equal cards once, other spellings of an id as text. Used when the table is built."""
    numbers: dict[str, int] = {}

    def number(card: Card) -> int:
        return numbers.setdefault(json.dumps(card.as_json(), separators=(",", ":"), sort_keys=True), len(numbers))

    models: dict[str, dict[str, Any]] = {}
    for provider, entries in sorted(table.items()):
        for name, entry in sorted(entries.items()):
            of = entry.get("of", name)
            raw: dict[str, Any] | str = of
            if of == name or "l" in entry or "b" in entry:
                raw = {key: entry[key] for key in "ios" if entry.get(key) is not None}
                if "g" in entry:
                    raw["g"] = [[start, number(card)] for start, card in entry["g"]]
                if "l" in entry:
                    raw["l"] = number(entry["l"])
                if "b" in entry:
                    raw["b"] = sorted({number(card) for card in entry["b"]})
            models.setdefault(provider, {})[name] = raw
    return {"models": models, "cards": [json.loads(text) for text in numbers]}


_lock = threading.Lock()
_loaded: Table | None = None


def load() -> Table:
    """The table of this process, read once (some milliseconds; tens when a newer litellm is installed).

    Raises:
        PricingError: the table in the package is damaged.
    """
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                table = _read_own()
                _add_installed_litellm(table)
                _loaded = table
    return _loaded


def _read_own() -> Table:
    try:
        data = json.loads(Path(__file__).with_name("prices.json").read_bytes())
        sources = tuple(Source(one["name"], one["version"], one["date"]) for one in data["sources"])
        readable = data["format"] == FORMAT
        table = Table(sources, data["cards"], data["models"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PricingError(f"The price table of this installation cannot be read ({error}). Install wflo_nb again.") from error
    if not readable:
        raise PricingError(f"The price table of this installation has layout {data['format']}, expected {FORMAT}. Install wflo_nb again.")
    return table


def _add_installed_litellm(table: Table) -> None:
    """Adds the map of an installed litellm if it is newer than ours. One that cannot be read costs a warning and nothing else."""
    ours = next(source.version for source in table.sources if source.name == "litellm")
    try:
        spec = importlib.util.find_spec("litellm")  # finds the folder and runs none of its code
        if spec is None or spec.origin is None:
            return
        from importlib.metadata import version

        from wflo_nb.pricing import litellm_map

        theirs = version("litellm")
        if _BAD_LITELLM.match(theirs) or _order(theirs) <= _order(ours):
            return
        path = Path(spec.origin).with_name(MAP_NAME)
        # The map carries no date of its own; that of the file is the nearest truth.
        day = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
        entries, _ = litellm_map.read(json.loads(path.read_bytes()))
        if not entries:
            raise ValueError("it holds no price")  # noqa: TRY301 - told like every other fault of the file
    except Exception as error:
        tell(f"The price map of the installed litellm cannot be read ({type(error).__name__}: {error}); prices come from litellm {ours}.")
        return
    table.add_litellm(entries, Source("litellm", theirs, day))


def _order(version: str) -> tuple[int, ...]:
    """A version as numbers, enough to tell which of two releases is newer."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
