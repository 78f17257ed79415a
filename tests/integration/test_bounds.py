"""Bounds through real SDKs and sockets: what is held covers the provider's own bill, and a refusal explains itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls
from tests.unit.capture import pictures
from wflo_nb.capture import exact
from wflo_nb.errors import BudgetExceededError, UnboundedCallError, UnsupportedFormatError
from wflo_nb.model import nano_from_usd
from wflo_nb.testing import FakeProvider

PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pictures.png(800, 600, 60_000)}"}}
ASK = {
    "model": "gpt-4o",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, PICTURE]}],
    "max_tokens": 100,
}


def test_image_at_a_server_that_nobody_knows_is_held_however_the_server_counts_it(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution(budget_usd=2) as run:
        openai_client.chat.completions.create(**ASK)
    (row,) = ledger_calls()
    assert provider.bill[0].usage.input_tokens > 1000  # this one reads base64 as words
    assert row["reserved_nano"] >= provider.spent_nano == row["cost_nano"] == run.figures().spent_nano
    with pytest.raises(BudgetExceededError) as caught, wflo_nb.execution(budget_usd="0.1"):
        openai_client.chat.completions.create(**ASK)
    assert (caught.value.bound.input_by, caught.value.bound.input_tokens) == ("window", 128_000)
    assert provider.requests == 1


def test_image_at_its_maker_costs_little_more_than_its_formula(openai_client: Any) -> None:
    client = openai_client.with_options(base_url="https://api.openai.com/v1", max_retries=0)
    with pytest.raises(BudgetExceededError) as caught, wflo_nb.execution(budget_usd="0.0001"):
        client.chat.completions.create(**ASK)
    assert caught.value.bound.input_by == "image formula"
    assert 765 <= caught.value.bound.image_tokens <= 800
    assert caught.value.bound.input_tokens < 1200


def test_refusal_explains_itself_in_the_error_and_in_the_ledger(provider: FakeProvider, openai_client: Any) -> None:
    secret = "the password is swordfish"
    with pytest.raises(BudgetExceededError) as caught, wflo_nb.execution(budget_usd="0.0001"):
        openai_client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": secret}], max_tokens=50)
    (row,) = ledger_calls()
    told = json.loads(row["meta"])["bound"]
    assert told == caught.value.bound.plain()
    assert told["total_nano"] == nano_from_usd(caught.value.requested_usd)
    assert (told["output_tokens"], told["output_by"], told["input_by"]) == (50, "the cap in the request", "bytes")
    assert told["price_source"]
    assert told["price_date"]
    assert "swordfish" not in "".join(str(value) for value in row.values())
    assert provider.requests == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_search_without_a_limit_says_what_to_state(provider: FakeProvider, anthropic_client: Any) -> None:
    tool = {"type": "web_search_20250305", "name": "web_search"}
    ask = {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": PROMPT}
    with pytest.raises(UnboundedCallError, match="state its max_uses"), wflo_nb.execution(budget_usd=1):
        anthropic_client.messages.create(**ask, tools=[tool])
    assert provider.requests == 0
    with pytest.raises(BudgetExceededError) as caught, wflo_nb.execution(budget_usd=1):
        anthropic_client.messages.create(**ask, tools=[{**tool, "max_uses": 1}])
    bound = caught.value.bound
    assert (bound.rounds, bound.input_tokens, bound.uses, bound.use_nano) == (3, 600_000, 1, 10_000_000)
    with wflo_nb.execution(budget_usd=20) as run:
        anthropic_client.messages.create(**ask, tools=[{**tool, "max_uses": 1}])
    assert run.figures().spent_nano == provider.spent_nano


@pytest.mark.parametrize("status", [408, 499])
def test_gateway_that_stopped_waiting_keeps_the_hold(provider: FakeProvider, openai_client: Any, status: int) -> None:
    provider.behave(status=status, billed=True, retry_after_ms=1)
    with wflo_nb.execution(budget_usd=1) as run, pytest.raises(Exception, match=str(status)):
        openai_client.with_options(max_retries=2).chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=100)
    rows = ledger_calls()
    assert len(rows) == provider.requests  # what an SDK repeats by itself is a call of its own
    assert {row["state"] for row in rows} == {"UNCONFIRMED"}
    assert run.figures().spent_nano >= provider.spent_nano > 0


def test_call_that_cannot_be_read_is_refused_under_a_budget_and_noted_without(provider: FakeProvider) -> None:
    import httpx2

    url, broken = f"{provider.openai_url}/chat/completions", b'{"model": "gpt-4o", "messages": ['
    with pytest.raises(UnsupportedFormatError, match="cannot be bounded"), wflo_nb.execution(budget_usd=1):
        httpx2.post(url, content=broken)
    assert provider.requests == 0
    with wflo_nb.execution() as run, pytest.raises(httpx2.HTTPError):
        httpx2.post(url, content=broken).raise_for_status()
    assert [(row["state"], row["api"]) for row in ledger_calls()] == [("REFUSED", "unmetered"), ("SETTLED", "unmetered")]
    assert run.figures().unpriced == 1


class Words:
    """A tokenizer that makes a token of every word and notes who asked."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def encode_ordinary(self, text: str) -> list[str]:
        self.threads.append(threading.current_thread().name)
        return text.split()


def test_long_texts_are_never_counted_in_the_thread_of_an_event_loop(
    async_openai: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = Words()
    monkeypatch.setattr(exact, "_tokenizer", lambda: words)

    async def work() -> None:
        async with async_openai() as client:
            maker = client.with_options(base_url="https://api.openai.com/v1", max_retries=0)
            with wflo_nb.execution(budget_usd="0.001"):
                ask = [{"role": "user", "content": "word " * 5000}]
                await maker.chat.completions.create(model="gpt-4o", messages=ask, max_completion_tokens=100)

    with pytest.raises(BudgetExceededError) as caught:
        asyncio.run(work())
    assert caught.value.bound.input_by == "tokenizer"
    assert len(words.threads) == 1
    assert words.threads[0].startswith("wflo-ledger")


def test_prompt_that_grows_under_normalisation_is_held_at_its_grown_length(provider: FakeProvider, openai_client: Any) -> None:
    short = [{"role": "user", "content": "ﷺ" * 1000}]
    with pytest.raises(BudgetExceededError) as caught, wflo_nb.execution(budget_usd="0.01"):
        openai_client.chat.completions.create(model="gpt-4o", messages=short, max_tokens=1)
    assert caught.value.bound.input_tokens >= 18_000
