"""Fees of tools that run at the provider, as the providers publish them."""

from __future__ import annotations

import pytest

from wflo_nb.pricing.book import PriceBook
from wflo_nb.pricing.table import load
from wflo_nb.pricing.uses import fee


@pytest.mark.parametrize(
    ("provider", "model", "tool", "usd_per_thousand"),
    [
        ("openai", "gpt-4o", "web_search", 10),
        ("openai", "gpt-4o-mini", "web_search", 10),
        ("openai", "gpt-4o", "web_search_preview", 25),
        ("openai", "o3", "web_search_preview", 10),
        ("openai", "gpt-5.4", "web_search_preview", 10),
        ("openai", "gpt-4o", "file_search", 2.5),
        ("openai", "gpt-4o", "mcp", 0),
        ("azure.ai.openai", "gpt-5", "web_search", 14),
        ("azure.ai.openai", "gpt-4o", "web_search_preview", 14),
        ("anthropic", "claude-sonnet-4-5", "web_search", 10),
        ("anthropic", "claude-sonnet-4-5", "web_fetch", 0),
    ],
)
def test_fee_is_the_published_one(shared_book: PriceBook, provider: str, model: str, tool: str, usd_per_thousand: float) -> None:
    found = fee(tool, shared_book.find(provider, model), model)
    assert found is not None
    assert found.bill == usd_per_thousand * 1_000_000


def test_fee_of_an_unknown_tool_is_unknown_and_not_nothing(shared_book: PriceBook) -> None:
    assert fee("time_travel", shared_book.find("openai", "gpt-4o"), "gpt-4o") is None


def test_what_is_held_covers_what_is_billed_and_what_the_table_knows(shared_book: PriceBook) -> None:
    table = load()
    for provider in ("openai", "anthropic", "azure"):
        for model in table.ids(provider):
            price = shared_book.find(provider, model)
            for tool in ("web_search", "web_search_preview", "file_search", "web_fetch", "mcp"):
                found = fee(tool, price, model)
                assert found is not None
                assert found.bill <= found.most
                if tool.startswith("web_search"):
                    assert found.most >= (price.search_nano or 0)
