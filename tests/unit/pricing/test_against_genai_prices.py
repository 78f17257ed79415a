"""Our bill against the genai-prices library, an independent calculator over the same published prices."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import ROUND_CEILING
from importlib.metadata import version

import pytest
from genai_prices import Usage as JudgeUsage
from genai_prices import calc_price
from genai_prices import types as genai
from genai_prices.data import providers
from hypothesis import given, settings
from hypothesis import strategies as st

from wflo_nb.model import Usage
from wflo_nb.pricing.book import PriceBook
from wflo_nb.pricing.names import canonical_provider
from wflo_nb.pricing.price import Basis, ModelPrice
from wflo_nb.pricing.table import load

WELL_KNOWN = [
    *(("openai", model) for model in ["gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-2024-05-13", "gpt-4o-mini", "gpt-4o-mini-2024-07-18"]),
    *(
        ("openai", model)
        for model in ["gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-5.4", "gpt-5.5"]
    ),
    *(("openai", model) for model in ["o1", "o3", "o3-mini", "o4-mini", "gpt-4-turbo", "gpt-3.5-turbo"]),
    *(("openai", model) for model in ["text-embedding-3-small", "text-embedding-3-large", "ft:gpt-4o-mini-2024-07-18"]),
    *(("anthropic", model) for model in ["claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "claude-sonnet-4-6", "claude-opus-4-6"]),
    *(
        ("anthropic", model)
        for model in ["claude-haiku-4-5", "claude-haiku-5-5", "claude-opus-4-1", "claude-3-5-haiku-latest", "claude-sonnet-4-0"]
    ),
    *(("google", model) for model in ["gemini-2.5-pro", "gemini-2.5-flash", "gemini-2.5-flash-lite", "gemini-2.0-flash", "gemini-1.5-pro"]),
    *(("mistral", model) for model in ["mistral-large-latest", "mistral-small-latest"]),
    *(("groq", model) for model in ["llama-3.3-70b-versatile", "llama-3.1-8b-instant"]),
    *(("x-ai", model) for model in ["grok-4", "grok-3"]),
    *(("cohere", model) for model in ["command-r-plus-08-2024", "command-r-08-2024"]),
    *(("aws", model) for model in ["us.anthropic.claude-sonnet-4-5-20250929-v1:0", "amazon.nova-pro-v1:0"]),
    *(("openrouter", model) for model in ["openai/gpt-4o", "anthropic/claude-sonnet-4.5"]),
    ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
    ("perplexity", "sonar-pro"),
]
BORDERS = [0, 1, 100_000, 100_001, 128_000, 128_001, 200_000, 200_001, 272_000, 272_001]


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    total = draw(st.one_of(st.sampled_from(BORDERS), st.integers(0, 5_000), st.integers(0, 1_200_000)))
    read = draw(st.integers(0, total))
    write = draw(st.integers(0, total - read))
    output = draw(st.integers(0, 130_000))
    return Usage(total, output, read, write, draw(st.integers(0, write)), draw(st.integers(0, output)))


def judged(usage: Usage, prices: genai.ModelPrice) -> tuple[Usage, JudgeUsage]:
    """The usage without the classes that the judge has no price for: there we may know more, from the other source."""
    read = usage.cache_read_tokens if prices.cache_read_mtok is not None else 0
    write = usage.cache_write_tokens if prices.cache_write_mtok is not None else 0
    hour = min(write, usage.cache_write_1h_tokens) if prices.cache_write_1h_mtok is not None else 0
    output = usage.output_tokens if prices.output_mtok is not None else 0
    thought = min(output, usage.reasoning_tokens)
    ours = Usage(usage.input_tokens, output, read, write, hour, thought)
    theirs = JudgeUsage(
        input_tokens=ours.input_tokens,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=hour,
        output_reasoning_tokens=thought,
    )
    return ours, theirs


def nano(calculation: genai.PriceCalculation) -> int:
    return int(calculation.total_price.scaleb(9).to_integral_value(ROUND_CEILING))


@pytest.mark.parametrize(("provider", "model"), WELL_KNOWN)
@settings(max_examples=60, deadline=None)
@given(usage=usages())
def test_the_bill_equals_the_judge_to_the_nano(shared_book: PriceBook, provider: str, model: str, usage: Usage) -> None:
    now = datetime.now(UTC)
    prices = calc_price(JudgeUsage(), model, provider_id=provider, genai_request_timestamp=now).model_price
    ours, theirs = judged(usage, prices)

    cost = shared_book.find(provider, model).cost(ours)

    assert cost.price_source.startswith("genai-prices")
    assert cost.nano_usd == nano(calc_price(theirs, model, provider_id=provider, genai_request_timestamp=now))


@pytest.mark.parametrize("tier", ["priority", "flex", "fast"])
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5", "gpt-5-mini", "gpt-5.4", "o3", "o4-mini"])
@settings(max_examples=30, deadline=None)
@given(usage=usages())
def test_service_tiers_equal_the_judge(shared_book: PriceBook, model: str, tier: str, usage: Usage) -> None:
    now = datetime.now(UTC)
    price = shared_book.find("openai", model)
    if (model, tier) == ("gpt-4o", "flex"):  # not offered, so billed at the ordinary price
        assert price.cost(usage, service_tier="flex") == price.cost(usage)
        return
    asked = {"provider_id": "openai", "genai_request_timestamp": now, "price_context": {"service_tier": tier}}
    ours, theirs = judged(usage, calc_price(JudgeUsage(), model, **asked).model_price)

    assert price.cost(ours, service_tier=tier).nano_usd == nano(calc_price(theirs, model, **asked))


def test_every_model_of_the_judge_costs_the_same() -> None:
    """All of genai-prices, at tier borders and at random. Left out: daily windows and output in audio or images, billed at the dearest."""
    now, rng, book, table, compared = datetime.now(UTC), random.Random(20261122), PriceBook(), load(), 0
    for provider in providers:
        for name in table.ids(canonical_provider(provider.id)):
            entry = table.entry(canonical_provider(provider.id), name)
            model = provider.find_model(name)
            if entry is None or entry.source.name != "genai-prices" or model is None:
                continue
            rules = model.prices if isinstance(model.prices, list) else []
            if any(isinstance(rule.constraint, genai.TimeOfDateConstraint) for rule in rules) or any(
                row.media_out for row in book.find(provider.id, name).basis.bill.card.tiers["standard"]
            ):
                continue
            total = rng.choice([*BORDERS, rng.randint(0, 1_000_000)])
            read = rng.randint(0, total)
            write = rng.randint(0, total - read)
            usage = Usage(total, rng.randint(0, 50_000), read, write, rng.randint(0, write))
            ours, theirs = judged(usage, model.get_prices(now))
            difference = book.find(provider.id, name).cost(ours).nano_usd - nano(
                model.calc_price(theirs, provider, genai_request_timestamp=now)
            )
            # Prices with the noise of binary floats (0.18000000000000002) count as what was meant, up to a pico per token.
            assert -1 <= difference <= total // 1000 + 1, (provider.id, name, ours)
            compared += 1
    assert compared > 2_000


def test_audio_out_of_a_cache_costs_no_less_than_the_judge_says() -> None:
    now, book, table, compared = datetime.now(UTC), PriceBook(), load(), 0
    for provider in providers:
        for name in table.ids(canonical_provider(provider.id)):
            model = provider.find_model(name)
            if model is None or model.get_prices(now).cache_audio_read_mtok is None:
                continue
            theirs = JudgeUsage(
                input_tokens=1_000_000, cache_read_tokens=1_000_000, input_audio_tokens=1_000_000, cache_audio_read_tokens=1_000_000
            )
            price = book.find(provider.id, name)
            judged = nano(model.calc_price(theirs, provider, genai_request_timestamp=now))
            assert judged <= price.cost(Usage(1_000_000, 0, 1_000_000), media=True).nano_usd <= price.upper_bound(1_000_000, 0, media=True)
            compared += 1
    assert compared > 10


def test_the_table_was_built_from_the_installed_genai_prices() -> None:
    assert str(load().sources[0]) == f"genai-prices {version('genai-prices')}", "rebuild the table: python scripts/build_prices.py --help"


def test_announced_prices_equal_the_judge_on_their_day() -> None:
    """Prices that start on a later day than the table's bill from that day on."""
    table, compared = load(), 0
    for provider in providers:
        for name in table.ids(canonical_provider(provider.id)):
            entry = table.entry(canonical_provider(provider.id), name)
            model = provider.find_model(name)
            if entry is None or model is None or len(entry.billed) < 2:
                continue
            for day in ["2026-11-15", *(start for start, _ in entry.billed[1:]), "2099-01-01"]:
                moment = datetime.fromisoformat(f"{day}T12:00:00+00:00")
                theirs = nano(model.calc_price(JudgeUsage(input_tokens=1_000_000), provider, genai_request_timestamp=moment))
                basis = Basis.of(entry.billed_on(day), entry.cards("2026-11-15"))
                price = ModelPrice(provider.id, name, "", day, basis=basis)
                assert price.cost(Usage(1_000_000)).nano_usd == theirs <= price.upper_bound(1_000_000, 0), (provider.id, name, day)
                compared += 1
    assert compared > 10
