"""No request costs more than what is held for it: random requests against a reckoning that shares no code with ours."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.capture import pictures
from tests.unit.capture.test_media import by_squares, by_tiles
from wflo_nb.budget import endings
from wflo_nb.budget.account import Account
from wflo_nb.capture import bounds, formats, gate
from wflo_nb.capture.shown import Request
from wflo_nb.store import open_store
from wflo_nb.workflow.runtime import runtime

#: Published rates in USD per million tokens at the dearest way to be billed: priority input and output; one-hour cache writes.
GPT_4O = (4.25, 17.0)
CLAUDE = (6.0, 15.0)
CLAUDE_LONG = (12.0, 22.5)
SEARCH_NANO = 10_000_000


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    store = open_store(tmp_path_factory.mktemp("bounds") / "x.db")
    yield runtime().new_run("bounds", budget_nano=10**17, store=store).account
    store.close()


# -- requests of every kind --------------------------------------------------------------------------------------------------

SCRIPTS = st.sampled_from(
    [
        "plain words, 12345 and (signs)!",
        "naïve café, straße",
        "こんにちは世界、東京",
        "안녕하세요",
        "שלום עולם",
        "नमस्ते दुनिया",
        "ﷺ﷽ﷻ",
        "½⅓㎏㍿㋿ﬃ",
        "🧪👩‍👩‍👧‍👦🏳️‍🌈",
        "Z̸̢̛a̷l̵g̶o̴",
        '{"json": "in \\"text\\""}\n\t',
        "\x00\x1f\u2028",
        "\U0001f9ff" * 7,
    ]
)
TEXTS = st.lists(st.one_of(SCRIPTS, st.text(max_size=40)), max_size=6).map("".join)
IMAGES = st.tuples(st.integers(1, 9000), st.integers(1, 9000))
TOOLS = st.lists(st.tuples(st.from_regex(r"[a-z]{1,20}", fullmatch=True), TEXTS), max_size=3)
REQUESTS = st.fixed_dictionaries(
    {
        "messages": st.lists(st.tuples(TEXTS, st.lists(IMAGES, max_size=2)), min_size=1, max_size=5),
        "tools": TOOLS,
        "n": st.integers(1, 5),
        "cap": st.one_of(st.none(), st.integers(1, 16_000)),
        "ascii": st.booleans(),
    }
)


def longest(value: Any) -> int:
    """A tokenizer that makes a token of every byte, whichever normal form it likes better, and that reads every name, too."""
    if isinstance(value, dict):
        return sum(longest(key) + longest(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(longest, value))
    if isinstance(value, str):
        return max(len(form.encode("utf-8", "surrogatepass")) for form in (value, unicodedata.normalize("NFKC", value)))
    return len(json.dumps(value))


def openai_body(ask: dict[str, Any]) -> tuple[dict[str, Any], int]:
    messages, tokens = [], 3
    for text, images in ask["messages"]:
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        for width, height in images:
            parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pictures.png(width, height, 3000)}"}})
            tokens += by_tiles(width, height, 85, 170, enlarge=True) + 8
        tokens += longest(text) + 5
        messages.append({"role": "user", "content": parts if images else text})
    body: dict[str, Any] = {"model": "gpt-4o", "messages": messages, "n": ask["n"]}
    if ask["tools"]:
        body["tools"] = [{"type": "function", "function": {"name": name, "description": words}} for name, words in ask["tools"]]
        tokens += longest(body["tools"])
    return body, tokens


def anthropic_body(ask: dict[str, Any]) -> tuple[dict[str, Any], int]:
    messages, tokens = [], 3
    for text, images in ask["messages"]:
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        for width, height in images:
            source = {"type": "base64", "media_type": "image/jpeg", "data": pictures.jpeg(width, height, 500)}
            parts.append({"type": "image", "source": source})
            tokens += by_squares(width, height, 1568, 1568) + 8
        tokens += longest(text) + 5
        messages.append({"role": "user", "content": parts})
    body: dict[str, Any] = {"model": "claude-sonnet-4-5", "messages": messages}
    if ask["tools"]:
        body["tools"] = [{"name": name, "input_schema": {"type": "object", "description": words}} for name, words in ask["tools"]]
        tokens += longest(body["tools"]) + 530
    return body, tokens


def held(account: Account, host: str, path: str, body: dict[str, Any], ascii_only: bool) -> tuple[int, int | None]:
    """What is held for a request, and the cap that was written into it; the money is given back at once."""
    raw = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    exchange = gate.admit(account, Request(host, path, raw))
    assert exchange is not None
    endings.release(account, exchange.call)
    return exchange.call.reserved_nano, exchange.call.cap_written


def nano(tokens: int, output: int, rates: tuple[float, float]) -> int:
    return math.ceil(tokens * rates[0] * 1000) + math.ceil(output * rates[1] * 1000)


PROPERTY = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(ask=REQUESTS)
def test_no_chat_request_costs_more_than_is_held_for_it(account: Account, ask: dict[str, Any]) -> None:
    body, tokens = openai_body(ask)
    if ask["cap"] is not None:
        body["max_completion_tokens"] = ask["cap"]
    reserved, written = held(account, "api.openai.com", "/v1/chat/completions", body, ask["ascii"])
    output = ask["n"] * (ask["cap"] or written or 0)
    assert output
    assert nano(tokens, output, GPT_4O) <= reserved


@PROPERTY
@given(ask=REQUESTS)
def test_no_message_costs_more_than_is_held_for_it(account: Account, ask: dict[str, Any]) -> None:
    body, tokens = anthropic_body(ask)
    body["max_tokens"] = cap = ask["cap"] or 500
    reserved, _ = held(account, "api.anthropic.com", "/v1/messages", body, ask["ascii"])
    assert nano(tokens, cap, CLAUDE_LONG if tokens > 200_000 else CLAUDE) <= reserved


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), uses=st.integers(0, 5), cap=st.integers(16, 9000))
def test_no_search_costs_more_than_is_held_for_it(account: Account, texts: list[str], uses: int, cap: int) -> None:
    items = [{"role": "user", "content": text} for text in texts]
    body = {"model": "gpt-4o", "input": items, "tools": [{"type": "web_search"}], "max_tool_calls": uses, "max_output_tokens": cap}
    reserved, _ = held(account, "api.openai.com", "/v1/responses", body, True)
    rounds = uses + 1
    assert nano(rounds * 128_000, rounds * cap, GPT_4O) + uses * SEARCH_NANO <= reserved
    claude = {"model": "claude-sonnet-4-5", "messages": items, "max_tokens": cap}
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": uses}]
    reserved, _ = held(account, "api.anthropic.com", "/v1/messages", {**claude, "tools": tools}, True)
    assert nano(rounds * 200_000, rounds * cap, CLAUDE if rounds == 1 else CLAUDE_LONG) + uses * SEARCH_NANO <= reserved


def test_a_megabyte_of_image_does_not_count_as_a_megabyte_of_text(account: Account) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pictures.png(1024, 1024, 1_000_000)}"}}
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": [image]}], "max_completion_tokens": 100}
    reserved, _ = held(account, "api.openai.com", "/v1/chat/completions", body, True)
    assert reserved < nano(1100, 100, GPT_4O)


@pytest.mark.parametrize("text", ["ﷺ" * 50, "½⅓㎏㍿" * 20, "plain words", "naïve café", "🧪" * 30, "\ud800"])
def test_bytes_bound_the_tokens_before_and_after_normalisation(text: str) -> None:
    for ascii_only in (True, False):
        body = {"messages": [{"content": text}]}
        raw = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        assert bounds.input_tokens(raw, body) >= longest(text)


def test_a_cap_beyond_all_numbers_is_refused_like_any_other_that_does_not_fit(account: Account) -> None:
    from wflo_nb.errors import BudgetExceededError

    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 10**40}
    raw = json.dumps(body).encode()
    run = runtime().new_run("huge", budget_nano=10**12, store=account.store)
    with pytest.raises(BudgetExceededError):
        gate.admit(run.account, Request("api.openai.com", "/v1/chat/completions", raw))


# -- thoughts that are billed beside the cap -------------------------------------------------------------------------------------

_STATE = "state max_completion_tokens"


@pytest.mark.parametrize(
    ("model", "more", "output"),
    [
        ("qwen-plus", {"max_tokens": 50}, None),
        ("qwen-plus", {}, None),
        ("qwen-plus", {"max_tokens": 50, "max_completion_tokens": 50}, None),  # not known to limit this one's thoughts
        ("qwq-plus", {"max_tokens": 50, "enable_thinking": False}, None),
        ("qwen3.5-plus", {"max_tokens": 50}, None),
        ("qwen-plus", {"max_tokens": 50, "enable_thinking": True, "thinking_budget": "many"}, None),
        ("qwen-plus", {"max_tokens": 50, "enable_thinking": False}, 50),
        ("qwen-plus", {"max_tokens": 50, "thinking_budget": 1000}, 1066),
        ("qwen3.5-plus", {"max_completion_tokens": 50}, 66),
        ("deepseek-r1", {"max_completion_tokens": 50}, 66),
    ],
)
def test_thoughts_that_a_provider_bills_beside_the_cap_are_in_the_bound(model: str, more: dict[str, Any], output: int | None) -> None:
    chat = formats.find("/compatible-mode/v1/chat/completions")
    assert chat is not None
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    facts = chat.read(body, "dashscope")
    if output is None:
        assert _STATE in (facts.unbounded or "")
    else:
        assert facts.unbounded is None
        assert (facts.cap or 0) + facts.extra_output == output
    assert chat.read(body, "openai").unbounded is None


def test_thoughts_at_the_interface_of_anthropic_may_be_beside_the_cap_too() -> None:
    messages = formats.find("/apps/anthropic/v1/messages")
    assert messages is not None
    body = {"model": "qwen3.5-plus", "max_tokens": 50, "messages": []}
    assert "budget_tokens" in (messages.read(body, "dashscope").unbounded or "")
    assert messages.read({**body, "thinking": {"type": "disabled"}}, "dashscope").unbounded is None
    assert messages.read({**body, "thinking": {"type": "enabled", "budget_tokens": 900}}, "dashscope").extra_output >= 900
    assert messages.read(body, "anthropic").unbounded is None


def test_cap_of_ours_limits_thoughts_that_are_billed_beside_the_answer() -> None:
    chat = formats.find("/compatible-mode/v1/chat/completions")
    assert chat is not None
    body: dict[str, Any] = {"model": "qwen3.5-plus", "messages": []}
    assert chat.read(body, "dashscope").unbounded is None
    chat.write_cap(body, 300, "dashscope-intl.aliyuncs.com")
    assert body["max_completion_tokens"] == 300
    assert chat.read(body, "dashscope").unbounded is None
