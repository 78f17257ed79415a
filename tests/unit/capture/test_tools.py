"""Tools that run at the provider: bounded by a number of uses that the request states, or by nothing."""

from __future__ import annotations

from typing import Any

import pytest

from wflo_nb.capture import bounds, formats
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat
from wflo_nb.pricing.book import PriceBook

CHAT, RESPONSES, MESSAGES = (formats.find(f"/v1/{path}") for path in ("chat/completions", "responses", "messages"))
assert CHAT is not None
assert RESPONSES is not None
assert MESSAGES is not None


def response(**fields: Any) -> Facts:
    assert RESPONSES is not None
    return RESPONSES.read({"model": "gpt-4o", "input": "x", **fields})


def message(*tools: dict[str, Any], **fields: Any) -> Facts:
    assert MESSAGES is not None
    return MESSAGES.read({"model": "claude-sonnet-4-5", "messages": [], "tools": list(tools), **fields})


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"type": "web_search_preview"}]},
        {"tools": [{"googleSearch": {}}]},
        {"tools": ["web"]},
        {"web_search_options": {}},
        {"search_parameters": {"mode": "auto"}},
        {"model": "gpt-4o-search-preview"},
        {"model": "gpt-5-search-api-2025-10-14"},
        {"model": "sonar-deep-research"},
        {"model": "perplexity/sonar"},
        {"model": "perplexity/sonar-pro-search"},
        {"model": "perplexity/llama-3.1-sonar-large-128k-online"},
        {"model": "openai/gpt-4o:online"},
        {"model": "groq/compound"},
        {"modalities": ["text", "audio"]},
        {"modalities": ["image"]},
        {"plugins": [{"id": "web"}]},
        {"models": ["gpt-4o", "o1-pro"]},
        {"data_sources": [{"type": "azure_search"}]},
        {"n": "4"},
        {"n": 4.0},
    ],
)
def test_chat_extras_billed_per_use_have_no_bound(body: dict[str, Any]) -> None:
    assert CHAT is not None
    assert CHAT.read({"model": "m", "messages": [], **body}).unbounded


COMPLETIONS = formats.find("/v1/completions")


@pytest.mark.parametrize("interface", [CHAT, RESPONSES, MESSAGES, COMPLETIONS], ids=["chat", "responses", "messages", "completions"])
@pytest.mark.parametrize(
    "more",
    [
        {"models": ["gpt-4o", "o1-pro"]},
        {"route": "fallback"},
        {"fallbacks": ["o1-pro"]},
        {"preset": "research"},
        {"providerOptions": {"gateway": {"models": ["o1-pro"]}}},
        {"plugins": [{"id": "web"}]},
    ],
    ids=["models", "route", "fallbacks", "preset", "options of a gateway", "plugins"],
)
def test_what_a_gateway_may_do_beside_the_model_asked_has_no_bound(interface: WireFormat, more: dict[str, Any]) -> None:
    body = {"model": "gpt-4o-mini", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], "input": "x", "prompt": "x"}
    if interface is RESPONSES:
        del body["prompt"]
    assert interface.read(body, "openrouter").unbounded is None
    assert interface.read({**body, **more}, "openrouter").unbounded


@pytest.mark.parametrize(
    ("interface", "document"),
    [
        (CHAT, {"type": "file", "file": {"filename": "a.pdf", "file_data": "https://example.org/a.pdf"}}),
        (RESPONSES, {"type": "input_file", "file_url": "https://example.org/a.pdf"}),
        (MESSAGES, {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}),
    ],
    ids=["chat", "responses", "messages"],
)
def test_documents_that_a_gateway_may_read_by_the_page_have_no_bound(interface: WireFormat, document: dict[str, Any]) -> None:
    said = [{"role": "user", "content": [document]}]
    body = {"model": "openai/gpt-4o-mini", "max_tokens": 5, "messages": said, "input": said}
    assert "by the page" in (interface.read(body, "openrouter").unbounded or "")
    assert interface.read(body, "openai").unbounded is None


@pytest.mark.parametrize("seller", ["x_ai", "openrouter", "groq"])
def test_number_of_uses_limits_nothing_where_nobody_heeds_it(seller: str) -> None:
    assert RESPONSES is not None
    body = {"model": "grok-4", "input": "x", "tools": [{"type": "web_search"}], "max_tool_calls": 1}
    assert "max_tool_calls" in (RESPONSES.read(body, seller).unbounded or "")
    for heeding in (None, "openai", "azure.ai.openai"):
        assert RESPONSES.read(body, heeding).unbounded is None
    assert "by itself" in (RESPONSES.read({"model": "perplexity/sonar", "input": "x"}, seller).unbounded or "")


def test_fee_for_each_call_of_a_model_that_searches_is_known_at_its_makers_own_door() -> None:
    assert CHAT is not None
    assert CHAT.read({"model": "sonar", "messages": [], "n": 1}, "perplexity").unbounded is None
    assert PriceBook().find("perplexity", "sonar").upper_bound(0, 0) >= 5_000_000


def test_functions_of_the_user_are_no_extra() -> None:
    assert CHAT is not None
    for tool in ({"type": "function", "function": {"name": "f"}}, {"function": {"name": "f"}}, {"type": "custom", "custom": {}}):
        assert CHAT.read({"model": "m", "messages": [], "modalities": ["text"], "tools": [tool]}).unbounded is None
    assert response(tools=[{"type": "function", "name": "f"}]).unbounded is None
    facts = message({"name": "f"}, {"type": "bash_20250124", "name": "bash"}, {"type": "custom", "name": "c"})
    assert (facts.unbounded, facts.rounds, facts.uses) == (None, 1, ())


@pytest.mark.parametrize("kind", ["web_search", "web_search_2025_08_26", "web_search_preview_2025_03_11", "file_search", "mcp"])
def test_responses_say_how_often_a_tool_may_be_used(kind: str) -> None:
    assert "max_tool_calls" in (response(tools=[{"type": kind}]).unbounded or "")
    for wrong in (None, True, "3", 2.0, -1):
        assert response(tools=[{"type": kind}], max_tool_calls=wrong).unbounded
    facts = response(tools=[{"type": kind}, {"type": "function", "name": "f"}], max_tool_calls=3)
    assert (facts.unbounded, facts.most_uses, facts.rounds) == (None, 3, 5)
    assert facts.window


@pytest.mark.parametrize("kind", ["code_interpreter", "image_generation", "shell", "something_new", None])
def test_tools_billed_by_time_or_amount_have_no_bound(kind: str | None) -> None:
    assert "tool" in (response(tools=[{"type": kind}], max_tool_calls=3).unbounded or "")


def test_tools_at_the_client_with_instructions_of_unknown_length_need_the_window() -> None:
    facts = response(tools=[{"type": "computer_use_preview"}])
    assert facts.window
    assert facts.unbounded is None


def test_sets_of_anthropic_tools_need_the_window() -> None:
    facts = message({"type": "computer_toolset_20260801", "name": "computer"})
    assert facts.window
    assert facts.unbounded is None


def test_cache_that_is_kept_for_half_a_day_has_no_known_price() -> None:
    assert CHAT is not None
    for ttl, known in ((None, True), ("30m", True), ("12h", False)):
        assert (response(prompt_cache_options={"mode": "explicit", "ttl": ttl}).unbounded is None) is known
        part = {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": ttl}}
        facts = CHAT.read({"model": "gpt-5.6", "messages": [{"role": "user", "content": [part]}]})
        assert (facts.unbounded is None) is known


def test_stored_prompt_may_bring_tools_unless_the_request_overrules_them() -> None:
    assert response(prompt={"id": "pmpt_1"}).unbounded
    assert response(prompt={"id": "pmpt_1"}, tools=[]).unbounded is None


def test_anthropic_search_is_bounded_by_its_max_uses() -> None:
    assert "max_uses" in (message({"type": "web_search_20250305", "name": "web_search"}).unbounded or "")
    one = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
    facts = message(one, {"type": "web_fetch_20250910", "name": "web_fetch", "max_uses": 3})
    assert (facts.unbounded, facts.uses, facts.most_uses, facts.rounds) == (None, ("web_fetch", "web_search"), 5, 7)
    filtering = {"type": "web_search_20260209", "name": "web_search", "max_uses": 2}
    assert message(filtering).rounds == 10  # code that filters the results runs in rounds of its own


@pytest.mark.parametrize("kind", ["code_execution_20250825", "tool_search_tool_regex_20251119", "advisor_20260301", 7])
def test_other_anthropic_tools_have_no_bound(kind: object) -> None:
    assert message({"type": kind, "name": "x", "max_uses": 1}).unbounded


@pytest.mark.parametrize("fields", [{"mcp_servers": [{"url": "x"}]}, {"context_management": {"edits": [{"type": "compact_20260112"}]}}])
def test_what_runs_on_at_anthropic_has_no_bound(fields: dict[str, Any]) -> None:
    assert message(**fields).unbounded


# -- what they cost ----------------------------------------------------------------------------------------------------------


def billed(facts: Facts, answer: Answer, provider: str) -> int | None:
    return bounds.billed_uses(facts, answer, PriceBook().find(provider, facts.model))


def test_uses_that_the_answer_lists_are_billed_and_nothing_else() -> None:
    assert RESPONSES is not None
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    output = [
        {**search, "action": {"type": "search", "query": "a"}},
        {**search, "action": {"type": "open_page", "url": "x"}},
        {**search, "action": {"type": "find_in_page", "pattern": "x"}},
        search,
        {"type": "file_search_call"},
        {"type": "message", "content": []},
    ]
    usage = {"input_tokens": 900, "output_tokens": 9, "total_tokens": 909}
    for wrap in (lambda r: r, lambda r: {"type": "response.completed", "response": r}):
        answer = Answer()
        RESPONSES.fold(answer, wrap({"model": "gpt-4o", "usage": usage, "output": output}))
        assert answer.usage() is not None
        facts = response(tools=[{"type": "web_search"}, {"type": "file_search"}], max_tool_calls=5)
        assert billed(facts, answer, "openai") == 2 * 10_000_000 + 2_500_000
        facts = response(tools=[{"type": "web_search_preview"}], max_tool_calls=5)
        assert billed(facts, answer, "openai") == 2 * 25_000_000
        facts = response(model="gpt-5", tools=[{"type": "web_search_preview"}], max_tool_calls=5)
        assert billed(facts, answer, "openai") == 2 * 10_000_000


def test_answer_that_does_not_list_its_output_does_not_say_what_was_used() -> None:
    assert RESPONSES is not None
    answer = Answer()
    RESPONSES.fold(answer, {"usage": {"input_tokens": 900, "output_tokens": 9}})
    assert billed(response(tools=[{"type": "web_search"}], max_tool_calls=5), answer, "openai") is None
    assert billed(response(tools=[{"type": "mcp"}], max_tool_calls=5), answer, "openai") == 0


def test_anthropic_reports_searches_in_its_usage() -> None:
    assert MESSAGES is not None
    facts = message({"type": "web_search_20250305", "name": "web_search", "max_uses": 4})
    streamed, whole, silent = Answer(streaming=True), Answer(), Answer()
    MESSAGES.fold(streamed, {"type": "message_start", "message": {"usage": {"input_tokens": 50, "output_tokens": 1}}})
    used = {"server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 0}}
    stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    MESSAGES.fold(streamed, {**stop, "usage": {"input_tokens": 9000, "output_tokens": 7, **used}})
    MESSAGES.fold(whole, {"content": [], "usage": {"input_tokens": 9000, "output_tokens": 7, **used}})
    content = [{"type": "server_tool_use", "name": "web_search"}, {"type": "text", "text": "x"}]
    MESSAGES.fold(silent, {"content": content, "usage": {"input_tokens": 9000, "output_tokens": 7}})
    assert [billed(facts, answer, "anthropic") for answer in (streamed, whole, silent)] == [30_000_000, 30_000_000, 10_000_000]
    assert streamed.usage() == whole.usage()


@pytest.mark.parametrize("times", [-1, "2", 1.5, True])
def test_uses_that_are_no_count_are_a_problem(times: object) -> None:
    assert MESSAGES is not None
    answer = Answer()
    MESSAGES.fold(answer, {"usage": {"input_tokens": 9, "output_tokens": 7, "server_tool_use": {"web_search_requests": times}}})
    assert answer.usage() is None
    assert answer.problem
