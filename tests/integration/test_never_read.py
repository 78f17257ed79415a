"""Streams that are asked for and never read, or left in the middle of a loop that is gone: their money finds an end at once."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls
from wflo_nb.budget.line import Turn
from wflo_nb.errors import BudgetExceededError
from wflo_nb.store import current
from wflo_nb.testing import FakeProvider

ASK: dict[str, Any] = {"model": "gpt-4o", "messages": PROMPT, "max_tokens": 60}


def states() -> list[str]:
    current().retire()  # ends of calls are on the disk a moment later
    return [row["state"] for row in ledger_calls()]


def test_stream_that_is_never_read_ends_when_it_is_forgotten(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution(budget_usd=1) as run:
        stream = openai_client.chat.completions.create(stream=True, **ASK)
        assert states() == ["RESERVED"]
        del stream
        gc.collect()
        assert states() == ["UNCONFIRMED"]
        assert (run.figures().in_flight, run.figures().held_nano) == (0, 0)
    assert run.figures().spent_nano >= provider.spent_nano


def test_call_does_not_wait_for_a_stream_that_was_just_forgotten(
    provider: FakeProvider, openai_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Turn, "wait", lambda _: pytest.fail("it waits"))
    with pytest.raises(BudgetExceededError, match=r"held \$0.00"), wflo_nb.execution(budget_usd=0.003, wait=20):
        openai_client.chat.completions.create(stream=True, **ASK)
        openai_client.chat.completions.create(**ASK)
    assert states() == ["UNCONFIRMED", "REFUSED"]


@pytest.mark.parametrize("begun", [False, True], ids=["never read", "half read"])
def test_stream_of_a_loop_that_is_gone_ends_when_it_is_forgotten(
    provider: FakeProvider, async_openai: Callable[[], Any], begun: bool
) -> None:
    async def ask() -> Any:
        stream = await async_openai().chat.completions.create(stream=True, **ASK)
        if begun:
            await anext(aiter(stream))
        return stream

    loop = asyncio.new_event_loop()
    with wflo_nb.execution(budget_usd=1) as run:
        stream = loop.run_until_complete(ask())
        loop.close()
        del stream
        gc.collect()
        run.account.ledger.drain()
        assert states() == ["UNCONFIRMED"]
        assert run.figures().in_flight == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_child_that_forgets_a_stream_of_its_parent_does_not_end_it(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution(budget_usd=1):
        stream = openai_client.chat.completions.create(stream=True, **ASK)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            del stream
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert states() == ["RESERVED"]
        list(stream)
    assert states() == ["SETTLED"]
