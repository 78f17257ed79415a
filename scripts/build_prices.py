"""Builds the price table of the wheel from the installed genai-prices and a copy of litellm's price map.

    python scripts/build_prices.py MAP.json --litellm-version 1.106.2 --litellm-date 2026-10-21 --genai-date 2026-11-10

MAP.json is `litellm/model_prices_and_context_window_backup.json` out of a litellm wheel; litellm is never imported. The dates
are those of the two releases. The same input gives the same bytes. What is left out, and where the sources disagree, is printed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genai_prices import types as genai
from genai_prices.data import providers as genai_providers

from wflo_nb.pricing import litellm_map
from wflo_nb.pricing.names import canonical_provider
from wflo_nb.pricing.rates import STANDARD, Card, Row, resolved
from wflo_nb.pricing.table import FORMAT, compact

TABLE = Path(__file__).parent.parent / "wflo_nb" / "pricing" / "prices.json"
FORBIDDEN = ("1.82.7", "1.82.8", "1.107.")
CLASSES = {
    "input": ("input_mtok",),
    "output": ("output_mtok",),
    "read": ("cache_read_mtok",),
    "write": ("cache_write_mtok",),
    "write_1h": ("cache_write_1h_mtok",),
    "reasoning": ("output_reasoning_mtok",),
    "media_in": ("input_audio_mtok", "input_image_mtok", "input_video_mtok"),
    "media_out": ("output_audio_mtok", "output_image_mtok", "output_video_mtok"),
    "media_read": ("cache_audio_read_mtok", "cache_image_read_mtok"),
}
OTHER_UNITS = ("audio_hours", "input_audio_hours", "input_mchars", "input_document_kpages", "input_text_messages_kcount")
READS_ONLY = re.compile(r"embed|bge-|gte-|e5-|voyage-")
Dropped = dict[str, list[str]]


def pico(usd_per_million: Decimal) -> int:
    found = litellm_map.pico_per_token(usd_per_million / 1_000_000)
    assert found is not None
    return found


def contexts(model: genai.ModelInfo) -> Iterator[tuple[str, dict[str, str]]]:
    """The service tiers for which a model has prices of its own, each with genai-prices' way to ask for it."""
    yield STANDARD, {}
    for variant in model.price_variants or []:
        (key, value), *more = sorted(variant.when.items())
        if not more and value != "default":
            yield (value if key in ("service_tier", "processing", "speed") else f"{key}:{value}"), {key: value}


def starts_later(model: genai.ModelInfo, today: date) -> list[date]:
    rules: list[Any] = [*(model.prices if isinstance(model.prices, list) else []), *(model.price_variants or [])]
    limits = [rule.constraint for rule in rules if isinstance(rule.constraint, genai.StartDateConstraint)]
    return sorted({limit.start_date for limit in limits if limit.start_date > today})


def moments(model: genai.ModelInfo, day: date) -> list[datetime]:
    """Times of that day at which a price may differ: the bounds of its daily windows."""
    times = {time(0)}
    for rule in model.prices if isinstance(model.prices, list) else []:
        if isinstance(rule.constraint, genai.TimeOfDateConstraint):
            times |= {rule.constraint.start_time.replace(tzinfo=None), rule.constraint.end_time.replace(tzinfo=None)}
    return [datetime.combine(day, moment, UTC) for moment in sorted(times)]


def at_input(price: Decimal | genai.TieredPrices, start: int) -> Decimal:
    """The rate for an input of just more than `start` tokens."""
    if isinstance(price, Decimal):
        return price
    return next((tier.price for tier in reversed(price.tiers) if tier.start <= start), price.base)


def edges(price: Decimal | genai.TieredPrices | None) -> set[int]:
    return {tier.start for tier in price.tiers} if isinstance(price, genai.TieredPrices) else set()


def rate(prices: list[genai.ModelPrice], keys: tuple[str, ...], start: int) -> int | None:
    found = [pico(at_input(price, start)) for some in prices for key in keys if (price := getattr(some, key)) is not None]
    return max(found) if found else None


def genai_card(provider: str, model: genai.ModelInfo, day: date) -> Card | str:
    """The card of a model on a day, the dearest of its hours; or why it has none."""
    tiers: dict[str, tuple[Row, ...]] = {}
    call = 0
    for tier, context in contexts(model):
        prices = [model.get_prices(moment, context) for moment in moments(model, day)]
        if any(getattr(some, unit) is not None for some in prices for unit in OTHER_UNITS):
            return "priced by other units than tokens"
        if not any(value is not None for some in prices for value in some.__dict__.values()):
            if provider == "openrouter" and model.id.endswith(":free"):  # the only place where that suffix means something
                tiers[tier] = (Row(0, 0, 0),)
                continue
            return "zero price from a provider that is not free"
        starts = sorted({0}.union(*(edges(getattr(some, key)) for some in prices for keys in CLASSES.values() for key in keys)))
        rows = []
        for start in starts:
            by_class = {name: rate(prices, keys, start) for name, keys in CLASSES.items()}
            if not by_class["input"]:
                return "no input price"
            if not by_class["output"] and not READS_ONLY.search(model.id.lower()):
                return "no output price"
            by_class["output"] = by_class["output"] or 0
            if max(value or 0 for value in by_class.values()) > litellm_map.ABSURD_PICO:
                return "absurd price"
            rows.append(Row(start, **by_class))  # type: ignore[arg-type]
        tiers[tier] = tuple(rows)
        call = max([call, *(pico(at_input(some.requests_kcount, 0)) * 1000 for some in prices if some.requests_kcount is not None)])
    return Card(tiers, call)


def dated_cards(provider: str, model: genai.ModelInfo, day: date) -> list[tuple[str, Card]] | str:
    """The card of a day and those announced for later days; or why there is none."""
    cards: list[tuple[str, Card]] = []
    for start in [day, *starts_later(model, day)]:
        card = genai_card(provider, model, start)
        if isinstance(card, str):
            return card
        cards.append(("" if start == day else start.isoformat(), card))
    return cards


def search_nano(model: genai.ModelInfo, day: date) -> int | None:
    price = model.get_prices(datetime.combine(day, time(0), UTC)).web_searches_kcount
    return None if price is None else pico(at_input(price, 0))  # USD per 1,000 × 1e6 = nano-USD per search


def literals(rule: Any) -> Iterator[str]:
    for part in getattr(rule, "or_", None) or getattr(rule, "and_", None) or []:
        yield from literals(part)
    if isinstance(rule, genai.ClauseEquals):
        yield rule.equals.lower()
    for name in ("starts_with", "ends_with", "contains"):
        text = getattr(rule, name, None)
        # A stem such as "claude-sonnet-4-2025" is not an id; what it stands for is found through its date.
        if text and text[-1] not in "-@:/." and not re.search(r"-20\d\d$", text):
            yield text.lower()


def ids(provider: genai.Provider, model: genai.ModelInfo) -> list[str]:
    """Every plain id by which genai-prices finds this model and no other."""
    return sorted({text for text in [model.id.lower(), *literals(model.match)] if provider.find_model(text) is model})


def add_genai(table: dict[str, dict[str, Any]], day: date, dropped: Dropped) -> None:
    for provider in genai_providers:
        models = table.setdefault(canonical_provider(provider.id), {})
        for model in provider.models:
            names = ids(provider, model)
            cards = dated_cards(provider.id, model, day)
            if isinstance(cards, str):
                dropped[cards].append(f"{provider.id}/{model.id}")
                continue
            if not names:
                dropped["no plain id, found by a pattern only"].append(f"{provider.id}/{model.id}")
            for name in names:
                entry = models.setdefault(name, {})
                entry["g"] = cards
                entry["i"], entry["s"] = model.context_window, search_nano(model, day)
                entry["of"] = model.id.lower() if model.id.lower() in names else names[0]


def add_litellm(table: dict[str, dict[str, Any]], data: dict[str, Any], dropped: Dropped) -> None:
    entries, refused = litellm_map.read(data)
    for reason, keys in refused.items():
        dropped[reason] += keys
    for one in entries:
        entry = table.setdefault(one.provider, {}).setdefault(one.model, {})
        if one.regional or "l" in entry:
            entry.setdefault("b", []).append(one.card)
        else:
            entry["l"] = one.card
        for key, value in (("i", one.max_input), ("o", one.max_output), ("s", one.search_nano)):
            entry[key] = max(filter(None, (entry.get(key), value)), default=None)


def add_patterns(table: dict[str, dict[str, Any]], day: date) -> None:
    """Ids that only litellm spells out, but that genai-prices knows by a pattern (dated snapshots, bedrock versions).

    Where the two agree on a short call, genai-prices bills, with its tiers; otherwise the exact id is better than the pattern.
    """
    for provider in genai_providers:
        for name, entry in table[canonical_provider(provider.id)].items():
            model = None if "g" in entry or "l" not in entry else provider.find_model(name)
            cards = dated_cards(provider.id, model, day) if model else ""
            if isinstance(cards, str):
                continue
            if cards[0][1].tiers[STANDARD][0][:3] == entry["l"].tiers[STANDARD][0][:3]:
                entry["g"] = cards
            else:
                entry.setdefault("b", []).extend(card for _, card in cards)


def disagreements(table: dict[str, dict[str, Any]]) -> Iterator[str]:
    for provider, models in sorted(table.items()):
        for name, entry in sorted(models.items()):
            if "g" in entry and "l" in entry:
                ours, theirs = (resolved(card.tiers[STANDARD][-1]) for card in (entry["g"][0][1], entry["l"]))
                if ours[1:3] != theirs[1:3]:
                    text = " against ".join(f"{a.input / 1e6:g}/{a.output / 1e6:g}" for a in (ours, theirs))
                    yield f"{provider}/{name}: {text} USD per million (genai-prices against litellm, largest tier)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("--litellm-version", required=True)
    parser.add_argument("--litellm-date", required=True, type=date.fromisoformat)
    parser.add_argument("--genai-date", required=True, type=date.fromisoformat)
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    if args.litellm_version.startswith(FORBIDDEN):
        parser.error(f"litellm {args.litellm_version} is a known-bad release")
    table: dict[str, dict[str, Any]] = {}
    dropped: Dropped = defaultdict(list)
    add_genai(table, args.genai_date, dropped)
    add_litellm(table, json.loads(args.map.read_text(), parse_float=Decimal), dropped)
    add_patterns(table, args.genai_date)
    sources = [
        {"name": "genai-prices", "version": version("genai-prices"), "date": args.genai_date.isoformat()},
        {"name": "litellm", "version": args.litellm_version, "date": args.litellm_date.isoformat()},
    ]
    text = json.dumps({"format": FORMAT, "sources": sources, **compact(table)}, separators=(",", ":"), sort_keys=True)
    args.out.write_text(text + "\n")
    for reason, keys in sorted(dropped.items()):
        print(f"left out, {reason}: {len(keys)}: {', '.join(sorted(keys)[:6])}{' …' if len(keys) > 6 else ''}")
    differences = list(disagreements(table))
    print(f"the sources disagree on {len(differences)} models:", *differences, sep="\n  ")
    print(f"{sum(map(len, table.values()))} ids of {sum(map(bool, table.values()))} providers, {len(text):,} bytes → {args.out.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
