"""Whatever bytes come back: the user gets them as they are, the call ends exactly once, and nothing paid becomes free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wflo_nb.budget.account import Account
from wflo_nb.capture import gate
from wflo_nb.capture.exchange import Exchange
from wflo_nb.capture.shown import Request
from wflo_nb.model import CallState, Usage
from wflo_nb.testing import Behaviour
from wflo_nb.testing.anthropic import _message_events
from wflo_nb.testing.openai import _chat, _chat_events, _response_events
from wflo_nb.workflow.runtime import runtime

USAGE = Usage(30, 20, 5, 0, 0, 3)
STREAMS = {
    "/v1/chat/completions": _chat_events({"model": "gpt-4o", "stream_options": {"include_usage": True}}, Behaviour(), USAGE),
    "/v1/responses": _response_events({"model": "gpt-4o"}, Behaviour(), USAGE),
    "/v1/messages": _message_events({"model": "claude-sonnet-4-5"}, Behaviour(), USAGE),
}


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    from wflo_nb.store import open_store

    store = open_store(tmp_path_factory.mktemp("exchange") / "x.db")
    yield runtime().new_run("fuzz", budget_nano=10**15, store=store).account
    store.close()


def admitted(account: Account, path: str, stream: bool = True) -> Exchange:
    model = "claude-sonnet-4-5" if "messages" in path else "gpt-4o"
    body: dict[str, object] = {"model": model, "messages": [], "input": "x", "max_tokens": 50, "max_output_tokens": 50, "stream": stream}
    body["stream_options"] = {"include_usage": True}
    exchange = gate.admit(account, Request("127.0.0.1", path, json.dumps(body).encode()))
    assert exchange is not None
    return exchange


EDITS = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1), st.integers(0, 40), st.binary(max_size=8)), max_size=4)


def damaged(data: bytes, edits: list[tuple[int, float, int, bytes]]) -> bytes:
    """The bytes with a few cuts, doublings, insertions and replaced values."""
    for kind, where, length, junk in edits:
        at = int(where * len(data))
        piece = data[at : at + length]
        data = [
            data[:at] + data[at + length :],
            data[:at] + piece + data[at:],
            data[:at] + junk + data[at:],
            data.replace(piece, b"null", 1) if piece else data,
            data.replace(b'_tokens": ', b'_tokens": -', 1),
            data[:at],
        ][kind]
    return data


def spent(account: Account) -> int:
    return account.figures.spent_nano


@pytest.mark.parametrize("path", STREAMS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, cut=st.integers(1, 300))
def test_damaged_streams_pass_unchanged_and_are_never_free(
    account: Account, path: str, edits: list[tuple[int, float, int, bytes]], cut: int
) -> None:
    raw = damaged("".join(STREAMS[path]).encode(), edits)
    before = spent(account)
    exchange = admitted(account, path)
    exchange.head(200, "text/event-stream", "")
    got = b"".join(exchange.feed(raw[at : at + cut]) for at in range(0, len(raw), cut)) + exchange.flush()
    exchange.finished()
    exchange.closed()
    assert got == raw
    assert exchange.call.state in (CallState.SETTLED, CallState.UNCONFIRMED)
    assert spent(account) - before == exchange.call.cost_nano
    assert exchange.call.cost_nano
    assert account.figures.held_nano == 0
    assert account.figures.in_flight == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, encoding=st.sampled_from(["", "gzip", "br", "nonsense"]))
def test_damaged_answers_pass_unchanged_and_are_never_free(
    account: Account, edits: list[tuple[int, float, int, bytes]], encoding: str
) -> None:
    raw = damaged(json.dumps(_chat({"model": "gpt-4o"}, Behaviour(), USAGE)).encode(), edits)
    exchange = admitted(account, "/v1/chat/completions", stream=False)
    exchange.head(200, "application/json", encoding)
    assert exchange.feed(raw) + exchange.flush() == raw
    exchange.finished()
    assert exchange.call.state in (CallState.SETTLED, CallState.UNCONFIRMED)
    assert exchange.call.cost_nano


def test_undamaged_streams_settle_to_the_same_cost_as_each_other(account: Account) -> None:
    costs = {}
    for path, events in STREAMS.items():
        exchange = admitted(account, path)
        exchange.head(200, "text/event-stream; charset=utf-8", "")
        for event in events:
            exchange.feed(event.encode())
        exchange.finished()
        assert exchange.call.state is CallState.SETTLED
        assert exchange.call.usage is not None
        assert (exchange.call.usage.input_tokens, exchange.call.usage.output_tokens) == (30, 20)
        costs[path] = exchange.call.cost_nano
    assert costs["/v1/chat/completions"] == costs["/v1/responses"]


def test_call_ends_once_whatever_comes_later(account: Account) -> None:
    exchange = admitted(account, "/v1/chat/completions")
    before = account.figures.calls
    exchange.failed(TimeoutError(), sent=True)
    exchange.finished()
    exchange.closed()
    exchange.failed(OSError(), sent=False)
    assert exchange.call.state is CallState.UNCONFIRMED
    assert account.figures.calls == before + 1


@pytest.mark.parametrize(
    ("status", "state"),
    [*((code, "RELEASED") for code in (400, 401, 404, 413, 422, 429)), *((code, "UNCONFIRMED") for code in (408, 499, 500, 503, 529))],
)
def test_refusal_of_the_provider_costs_nothing_but_a_gateway_that_stopped_waiting_may(account: Account, status: int, state: str) -> None:
    exchange = admitted(account, "/v1/chat/completions", stream=False)
    exchange.head(status, "application/json", "")
    assert exchange.call.state == state
    assert exchange.call.cost_nano == (exchange.call.reserved_nano if state == "UNCONFIRMED" else 0)


def answered(account: Account, path: str, body: dict[str, object], answer: dict[str, object]) -> Exchange:
    host = "api.anthropic.com" if path.endswith("/messages") else "api.openai.com"
    exchange = gate.admit(account, Request(host, path, json.dumps(body).encode()))
    assert exchange is not None
    exchange.head(200, "application/json", "")
    exchange.feed(json.dumps(answer).encode())
    exchange.finished()
    return exchange


SEARCHING: dict[str, object] = {
    "model": "gpt-4o",
    "input": "x",
    "tools": [{"type": "web_search"}],
    "max_tool_calls": 3,
    "max_output_tokens": 50,
}
READ: dict[str, object] = {"input_tokens": 9000, "output_tokens": 20, "total_tokens": 9020}


def test_searches_are_part_of_the_cost_to_the_nano(account: Account) -> None:
    output = [{"type": "web_search_call", "action": {"type": "search"}}] * 2
    exchange = answered(account, "/v1/responses", SEARCHING, {"model": "gpt-4o", "usage": READ, "output": output})
    assert exchange.call.state is CallState.SETTLED
    assert exchange.call.cost_nano == 9000 * 2_500 + 20 * 10_000 + 2 * 10_000_000
    assert exchange.call.meta["uses"] == {"web_search": 2}
    assert exchange.call.cost_nano <= exchange.call.reserved_nano


def test_searches_without_a_limit_are_billed_where_no_budget_forbids_them(tmp_path: Path) -> None:
    from wflo_nb.store import open_store

    store = open_store(tmp_path / "free.db")
    free = runtime().new_run("free", store=store).account
    body = {name: value for name, value in SEARCHING.items() if name != "max_tool_calls"}
    output = [{"type": "web_search_call", "action": {"type": "search"}}] * 3
    exchange = answered(free, "/v1/responses", body, {"model": "gpt-4o", "usage": READ, "output": output})
    assert exchange.call.cost_nano == 9000 * 2_500 + 20 * 10_000 + 3 * 10_000_000
    tool = {"type": "web_search_20250305", "name": "web_search"}
    body = {"model": "claude-sonnet-4-5", "messages": [], "max_tokens": 50, "tools": [tool]}
    usage = {"input_tokens": 9000, "output_tokens": 20, "server_tool_use": {"web_search_requests": 1}}
    exchange = answered(free, "/v1/messages", body, {"model": "claude-sonnet-4-5", "usage": usage, "content": []})
    assert exchange.call.cost_nano == 9000 * 3_000 + 20 * 15_000 + 10_000_000
    body = {**SEARCHING, "tools": [{"type": "code_interpreter"}]}
    exchange = answered(free, "/v1/responses", body, {"model": "gpt-4o", "usage": READ, "output": []})
    assert exchange.call.cost_nano == 9000 * 2_500 + 20 * 10_000
    assert "code_interpreter" in exchange.call.meta["uncounted"]
    store.close()


def test_answer_that_does_not_list_its_searches_keeps_the_hold(account: Account) -> None:
    exchange = answered(account, "/v1/responses", SEARCHING, {"model": "gpt-4o", "usage": READ})
    assert exchange.call.state is CallState.UNCONFIRMED
    assert exchange.call.cost_nano == exchange.call.reserved_nano
    assert exchange.call.reason == "the answer does not say how often web_search ran"


def test_more_output_than_was_allowed_is_recorded_as_reported_and_said(account: Account) -> None:
    body: dict[str, object] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello" * 300}], "max_tokens": 50, "n": 2}
    usage = {"prompt_tokens": 10, "completion_tokens": 101, "total_tokens": 111}
    exchange = answered(account, "/v1/chat/completions", body, {"model": "gpt-4o", "choices": [], "usage": usage})
    assert exchange.call.state is CallState.SETTLED
    assert exchange.call.cost_nano == 10 * 2_500 + 101 * 10_000
    assert exchange.call.reason == "101 output tokens were reported where at most 100 were asked for"


CUT_CHAT = {"model": "gpt-4o", "choices": [{"index": 0, "finish_reason": "length"}], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}
CUT_RESPONSE = {"model": "gpt-4o", "incomplete_details": {"reason": "max_output_tokens"}, "usage": READ, "output": []}
CUT_MESSAGE = {"model": "claude-sonnet-4-5", "stop_reason": "max_tokens", "usage": {"input_tokens": 9, "output_tokens": 9}}
CUT_STREAMS: dict[str, list[dict[str, object]]] = {
    "/v1/chat/completions": [{**CUT_CHAT, "usage": None}, {"choices": [], "usage": CUT_CHAT["usage"]}],
    "/v1/responses": [{"type": "response.created"}, {"type": "response.incomplete", "response": CUT_RESPONSE}],
    "/v1/messages": [
        {"type": "message_start", "message": {**CUT_MESSAGE, "stop_reason": None}},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ],
}
CUT_ANSWERS: dict[str, dict[str, object]] = dict(zip(CUT_STREAMS, (CUT_CHAT, CUT_RESPONSE, CUT_MESSAGE), strict=True))


@pytest.mark.filterwarnings("ignore::wflo_nb.errors.WfloWarning")
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", CUT_STREAMS)
def test_answer_cut_off_at_our_cap_is_reported_in_every_format(account: Account, path: str, stream: bool) -> None:
    body: dict[str, object] = {"model": CUT_ANSWERS[path]["model"], "messages": [], "input": "x", "stream": stream}
    exchange = gate.admit(account, Request("127.0.0.1", path, json.dumps(body).encode()))
    assert exchange is not None
    assert exchange.call.cap_written
    exchange.head(200, "text/event-stream" if stream else "application/json", "")
    if stream:
        for event in CUT_STREAMS[path]:
            exchange.feed(f"data: {json.dumps(event)}\n\n".encode())
    else:
        exchange.feed(json.dumps(CUT_ANSWERS[path]).encode())
    exchange.finished()
    assert exchange.call.state is CallState.SETTLED
    assert "cut off at" in (exchange.call.reason or "")
