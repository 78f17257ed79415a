"""What was paid before a budget ended the program is not lost with it: `BudgetExceededError.partial`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

import wflo_nb
from wflo_nb import BudgetExceededError
from wflo_nb.budget import answers
from wflo_nb.model import Partial
from wflo_nb.testing import FakeProvider

from .conftest import PROMPT

MODEL = "gpt-4o"
#: Worth a few calls of `ASK`, each of which holds 0.0013 and costs 0.0002.
ENOUGH = "0.0025"
ASK: dict[str, Any] = {"model": MODEL, "messages": PROMPT, "max_completion_tokens": 30}


def words(number: int) -> str:
    """What the provider answers."""
    return "".join(f"word{i % 10} " for i in range(number))


def spend_all(client: Any, **more: Any) -> None:
    for _ in range(100):
        client.chat.completions.create(**ASK, **more)


def test_answers_before_the_refusal_are_given_in_their_order(provider: FakeProvider, openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd=ENOUGH):
        provider.next(tokens=5)
        openai_client.chat.completions.create(**ASK)
        spend_all(openai_client)
    partial = stopped.value.partial
    assert len(partial) == provider.requests > 1
    assert [p.text for p in partial] == [words(5)] + [words(20)] * (len(partial) - 1)
    assert all(isinstance(p, Partial) and p.complete and p.model == MODEL and p.call_id.startswith("call-") for p in partial)


def test_refusal_that_was_swallowed_gives_them_at_the_edge(openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd=ENOUGH), contextlib.suppress(BudgetExceededError):
        spend_all(openai_client)
    assert stopped.value.partial[0].text == words(20)


def test_stream_that_is_still_being_read_is_given_as_far_as_it_came(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(chunk_delay=0.05)
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd="0.0014", wait=0.5):
        stream = openai_client.chat.completions.create(**ASK, stream=True)
        got = [next(stream).choices[0].delta.content for _ in range(3)]
        spend_all(openai_client)
    (partial,) = stopped.value.partial
    assert not partial.complete
    assert partial.text.startswith("".join(got))
    assert words(20).startswith(partial.text)


def test_stream_that_was_cut_is_given(provider: FakeProvider, openai_client: Any) -> None:
    provider.next(cut_after=4)
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd=ENOUGH):
        with pytest.raises(Exception, match=r"peer closed|incomplete|Connection error"):
            list(openai_client.chat.completions.create(**ASK, stream=True))
        spend_all(openai_client)
    first = stopped.value.partial[0]
    assert (first.text, first.complete) == (words(4), False)


def test_several_choices_are_kept_apart(openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd=ENOUGH):
        spend_all(openai_client, n=2)
    assert stopped.value.partial[0].text == f"{words(20)}\n\n{words(20)}"


@pytest.mark.parametrize("stream", [False, True])
def test_every_wire_format_is_read(openai_client: Any, anthropic_client: Any, stream: bool) -> None:
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd="0.02"):
        for answer in (
            openai_client.responses.create(model=MODEL, input="rivers", max_output_tokens=30, stream=stream),
            anthropic_client.messages.create(model="claude-sonnet-4-5", messages=PROMPT, max_tokens=30, stream=stream),
            openai_client.chat.completions.create(**ASK, stream=stream),
        ):
            if stream:
                list(answer)
        openai_client.embeddings.create(model="text-embedding-3-small", input="no text comes back")
        openai_client.chat.completions.create(model=MODEL, messages=PROMPT, max_completion_tokens=16_000)
    assert [p.text for p in stopped.value.partial] == [words(20)] * 3
    assert all(p.complete for p in stopped.value.partial)


def test_answers_read_in_an_event_loop_are_given(async_openai: Callable[[], Any]) -> None:
    async def main() -> None:
        client = async_openai()
        async with wflo_nb.execution(budget_usd=ENOUGH):
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                pass
            await asyncio.gather(*(client.chat.completions.create(**ASK) for _ in range(100)))

    with pytest.raises(BudgetExceededError) as stopped:
        asyncio.run(main())
    assert stopped.value.partial[0].text == words(20)


def test_answers_of_a_block_inside_are_given_outside_as_well(openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd=ENOUGH):
        with wflo_nb.execution("inner"):
            openai_client.chat.completions.create(**ASK)
        spend_all(openai_client)
    assert len(stopped.value.partial) > 1


def test_only_the_newest_are_kept(openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd="0.02"):
        for _ in range(answers.MOST + 5):
            openai_client.chat.completions.create(**ASK)
        openai_client.chat.completions.create(**{**ASK, "max_completion_tokens": 16_000})
    assert len(stopped.value.partial) == answers.MOST


def test_large_answers_push_out_older_ones(openai_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from wflo_nb.capture import exchange

    monkeypatch.setattr(answers, "BYTES", 3000)
    monkeypatch.setattr(exchange, "BYTES", 3000)
    monkeypatch.setattr(exchange, "SHARE", 100)
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd="0.02"):
        for _ in range(20):
            openai_client.chat.completions.create(**ASK)
        openai_client.chat.completions.create(**{**ASK, "max_completion_tokens": 16_000})
    assert 2 < len(stopped.value.partial) < 12
    assert all(p.text == words(20) for p in stopped.value.partial)


def test_text_is_in_no_message_repr_pickle_or_log(openai_client: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wflo_nb")
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd=ENOUGH):
        spend_all(openai_client)
    error = stopped.value
    again = pickle.loads(pickle.dumps(error))
    assert again.partial == ()
    assert again.spent_usd == error.spent_usd
    shown = f"{error} {error!r} {error.partial!r} {vars(error)!r} {caplog.text}"
    assert "word1" not in shown
    assert "120 characters" in repr(error.partial[0])
    assert b"word1" not in pickle.dumps(error)


def test_nothing_is_kept_of_a_run_that_was_not_stopped(openai_client: Any) -> None:
    with wflo_nb.execution(budget_usd=1) as run:
        openai_client.chat.completions.create(**ASK)
        assert len(run.account.answers.all()) == 1
    assert run.account.answers.all() == ()


def test_threads_share_one_list(openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError) as stopped, wflo_nb.execution(budget_usd="0.006"):
        threads = [threading.Thread(target=lambda: openai_client.chat.completions.create(**ASK)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spend_all(openai_client)
    assert len(stopped.value.partial) > 4
    assert {p.text for p in stopped.value.partial} == {words(20)}
