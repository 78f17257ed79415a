"""What requests ask for beside tokens and tools in their usual places, and what answers bill beside the counts at the top."""

from __future__ import annotations

import json
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls
from wflo_nb.errors import UnboundedCallError
from wflo_nb.model import Usage
from wflo_nb.pricing.book import PriceBook
from wflo_nb.testing import FakeProvider

SEARCH = {"type": "web_search_20250305", "name": "web_search"}
ADDED = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": SEARCH}}
COMPACTED = {"type": "compaction", "content": "…", "tool_changes": [ADDED]}


@pytest.fixture
def as_anthropic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=anthropic")


@pytest.fixture
def as_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=openai")


def message(model: str, usage: dict[str, Any]) -> bytes:
    content = [{"type": "text", "text": "ok"}]
    said = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content, "stop_reason": "end_turn"}
    return json.dumps({**said, "usage": usage}).encode()


def entry(kind: str, read: int, written: int) -> dict[str, Any]:
    none = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    return {"type": kind, "input_tokens": read, "output_tokens": written, **none}


def cost(provider: str, model: str, read: int, written: int) -> int:
    return PriceBook().find(provider, model).cost(Usage(read, written)).nano_usd


# -- what has no bound is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"fallbacks": [{"model": "claude-opus-5-5", "max_tokens": 32_000}]}, "further models"),
        ({"thread": {"type": "continue", "previous_message_id": "msg_0"}}, "thread"),
        ({"tools": [SEARCH]}, "max_uses"),
        ({"messages": [*PROMPT, {"role": "system", "content": [ADDED]}]}, "max_uses"),
        ({"messages": [{"role": "user", "content": [COMPACTED]}]}, "max_uses"),
    ],
    ids=["fallbacks", "a thread continued", "a tool", "a tool in a message", "a tool in what was compacted"],
)
def test_anthropic(provider: FakeProvider, anthropic_client: Any, as_anthropic: None, more: dict[str, Any], why: str) -> None:
    asked = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": PROMPT, "extra_body": more}
    if "messages" in more:
        asked = {**asked, "messages": more["messages"], "extra_body": {}}
    with pytest.raises(UnboundedCallError, match=why), wflo_nb.execution(budget_usd=20):
        anthropic_client.messages.create(**asked)
    assert provider.requests == 0


def test_anthropic_thread_that_begins_holds_what_it_shows(provider: FakeProvider, anthropic_client: Any, as_anthropic: None) -> None:
    with wflo_nb.execution(budget_usd=20):
        anthropic_client.messages.create(
            model="claude-sonnet-5-5", max_tokens=100, messages=PROMPT, extra_body={"thread": {"type": "create"}}
        )
    assert provider.requests == 1


BROUGHT = [{"role": "user", "content": "hi"}, {"type": "additional_tools", "role": "developer", "tools": [{"type": "web_search"}]}]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"tools": [{"type": "web_search"}]}, "max_tool_calls"),
        ({"input": BROUGHT}, "max_tool_calls"),
        ({"extra_body": {"multi_agent": {"enabled": True}}}, "agents"),
    ],
    ids=["a tool", "a tool in the input", "agents"],
)
def test_openai(provider: FakeProvider, openai_client: Any, as_openai: None, more: dict[str, Any], why: str) -> None:
    with pytest.raises(UnboundedCallError, match=why), wflo_nb.execution(budget_usd=20):
        openai_client.responses.create(**{"model": "gpt-4.1", "max_output_tokens": 100, "input": "hello", **more})
    assert provider.requests == 0


@pytest.mark.parametrize("asked", [{"input": BROUGHT}, {"input": "hi", "previous_response_id": "r_0"}], ids=["named", "kept there"])
def test_searches_that_an_answer_reports_are_billed(
    provider: FakeProvider, openai_client: Any, as_openai: None, asked: dict[str, Any]
) -> None:
    item = {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search", "query": "x"}}
    usage = {"input_tokens": 30_000, "output_tokens": 60, "total_tokens": 30_060}
    answer = {"id": "r", "object": "response", "created_at": 1, "status": "completed", "model": "gpt-4.1", "output": [item] * 40}
    provider.next(raw=json.dumps({**answer, "usage": usage, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}).encode())
    with wflo_nb.execution():
        openai_client.responses.create(model="gpt-4.1", max_output_tokens=100, **asked)
    (row,) = ledger_calls()
    assert row["cost_nano"] >= cost("openai", "gpt-4.1", 30_000, 60) + 40 * 10_000_000


# -- what is asked for is sent as it is --------------------------------------------------------------------------------------


def test_request_that_only_fills_the_cache_writes_nothing(provider: FakeProvider, anthropic_client: Any, as_anthropic: None) -> None:
    with wflo_nb.execution(budget_usd=5) as run:
        anthropic_client.messages.create(model="claude-opus-5", max_tokens=0, messages=PROMPT, cache_control={"type": "ephemeral"})
    assert provider.bodies[0]["max_tokens"] == 0
    assert run.spent_usd < 1


def test_legacy_completion_stays_as_short_as_without_us(provider: FakeProvider, openai_client: Any, as_openai: None) -> None:
    with wflo_nb.execution(budget_usd=5):
        openai_client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Once upon a time")
    assert "max_tokens" not in provider.bodies[0]
    (row,) = ledger_calls()
    assert row["cap_written"] is None and row["reserved_nano"] < cost("openai", "gpt-3.5-turbo-instruct", 1000, 17)


# -- what is billed ----------------------------------------------------------------------------------------------------------


def test_tier_that_was_paid_in_advance_costs_what_was_held_for(provider: FakeProvider, anthropic_client: Any, as_anthropic: None) -> None:
    provider.next(raw=message("claude-opus-5", {"input_tokens": 40, "output_tokens": 900, "service_tier": "priority"}))
    with wflo_nb.execution(budget_usd=5):
        anthropic_client.messages.create(model="claude-opus-5", max_tokens=1000, messages=PROMPT)
    (row,) = ledger_calls()
    assert row["cost_nano"] == cost("anthropic", "claude-opus-5", 40, 900) and row["reason"] is None


@pytest.mark.parametrize(("tier", "extra"), [("scale", 1), ("a tier of tomorrow", 2)])
def test_tiers_without_rates(tier: str, extra: int) -> None:
    """The one costs no more than what has not to be asked for by name, the other the dearest that there is."""
    price = PriceBook().find("openai", "gpt-6.1-sol")
    found = price.cost(Usage(100, 100), service_tier=tier).nano_usd
    assert (found <= price.upper_bound(100, 100, regional=False)) == (extra == 1)


@pytest.mark.parametrize(
    ("top", "steps", "read", "written"),
    [
        ((23_000, 1000), [entry("compaction", 180_000, 3500), entry("message", 23_000, 1000)], 203_000, 4500),
        ((0, 0), [entry("compaction", 50, 90)], 50, 90),
        ((40, 90), [entry("message", 20, 30), entry("message", 20, 60)], 40, 90),
    ],
    ids=["beside the answer", "on demand", "none"],
)
def test_compaction_is_billed_beside_the_counts_at_the_top(
    provider: FakeProvider, anthropic_client: Any, as_anthropic: None, top: tuple[int, int], steps: list[Any], read: int, written: int
) -> None:
    provider.next(raw=message("claude-opus-5", {"input_tokens": top[0], "output_tokens": top[1], "iterations": steps}))
    with wflo_nb.execution():
        anthropic_client.beta.messages.create(model="claude-opus-5", max_tokens=4000, messages=PROMPT)
    (row,) = ledger_calls()
    assert (row["state"], row["input_tokens"], row["output_tokens"]) == ("SETTLED", read, written)
    assert row["cost_nano"] == cost("anthropic", "claude-opus-5", read, written)
