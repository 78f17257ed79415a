"""Whatever a provider does, nothing is lost and nothing is free by mistake: an unknown outcome keeps its whole hold."""

from __future__ import annotations

import re
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime


def one_call(client: Any, stream: bool, swallow: bool = True, **extra: Any) -> None:
    try:
        answer = client.with_options(max_retries=0).chat.completions.create(
            model="gpt-4o", messages=PROMPT, max_tokens=100, stream=stream, **extra
        )
        if stream:
            list(answer)
    except Exception:
        if not swallow:
            raise


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ({"usage": "missing"}, "no usage"),
        ({"usage": "null"}, "no usage"),
        ({"usage": "garbage"}, "many"),
        ({"malformed": True}, "not JSON|closed before"),
        ({"cut_after": 3}, "unknown"),
        ({"status": 500, "billed": True}, "500"),
        ({"status": 529, "billed": True}, "529"),
    ],
    ids=["missing", "null", "garbage", "malformed", "cut", "500", "529"],
)
def test_unknown_outcome_keeps_its_hold_as_unconfirmed(
    provider: FakeProvider, openai_client: Any, behaviour: dict[str, Any], why: str, stream: bool
) -> None:
    provider.behave(**behaviour)
    with wflo_nb.execution(budget_usd=1) as run:
        one_call(openai_client, stream)
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED"
    assert re.search(why, row["reason"])
    assert row["cost_nano"] == row["reserved_nano"] >= provider.spent_nano > 0
    assert run.figures().unconfirmed_nano == row["cost_nano"]
    state = run.account.store.budget(run.id)
    assert (state.spent_nano, state.held_nano, state.unconfirmed_nano) == (row["cost_nano"], 0, row["cost_nano"])


@pytest.mark.parametrize("status", [400, 401, 404, 429])
def test_call_that_the_provider_refused_costs_nothing(provider: FakeProvider, openai_client: Any, status: int) -> None:
    provider.behave(status=status)
    with wflo_nb.execution(budget_usd=1) as run:
        one_call(openai_client, stream=False)
    (row,) = ledger_calls()
    assert (row["state"], row["cost_nano"], row["http_status"]) == ("RELEASED", 0, status)
    assert run.figures().spent_nano == run.figures().held_nano == 0


def test_provider_that_is_not_there_costs_nothing(openai_client: Any) -> None:
    client = openai_client.with_options(base_url="http://127.0.0.1:9/v1")
    with wflo_nb.execution(budget_usd=1) as run:
        one_call(client, stream=False)
    (row,) = ledger_calls()
    assert row["state"] == "RELEASED"
    assert "never reached" in row["reason"]
    assert run.figures().held_nano == 0


def test_time_out_after_the_request_was_sent_keeps_the_hold(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(delay=1.0)
    with wflo_nb.execution(budget_usd=1) as run:
        one_call(openai_client.with_options(timeout=0.2), stream=False)
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED"
    assert run.figures().spent_nano == row["reserved_nano"] >= provider.spent_nano


def test_stream_closed_early_keeps_what_may_be_billed(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=100, chunk_delay=0.005)
    with wflo_nb.execution(budget_usd=1) as run:
        stream = openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=100, stream=True)
        next(iter(stream))
        stream.close()
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED"
    assert "closed before" in row["reason"]
    assert run.figures().spent_nano >= provider.spent_nano


def test_loop_that_stops_at_the_last_word_still_settles(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution(budget_usd=1):
        for chunk in openai_client.responses.create(model="gpt-4o", input="hi", max_output_tokens=50, stream=True):
            if chunk.type == "response.completed":
                break
    (row,) = ledger_calls()
    assert row["state"] == "SETTLED"
    assert row["cost_nano"] == provider.spent_nano


def test_interrupt_during_a_call_keeps_the_hold(provider: FakeProvider, openai_client: Any) -> None:
    import signal
    import threading

    provider.behave(delay=3)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), wflo_nb.execution(budget_usd=1) as run:
        timer.start()
        openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=100)
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED"
    assert run.state == "failed"
    assert run.figures().spent_nano == row["reserved_nano"]


def test_unreadable_request_to_a_known_provider_is_refused_under_a_budget() -> None:
    import httpx2

    with pytest.raises(wflo_nb.errors.UnsupportedFormatError, match="no wire format"), wflo_nb.execution(budget_usd=1):
        httpx2.post("https://api.openai.com/v1/responses/compact", json={"model": "gpt-5", "input": "x"})
    assert [r["state"] for r in ledger_calls()] == ["REFUSED"]


def test_paths_shared_with_other_services_are_left_alone(provider: FakeProvider) -> None:
    import httpx2

    with wflo_nb.execution(budget_usd=0):
        httpx2.post(f"{provider.url}/chat/messages", json={"text": "not an LLM call"})
    assert provider.requests == 1
    assert ledger_calls() == []


def test_libraries_are_left_as_they_were_when_somebody_asks_for_it() -> None:
    import aiohttp
    import urllib3

    doors = ((aiohttp.ClientSession, "_request"), (urllib3.HTTPConnectionPool, "_make_request"))

    def now() -> list[object]:
        return [getattr(cls, name) for cls, name in doors]

    before = now()
    with wflo_nb.execution():
        assert all(door is not was for door, was in zip(now(), before, strict=True))
        assert runtime().restore() == [] and now() != before, "not while a block is entered"
    assert now() != before, "a thread of the block may still be at work"
    assert runtime().restore() == []
    assert now() == before
