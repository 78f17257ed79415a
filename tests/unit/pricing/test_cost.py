"""The arithmetic of a bill, by hand."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wflo_nb.model import Usage
from wflo_nb.pricing.book import PriceBook
from wflo_nb.pricing.price import Basis, ModelPrice
from wflo_nb.pricing.rates import STANDARD, Biller, Card, Row, bounds, dearest, filled, split
from wflo_nb.pricing.table import Entry, Source


def priced(**tiers: list[Row]) -> ModelPrice:
    card = Card({tier: tuple(rows) for tier, rows in tiers.items()})
    return ModelPrice("test", "model", "test 1", "2026-01-01", basis=Basis.of(card))


def test_every_class_of_tokens_is_billed_once_at_its_own_rate() -> None:
    price = priced(standard=[Row(0, 3_000_000, 15_000_000, 300_000, 3_750_000, 6_000_000, 20_000_000)])
    usage = Usage(1_000, 100, cache_read_tokens=500, cache_write_tokens=300, cache_write_1h_tokens=200, reasoning_tokens=40)

    by_hand = 200 * 3_000 + 500 * 300 + 100 * 3_750 + 200 * 6_000 + 60 * 15_000 + 40 * 20_000
    assert price.cost(usage).nano_usd == by_hand


def test_rounding_is_up_and_once_per_call() -> None:
    price = priced(standard=[Row(0, 1, 1)])
    assert price.cost(Usage(0, 0)).nano_usd == 0
    assert price.cost(Usage(1, 0)).nano_usd == 1
    assert price.cost(Usage(999, 1)).nano_usd == 1
    assert price.cost(Usage(1_000, 1)).nano_usd == 2


def test_a_cost_says_where_its_price_comes_from(shared_book: PriceBook) -> None:
    cost = shared_book.find("openai", "gpt-4o").cost(Usage(1_000_000, 100_000))
    assert cost.usd == Decimal("3.5")
    assert cost.price_source.startswith("genai-prices ") and cost.price_date.startswith("20")


@pytest.mark.parametrize(
    ("model", "size", "usd"),
    [
        ("claude-sonnet-4-5", 200_000, "0.6"),
        ("claude-sonnet-4-5", 200_001, "1.200006"),
        ("claude-haiku-5-5", 100_000, "0.01"),
        ("claude-haiku-5-5", 100_001, "0.0500005"),
    ],
)
def test_the_whole_call_is_billed_at_the_tier_of_its_input(shared_book: PriceBook, model: str, size: int, usd: str) -> None:
    assert shared_book.find("anthropic", model).cost(Usage(size, 0)).usd == Decimal(usd)


def test_cached_input_counts_for_the_tier(shared_book: PriceBook) -> None:
    price = shared_book.find("anthropic", "claude-sonnet-4-5")
    assert price.cost(Usage(200_001, 0, cache_read_tokens=200_001)).usd == Decimal("0.1200006")


def test_an_hour_in_the_cache_costs_more_than_five_minutes(shared_book: PriceBook) -> None:
    price = shared_book.find("anthropic", "claude-sonnet-4-5")
    assert price.cost(Usage(1_000_000 // 10, 0, cache_write_tokens=100_000)).usd == Decimal("0.375")
    assert price.cost(Usage(1_000_000 // 10, 0, cache_write_tokens=100_000, cache_write_1h_tokens=100_000)).usd == Decimal("0.6")


def test_an_unknown_service_tier_is_the_dearest_one(shared_book: PriceBook) -> None:
    price, usage = shared_book.find("openai", "gpt-4o"), Usage(1_000, 1_000)
    ordinary = price.cost(usage).nano_usd
    assert {price.cost(usage, service_tier=tier).nano_usd for tier in ("default", "auto", "standard", "DEFAULT", "")} == {ordinary}
    assert price.cost(usage, service_tier="priority").nano_usd == 4_250_000 + 17_000_000
    assert price.cost(usage, service_tier="platinum").nano_usd == 4_250_000 + 17_000_000
    assert price.cost(usage, service_tier="batch").nano_usd == ordinary // 2


def test_tiers_that_must_be_asked_for_by_name_count_only_when_they_are() -> None:
    price = priced(standard=[Row(0, 10_000, 10_000)], priority=[Row(0, 20_000, 20_000)], ultrafast=[Row(0, 60_000, 60_000)])
    assert price.upper_bound(100, 0) == price.upper_bound(100, 0, service_tier="auto") == 2_000
    assert price.upper_bound(100, 0, service_tier="default") == price.upper_bound(100, 0, service_tier="flex") == 1_000
    assert price.upper_bound(100, 0, service_tier="ultrafast") == price.upper_bound(100, 0, service_tier="new") == 6_000
    assert price.cost(Usage(100, 0), service_tier="fast").nano_usd == 2_000


def test_prices_by_the_hour_are_billed_at_the_dearest_hour(shared_book: PriceBook) -> None:
    cost = shared_book.find("deepseek", "deepseek-chat").cost(Usage(1_000_000, 1_000_000, cache_read_tokens=500_000))
    assert cost.usd == Decimal("0.135") + Decimal("0.035") + Decimal("1.1")


def test_a_model_that_speaks_is_billed_as_if_all_of_its_answer_were_speech(shared_book: PriceBook) -> None:
    assert shared_book.find("openai", "gpt-audio").cost(Usage(0, 1_000_000)).usd == Decimal(64)


def test_media_in_the_input_is_billed_at_the_dearest_kind(shared_book: PriceBook) -> None:
    price = shared_book.find("gcp.gemini", "gemini-2.5-flash")
    assert price.cost(Usage(1_000_000, 0)).usd == Decimal("0.3")
    assert price.cost(Usage(1_000_000, 0), media=True).usd == Decimal(1)


def test_media_out_of_a_cache_is_billed_at_the_dearest_kind_of_cached_input(shared_book: PriceBook) -> None:
    price = shared_book.find("gcp.gemini", "gemini-2.5-flash")
    usage = Usage(1_000_000, 0, 1_000_000)
    assert price.cost(usage).usd == Decimal("0.03")
    assert price.cost(usage, media=True).usd == Decimal("0.1")


@pytest.mark.parametrize(
    ("row", "rate"),
    [
        (Row(0, 10, 20, 1, media_in=30), 30),  # how much less it costs out of a cache nobody says
        (Row(0, 10, 20, 1, media_in=30, media_read=3), 3),
        (Row(0, 10, 20, 1, media_in=10), 1),
        (Row(0, 10, 20, 1), 1),
        (Row(0, 10, 20), 10),
        (Row(0, 10, 20, 1, media_read=40), 40),
    ],
)
def test_cached_media_of_unknown_rate_is_like_text_only_where_other_media_is(row: Row, rate: int) -> None:
    price = priced(standard=[row])
    usage = Usage(1_000_000, 0, 1_000_000)
    assert price.cost(usage, media=True).nano_usd == rate * 1_000
    assert price.upper_bound(1_000_000, 0, media=True) >= rate * 1_000


def test_a_call_pinned_to_a_region_costs_more(shared_book: PriceBook) -> None:
    price = shared_book.find("openai", "gpt-5.4")
    assert price.cost(Usage(1_000, 0)).nano_usd == 2_500_000
    assert price.cost(Usage(1_000, 0), regional=True).nano_usd == 2_750_000


def test_an_announced_price_bills_from_its_day_and_bounds_before_it() -> None:
    now, later = (Card({STANDARD: (Row(0, rate, rate),)}) for rate in (10, 20))
    entry = Entry("test", "model", Source("test", "1", "2026-01-01"), (("", now), ("2026-12-01", later)))

    assert entry.billed_on("2026-11-30") == now and entry.billed_on("2026-12-01") == later
    assert bounds(dearest(entry.cards("2026-11-30"))) == bounds(dearest(entry.cards("2026-12-01"))) == bounds(later)


def test_some_models_charge_per_call(shared_book: PriceBook) -> None:
    price = shared_book.find("perplexity", "sonar")
    assert price.cost(Usage(0, 0)).nano_usd > 0
    assert price.upper_bound(0, 0) >= price.cost(Usage(0, 0)).nano_usd


counts = st.integers(-1_000, 5_000)


@given(usage=st.builds(Usage, counts, counts, counts, counts, counts, counts))
def test_usage_that_contradicts_itself_never_costs_less_than_its_honest_parts(usage: Usage) -> None:
    price = priced(standard=[Row(0, 3_000_000, 15_000_000, 300_000, 3_750_000, 6_000_000)])
    tokens = split(usage)
    parts = (tokens.plain, tokens.read, tokens.write, tokens.write_1h, tokens.output, tokens.reasoning)
    cost = price.cost(usage).nano_usd

    assert min(parts) >= 0
    assert tokens.plain + tokens.read + tokens.write + tokens.write_1h == tokens.total_input >= usage.input_tokens
    assert cost >= price.cost(Usage(0, usage.output_tokens)).nano_usd
    assert cost >= max(0, usage.cache_read_tokens) * 300
    assert cost >= max(0, usage.cache_write_tokens) * 3_750


seldom = st.just(0) | counts


@given(usage=st.builds(Usage, counts, counts, seldom, seldom, seldom, seldom), media=st.booleans())
def test_a_cost_is_that_of_its_tier_and_the_dearest_where_that_is_not_known(usage: Usage, media: bool) -> None:
    bill = Biller(Card({STANDARD: (Row(0, 10, 20, 1, 13, 16, 25, 30, 40),), "long": (Row(0, 10, 20), Row(100, 20, 30))}, call=7))
    for tier in (STANDARD, "long", None):
        rows = [bill.tiers[tier]] if tier else bill.tiers.values()
        assert bill.pico(usage, tier, media=media) == max(bill._at(some, split(usage), media) for some in rows)


def test_a_part_larger_than_its_whole_is_added_to_it() -> None:
    assert split(Usage(10, 0, cache_read_tokens=100)).total_input == 110
    assert split(Usage(0, 5, reasoning_tokens=7)).output == 5
    assert split(Usage(0, 5, reasoning_tokens=7)).reasoning == 7
    assert split(Usage(100, 0, cache_write_1h_tokens=50)).write_1h == 50
    assert split(Usage(100, -3, cache_read_tokens=-100)).plain == 100


def test_the_dearest_card_is_no_cheaper_than_any_of_its_cards_anywhere() -> None:
    tiered = Card({STANDARD: (Row(0, 10, 20, 1), Row(1_000, 5, 50, 30))})
    plain = Card({STANDARD: (Row(0, 7, 30),), "priority": (Row(0, 40, 60),)}, call=9, uplift=1_100)
    top = dearest([tiered, plain])

    assert top.tiers[STANDARD][0][1:3] == (10, 30) and top.tiers[STANDARD][1][1:3] == (7, 50)
    assert (top.call, top.uplift) == (9, 1_100)
    assert bounds(top, [STANDARD])[1].input == 30  # cache reads of the long tier are its dearest input
    assert bounds(top)[0].output == 60


def test_gaps_are_filled_only_from_a_source_that_agrees_on_the_price() -> None:
    gap = Card({STANDARD: (Row(0, 10, 20),)})
    same = Card({STANDARD: (Row(0, 10, 20, 1),), "priority": (Row(0, 30, 40),)})
    other = Card({STANDARD: (Row(0, 9, 20, 1),)})

    assert filled(gap, same).tiers[STANDARD][0].read == 1
    assert "priority" in filled(gap, same).tiers
    assert filled(gap, other) == gap


def test_cards_survive_their_compact_form() -> None:
    card = Card({STANDARD: (Row(0, 10, 20, None, 5), Row(1_000, 11, 21)), "flex": (Row(0, 5, 10, media_out=3),)}, call=4, uplift=1_100)
    assert Card.from_json(card.as_json()) == card
