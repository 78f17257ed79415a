"""No call within its bound can cost more than the bound, for everything in the table."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wflo_nb.model import Usage
from wflo_nb.pricing.book import PriceBook
from wflo_nb.pricing.price import ModelPrice
from wflo_nb.pricing.table import load

TIERS = [None, "default", "auto", "priority", "flex", "batch", "fast", "ultrafast", "something new"]


#: Tiers that nobody gets without asking for them by name, so that they do not count for requests that name none.
BY_NAME_ONLY = {"ultrafast", "fast"}


def usage_within(rng: random.Random, input_tokens: int, output_tokens: int) -> Usage:
    total = rng.choice([input_tokens, rng.randint(0, input_tokens)])
    read = rng.choice([0, total, rng.randint(0, total)])
    write = rng.choice([0, total - read, rng.randint(0, total - read)])
    output = rng.choice([output_tokens, rng.randint(0, output_tokens)])
    return Usage(total, output, read, write, rng.choice([0, write, rng.randint(0, write)]), rng.randint(0, output))


def all_prices() -> Iterator[ModelPrice]:
    book, table = PriceBook(), load()
    for provider in table.providers():
        for name in table.ids(provider):
            yield book.find(provider, name)


def test_the_bound_covers_every_cost_of_every_model_in_the_table() -> None:
    rng, checked = random.Random(7), 0
    for price in all_prices():
        for _ in range(4):
            size = rng.choice([rng.randint(0, 2_000), rng.randint(0, 1_500_000), 128_001, 200_000, 200_001, 272_001])
            cap = rng.randint(0, 130_000)
            usage = usage_within(rng, size, cap)
            tier, media = rng.choice(TIERS), rng.random() < 0.3
            bound = price.upper_bound(size, cap, media=media, service_tier="whatever there is")
            cost = price.cost(usage, service_tier=tier, regional=True, media=media).nano_usd
            assert 0 <= cost <= bound, (price.provider, price.model, size, cap, usage, tier, media)
            ordinary = price.upper_bound(size, cap, service_tier="default", regional=False)
            assert (
                price.cost(usage, service_tier=rng.choice([None, "default", "flex", "batch"])).nano_usd
                <= ordinary
                <= price.upper_bound(size, cap)
            )
            checked += 1
    assert checked > 20_000


def test_the_bound_of_a_request_that_names_no_tier_covers_every_tier_it_may_be_billed_at() -> None:
    rng, checked = random.Random(13), 0
    for price in all_prices():
        size, cap = rng.choice([rng.randint(1, 5_000), rng.randint(1, 1_200_000)]), rng.randint(1, 60_000)
        for asked in (None, "auto"):
            bound = price.upper_bound(size, cap, service_tier=asked)
            for tier in [None, "default", "standard", *sorted(price.basis.bill.card.tiers.keys() - BY_NAME_ONLY)]:
                usage = usage_within(rng, size, cap)
                assert price.cost(usage, service_tier=tier, regional=True).nano_usd <= bound, (price.provider, price.model, tier, usage)
                checked += 1
    assert checked > 30_000


def test_no_tier_gives_away_what_is_paid_for_in_the_ordinary_one() -> None:
    for price in all_prices():
        paid = {kind for kind in ("input", "output") if price.per_million()[kind] > 0}
        for tier in price.basis.bill.card.tiers:
            for kind, usage in (("input", Usage(1_000_000, 0)), ("output", Usage(0, 1_000_000))):
                if kind in paid:
                    assert price.cost(usage, service_tier=tier).nano_usd > 0, (price.provider, price.model, tier, kind)


def test_the_numbers_behind_a_bound_make_it_up() -> None:
    rng = random.Random(17)
    for price in rng.sample(list(all_prices()), 500):
        size, cap, media = rng.randint(0, 400_000), rng.randint(0, 9_000), rng.random() < 0.5
        tier, regional = rng.choice(TIERS), rng.random() < 0.5
        into, out, call, surcharge = price.dearest(size, service_tier=tier, media=media, regional=regional)
        told = -(-(size * into + cap * out + call) * surcharge // 1_000_000)
        assert told == price.upper_bound(size, cap, service_tier=tier, media=media, regional=regional)


@pytest.mark.parametrize(
    ("provider", "model", "known"),
    [("openai", "gpt-audio", True), ("openai", "gpt-4o-audio-preview", False), ("openai", "gpt-4o", False)],
)
def test_rates_for_audio_are_known_or_not(shared_book: PriceBook, provider: str, model: str, known: bool) -> None:
    assert shared_book.find(provider, model).knows_media is known


def test_declared_price_stands_for_audio_too(book: PriceBook) -> None:
    assert book.declare("hears", input=40, output=80).knows_media


def test_the_bound_never_falls_when_tokens_are_added() -> None:
    rng = random.Random(11)
    for price in rng.sample(list(all_prices()), 800):
        size, cap = rng.randint(0, 400_000), rng.randint(0, 50_000)
        more = price.upper_bound(size + rng.randint(0, 200_000), cap + rng.randint(0, 1_000))
        assert price.upper_bound(size, cap) <= more


def test_no_price_in_the_table_is_absurd_or_free_by_accident() -> None:
    for price in all_prices():
        rates = price.per_million()
        assert max(rates.values()) <= 1_000, price
        if price.is_free:
            assert price.provider == "openrouter" and price.model.endswith(":free"), price
        else:
            assert rates["input"] > 0, price
        assert price.max_output_tokens is None or price.max_output_tokens > 0


@settings(max_examples=300, deadline=None)
@given(
    model=st.sampled_from(
        [
            ("openai", "gpt-4o"),
            ("openai", "gpt-5.4"),
            ("anthropic", "claude-sonnet-4-5"),
            ("google", "gemini-2.5-pro"),
            ("perplexity", "sonar"),
        ]
    ),
    nano=st.integers(0, 50_000_000_000),
    size=st.integers(0, 600_000),
    choices=st.integers(1, 8),
    tier=st.sampled_from([None, "default"]),
)
def test_affordable_output_is_the_most_that_fits(
    shared_book: PriceBook, model: tuple[str, str], nano: int, size: int, choices: int, tier: str | None
) -> None:
    price = shared_book.find(*model)
    most = price.affordable_output(nano, size, choices, service_tier=tier)

    if most >= 0:
        assert price.upper_bound(size, most * choices, service_tier=tier) <= nano
    else:
        assert price.upper_bound(size, 0, service_tier=tier) > nano
    assert price.upper_bound(size, max(0, most + 1) * choices, service_tier=tier) > nano


def test_affordable_output_is_the_models_maximum_when_output_is_free(book: PriceBook) -> None:
    price = book.declare("half-free", input=1, output=0, max_output_tokens=4096)
    assert price.affordable_output(1_000_000, 1_000) == 4096
    assert price.affordable_output(999_999, 1_000) < 0
    assert book.find("ollama", "llama3.1").affordable_output(0, 10**6) > 10**9


@pytest.mark.parametrize(
    ("provider", "model", "size", "nano"),
    [
        ("openai", "gpt-4o", 1_000, 4_250_000),  # priority input at 4.25
        ("anthropic", "claude-sonnet-4-5", 200_000, 1_200_000_000),  # one-hour cache writes at 6
        ("anthropic", "claude-sonnet-4-5", 200_001, 2_400_012_000),  # the long-context tier doubles them
        ("openai", "gpt-5.4", 1_000, 5_500_000),  # priority input at 5, ten per cent for a region
        ("deepseek", "deepseek-chat", 1_000_000, 280_000_000),  # the dearer source, at its dearest hour
    ],
)
def test_bounds_of_known_models(shared_book: PriceBook, provider: str, model: str, size: int, nano: int) -> None:
    assert shared_book.find(provider, model).upper_bound(size, 0) == nano
