"""Prices that users declare."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wflo_nb.errors import ConfigurationError, PricingError, UnknownModelError, WfloError
from wflo_nb.model import Usage
from wflo_nb.pricing.book import PriceBook
from wflo_nb.pricing.dearer import dearer

MILLION = Usage(1_000_000, 1_000_000)


@pytest.mark.parametrize("amount", [2.5, "2.5", "$2.50", Decimal("2.5")])
def test_a_price_is_taken_exactly_however_it_is_written(book: PriceBook, amount: object) -> None:
    price = book.declare("mine", input=amount, output="0.3")
    assert price.cost(MILLION).usd == Decimal("2.8")
    assert price.source == "declared"


def test_floats_count_as_they_read(book: PriceBook) -> None:
    assert book.declare("mine", input=0.1 + 0.2, output=0).cost(Usage(1_000_000, 0)).usd == Decimal("0.3")


def test_a_declared_price_wins_over_the_table_and_keeps_the_models_limits(book: PriceBook) -> None:
    assert book.find("openai", "gpt-4o").cost(MILLION).usd == Decimal("12.5")
    book.declare("gpt-4o", input=1, output=2, cache_read="0.1")
    price = book.find("openai", "gpt-4o")
    assert price.cost(MILLION).usd == 3
    assert price.cost(Usage(1_000_000, 0, cache_read_tokens=1_000_000)).usd == Decimal("0.1")
    assert price.upper_bound(1_000_000, 1_000_000) == 3_000_000_000
    assert (price.provider, price.max_output_tokens, price.max_input_tokens) == ("openai", 16_384, 128_000)


def test_a_host_nobody_knows_has_the_dearest_price_that_was_declared_for_the_model(book: PriceBook) -> None:
    book.declare("mine", input=1, output=1, provider="openai")
    assert book.find(None, "mine").cost(MILLION).usd == 2
    book.declare("mine", input=3, output=3, provider="groq")
    assert book.find(None, "mine").cost(MILLION).usd == 6
    with pytest.raises(UnknownModelError):
        book.find("anthropic", "mine")
    book.declare("gpt-4o", input=0, output=0, provider="groq")
    assert not book.find(None, "gpt-4o").is_free, "what the table lists is not made free by another provider's price"


def test_it_is_matched_by_its_exact_id(book: PriceBook) -> None:
    book.declare("gpt-4o", input=1, output=2)
    assert book.find("openai", "gpt-4o-2024-08-06").source != "declared"
    assert book.find("openai", "GPT-4o").source != "declared"


def test_it_may_be_for_one_provider_only(book: PriceBook) -> None:
    book.declare("gpt-4o", input=1, output=2, provider="azure.ai.openai")
    assert book.find("azure", "gpt-4o").source == "declared"
    assert book.find("openai", "gpt-4o").source != "declared"
    book.declare("gpt-4o", input=3, output=4)
    assert book.find("azure", "gpt-4o").cost(MILLION).usd == 3
    assert book.find("openai", "gpt-4o").cost(MILLION).usd == 7


def test_an_unknown_model_becomes_known_and_unknown_again(book: PriceBook) -> None:
    with pytest.raises(UnknownModelError):
        book.find("127.0.0.1:9", "SmolLM2-135M")
    book.declare("SmolLM2-135M", input="0.15", output="0.60", max_output_tokens=512, max_input_tokens=2048)
    price = book.find("127.0.0.1:9", "SmolLM2-135M")
    assert (price.max_output_tokens, price.max_input_tokens) == (512, 2048)
    assert [one.model for one in book.declared()] == ["SmolLM2-135M"]
    book.forget("SmolLM2-135M")
    assert book.declared() == []
    with pytest.raises(UnknownModelError):
        book.find("127.0.0.1:9", "SmolLM2-135M")


def test_zero_means_free(book: PriceBook) -> None:
    price = book.declare("mine", input=0, output=0)
    assert price.is_free and price.upper_bound(10**6, 10**6) == 0


@pytest.mark.parametrize("bad", [float("nan"), "nan", "inf", -1, "-0.5", "two", "", True, [1]])
def test_what_is_no_amount_is_refused(book: PriceBook, bad: object) -> None:
    with pytest.raises(ConfigurationError, match=r"input="):
        book.declare("mine", input=bad, output=1)
    assert book.declared() == []


def test_a_missing_half_is_refused(book: PriceBook) -> None:
    with pytest.raises(ConfigurationError, match=r"output="):
        book.declare("mine", input=1, output=None)
    with pytest.raises(ConfigurationError, match="id of a model"):
        book.declare(" ", input=1, output=1)
    with pytest.raises(ConfigurationError, match="max_output_tokens"):
        book.declare("mine", input=1, output=1, max_output_tokens=0)


def test_a_price_that_is_too_large_to_be_meant_is_refused_unless_insisted_on(book: PriceBook) -> None:
    with pytest.raises(PricingError, match=r"2,500,000 USD per million.*allow_absurd=True"):
        book.declare("mine", input=2_500_000, output=1)
    assert book.declare("mine", input=2_500_000, output=1, allow_absurd=True).cost(Usage(1, 0)).usd == Decimal("2.5")


def test_a_price_typed_per_token_is_caught(book: PriceBook) -> None:
    with pytest.raises(PricingError, match=r"input=0\.25 \(per million\)"):
        book.declare("mine", input=2.5e-7, output=1)
    with pytest.raises(WfloError):
        book.declare("mine", input=1, output=1e-9)


def test_declaring_and_finding_from_many_threads_never_shows_a_stale_price(book: PriceBook) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        name = f"model-{number % 4}"
        for turn in range(1, 200):
            book.declare(f"{name}-{number}", input=turn, output=0)
            found = book.find("anyone", f"{name}-{number}").cost(Usage(1_000_000, 0)).usd
            if found != turn:
                wrong.append(turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(book.declared()) == 8


@given(
    inner=st.tuples(st.integers(0, 500), st.integers(0, 500)),
    tokens=st.tuples(st.integers(0, 400_000), st.integers(0, 20_000)),
    tier=st.sampled_from([None, "default", "priority", "flex", "fast"]),
    media=st.booleans(),
    regional=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_the_dearer_of_two_prices_is_below_neither(
    inner: tuple[int, int], tokens: tuple[int, int], tier: str | None, media: bool, regional: bool
) -> None:
    book = PriceBook()
    table = book.find("openai", "gpt-5.4")
    declared = book.declare("gpt-5.4", input=inner[0], output=inner[1])
    both = dearer(declared, table)
    for price in (declared, table):
        of: Any = {"service_tier": tier, "media": media, "regional": regional}
        assert both.upper_bound(*tokens, **of) >= price.upper_bound(*tokens, **of)
        assert both.cost(Usage(*tokens), **of).nano_usd >= price.cost(Usage(*tokens), **of).nano_usd
        afforded = both.affordable_output(10**9, tokens[0], **of)
        assert afforded <= 0 or price.upper_bound(tokens[0], afforded, **of) <= 10**9
    assert not both.is_free and dearer(table, table) is table
