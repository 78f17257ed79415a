"""Models that are billed by pages, searches, images, seconds or characters; and ids of further providers, as their formats give them."""

from __future__ import annotations

import pytest

from wflo_nb.errors import UnknownModelError
from wflo_nb.pricing.book import PriceBook
from wflo_nb.pricing.uses import fee


@pytest.mark.parametrize(
    ("provider", "model", "unit", "nano"),
    [
        ("mistral_ai", "mistral-ocr-latest", "page", 4_000_000),
        ("cohere", "rerank-v3.5", "search", 2_000_000),
        ("aws.bedrock", "cohere.rerank-v3-5:0", "search", 2_000_000),
        ("openai", "tts-1", "character", 15_000),
        ("groq", "whisper-large-v3", "second", 30_830),
        ("x_ai", "grok-imagine-image", "image", 20_000_000),
        (None, "whisper-1", "second", 100_000),
    ],
)
def test_model_that_is_billed_by_the_unit(provider: str | None, model: str, unit: str, nano: int) -> None:
    price = PriceBook().find(provider, model)
    assert (price.unit, price.unit_nano) == (unit, nano)
    assert not price.is_free
    assert not price.bills_tokens
    found = fee(unit, price, model)
    assert found is not None
    assert found.bill == found.most == nano


def test_unit_that_a_model_is_not_billed_by_has_no_fee() -> None:
    by_page, by_token = PriceBook().find("mistral_ai", "mistral-ocr-latest"), PriceBook().find("openai", "gpt-4o")
    assert fee("search", by_page, "mistral-ocr-latest") is None
    assert fee("page", by_token, "gpt-4o") is None
    assert by_token.unit is None
    assert by_token.bills_tokens


@pytest.mark.parametrize(
    ("provider", "model", "dollars"),
    [
        ("gcp.gemini", "models/gemini-2.5-flash", ("0.3", "2.5")),
        ("gcp.vertex_ai", "claude-sonnet-4-5@20250929", ("3", "15")),
        ("mistral_ai", "codestral-latest", ("0.3", "0.9")),
        ("cohere", "command-a-03-2025", ("2.5", "10")),
        ("groq", "llama-3.3-70b-versatile", ("0.59", "0.79")),
        ("aws.bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", ("3.3", "16.5")),
        ("aws.bedrock", "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0", ("3.3", "16.5")),
        ("aws.bedrock", "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0", ("0.06", "0.24")),
        ("openai", "gpt-image-1", ("5", "40")),
    ],
)
def test_ids_of_further_providers_are_found(provider: str, model: str, dollars: tuple[str, str]) -> None:
    rates = PriceBook().find(provider, model).per_million()
    assert (f"{rates['input'].normalize():f}", f"{rates['output'].normalize():f}") == dollars


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("aws.bedrock", "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc"),
        ("ollama_cloud", "gpt-oss:120b"),
        ("ollama", "gpt-oss:120b-cloud"),
    ],
)
def test_ids_that_do_not_say_what_runs_are_unknown(provider: str, model: str) -> None:
    with pytest.raises(UnknownModelError):
        PriceBook().find(provider, model)
