"""Which names find which price, and which must not."""

from __future__ import annotations

import pytest

from wflo_nb.errors import UnknownModelError
from wflo_nb.model import Usage
from wflo_nb.pricing.book import PriceBook
from wflo_nb.pricing.names import family
from wflo_nb.pricing.table import load


@pytest.mark.parametrize(
    ("provider", "model", "matched"),
    [
        ("openai", "gpt-4o-2024-08-06", "gpt-4o-2024-08-06"),
        ("openai", "gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("openai", "GPT-4o", "gpt-4o"),
        ("openai", "openai/gpt-4o", "gpt-4o"),
        ("gcp.gemini", "models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("gcp.vertex_ai", "publishers/google/models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("gcp.vertex_ai", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5@20250929"),
        ("aws.bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        (
            "aws.bedrock",
            "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-5-sonnet-20240620-v1:0",
            "anthropic.claude-3-5-sonnet-20240620-v1:0",
        ),
        ("azure.ai.openai", "gpt-4o", "gpt-4o"),
        ("openrouter", "openai/gpt-4o", "openai/gpt-4o"),
        ("openrouter", "openrouter/openai/gpt-4o", "openai/gpt-4o"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:my-org:name:Abc123", "ft:gpt-4o-mini-2024-07-18"),
    ],
)
def test_spellings_of_one_model(shared_book: PriceBook, provider: str, model: str, matched: str) -> None:
    price = shared_book.find(provider, model)
    assert (price.provider, price.model, price.matched) == (provider, model, matched)


@pytest.mark.parametrize(
    "names",
    [
        ("gcp.gemini", "google", "gemini", "gcp.vertex_ai"),
        ("aws.bedrock", "aws", "bedrock"),
        ("mistral_ai", "mistral"),
        ("xai", "x_ai", "x-ai"),
        ("azure.ai.openai", "azure", "az.ai.openai"),
        ("together", "together_ai"),
    ],
)
def test_providers_have_several_names(shared_book: PriceBook, names: tuple[str, ...]) -> None:
    table = load()
    place = next(name for name in names if table.ids(name))
    model = table.ids(place)[0]
    assert len({shared_book.find(name, model).upper_bound(1_000, 1_000) for name in names}) == 1


def test_a_new_snapshot_is_priced_as_its_family_and_bounded_by_the_dearest_snapshot(shared_book: PriceBook) -> None:
    new, base, old = (shared_book.find("openai", model) for model in ("gpt-4o-2027-01-01", "gpt-4o", "gpt-4o-2024-05-13"))
    assert new.matched == "gpt-4o"
    assert new.cost(Usage(1_000, 1_000)) == base.cost(Usage(1_000, 1_000))
    assert new.upper_bound(1_000, 1_000) == max(base.upper_bound(1_000, 1_000), old.upper_bound(1_000, 1_000))


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("gpt-4o-2027-01-01", "gpt-4o"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-3-5-haiku@20241022", "claude-3-5-haiku"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("gpt-4o-2027-13-01", None),
        ("gpt-4o-mini", None),
        ("gpt-4o-2024", None),
    ],
)
def test_only_a_calendar_date_or_latest_makes_a_snapshot(name: str, base: str | None) -> None:
    assert family(name) == base


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-turbo-max"),
        ("openai", "gpt-4p"),
        ("openai", "claude-sonnet-4-5"),
        ("openai", "ft:gpt-99:org::id"),
        ("openai", ""),
        ("anthropic", "claude-sonnet-9"),
        ("ollama", "gpt-oss:120b-cloud"),
        ("10.0.0.7:8000", "my-own-model"),
        (None, "llama-3.3-70b-versatile"),
        ("10.0.0.7:8000", "deepseek-r1:free"),
    ],
)
def test_what_is_not_known_has_no_price(shared_book: PriceBook, provider: str | None, model: str) -> None:
    for _ in range(2):  # a miss is remembered and must read the same
        with pytest.raises(UnknownModelError) as caught:
            shared_book.find(provider, model)
        assert caught.value.model == model and caught.value.provider == provider
        assert isinstance(caught.value, LookupError)


def test_a_miss_names_near_matches(shared_book: PriceBook) -> None:
    with pytest.raises(UnknownModelError, match=r"Did you mean .*gpt-4o") as caught:
        shared_book.find("openai", "gpt-4oo")
    assert "gpt-4o" in caught.value.suggestions
    with pytest.raises(UnknownModelError, match=r"groq/llama-3\.3-70b-versatile"):
        shared_book.find("somewhere", "llama-3.3-70b-versatile")


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "text-embedding-3-small", "openai/gpt-4o"])
def test_a_gateway_bills_what_the_maker_bills_and_is_bounded_by_the_dearest(shared_book: PriceBook, model: str) -> None:
    usage, maker = Usage(10_000, 1_000), "anthropic" if "claude" in model else "openai"
    at_maker, at_gateway = shared_book.find(maker, model), shared_book.find("gateway.example:8080", model)
    assert at_gateway.cost(usage).nano_usd == at_maker.cost(usage).nano_usd
    assert at_gateway.upper_bound(10_000, 1_000) >= at_maker.upper_bound(10_000, 1_000)


def test_open_weights_at_an_unknown_host_are_billed_at_the_dearest_known_host(shared_book: PriceBook) -> None:
    usage = Usage(10_000, 1_000)
    unknown = shared_book.find("gpu.example", "gpt-oss-120b").cost(usage).nano_usd
    assert unknown >= max(shared_book.find(host, "gpt-oss-120b").cost(usage).nano_usd for host in ("openai", "cerebras", "fireworks"))


def test_the_users_own_machine_is_free(shared_book: PriceBook) -> None:
    price = shared_book.find("ollama", "anything:7b")
    assert price.is_free and price.source == "local"
    assert price.cost(Usage(10**6, 10**6)).nano_usd == 0
    assert shared_book.find("openrouter", "qwen/qwen3-coder:free").is_free
    assert not shared_book.find("openai", "text-embedding-3-small").is_free


def test_fine_tunes_have_their_own_rate(shared_book: PriceBook) -> None:
    tuned, base = shared_book.find("openai", "ft:gpt-4o-mini-2024-07-18:org::id"), shared_book.find("openai", "gpt-4o-mini")
    assert tuned.per_million()["input"] == 2 * base.per_million()["input"]


def test_limits_of_models(shared_book: PriceBook) -> None:
    assert shared_book.find("openai", "gpt-4o").max_output_tokens == 16_384
    assert shared_book.find("openai", "gpt-4o").max_input_tokens == 128_000
    assert shared_book.find("groq", "llama-3.3-70b-versatile").max_output_tokens is None
    assert shared_book.find("openai", "gpt-4o").search_nano == 10_000_000


def test_there_are_thousands_of_models() -> None:
    table = load()
    assert sum(len(table.ids(provider)) for provider in table.providers()) > 5_000
    assert all(table.entry(provider, name) is not None for provider in table.providers() for name in table.ids(provider))
