"""Whatever bytes come back: the user gets them as they are, the call ends exactly once, and nothing paid becomes free."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wflo_nb.budget.account import Account
from wflo_nb.capture import gate
from wflo_nb.capture.exchange import Exchange
from wflo_nb.model import CallState, Usage
from wflo_nb.testing import Behaviour, _chat, _chat_events, _message_events, _response_events
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
    exchange = gate.admit(account, gate.Request("127.0.0.1", path, json.dumps(body).encode()))
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
