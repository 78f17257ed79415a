"""DSPy, which brings an HTTP client of its own, and LiteLLM, which stands on httpx over aiohttp and has a compiled client beside it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import dspy
import litellm
import pytest
from dspy._vendor.lm15.transports import ConnectError, StdlibAsyncTransport, StdlibTransport, TransportRequest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls, ledger_total
from tests.integration.wire import ASK, packing
from wflo_nb.testing import FakeProvider

Way = Callable[[FakeProvider], object]


def language_model(provider: FakeProvider) -> Any:
    return dspy.LM("openai/gpt-4o-mini", api_base=provider.openai_url, api_key="x", cache=False, num_retries=0)


def by_dspy(provider: FakeProvider) -> object:
    return language_model(provider)("Hello.")


def by_dspy_async(provider: FakeProvider) -> object:
    return asyncio.run(language_model(provider).acall("Hello."))


def _asked(provider: FakeProvider, model: str, stream: bool) -> dict[str, Any]:
    base = provider.openai_url if model.startswith("openai/") else provider.url
    return {"model": model, "messages": PROMPT, "api_base": base, "api_key": "x", "max_tokens": 50, "stream": stream}


def by_litellm(model: str, stream: bool) -> Way:
    def call(provider: FakeProvider) -> object:
        answer = litellm.completion(**_asked(provider, model, stream))
        return list(answer) if stream else answer

    return call


def by_litellm_async(model: str, stream: bool) -> Way:
    async def work(provider: FakeProvider) -> object:
        answer = await litellm.acompletion(**_asked(provider, model, stream))
        return [chunk async for chunk in answer] if stream else answer

    return lambda provider: asyncio.run(work(provider))


WAYS: dict[str, Way] = {"dspy": by_dspy, "dspy async": by_dspy_async}
for name in ("openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5"):
    for streams in (False, True):
        WAYS[f"litellm {name} {streams}"] = by_litellm(name, streams)
        WAYS[f"litellm async {name} {streams}"] = by_litellm_async(name, streams)


@pytest.mark.parametrize("name", WAYS)
def test_call_is_counted_once_and_refused_under_a_spent_budget(provider: FakeProvider, name: str) -> None:
    with wflo_nb.execution(budget_usd=1):
        WAYS[name](provider)
        assert "dspy" in name or os.environ["LITELLM_RUST"] == "0"
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"]
    assert provider.requests == 1 and ledger_total() == provider.spent_nano
    with pytest.raises(wflo_nb.BudgetExceededError), wflo_nb.execution(budget_usd=0):
        for _ in range(2):
            with pytest.raises(Exception, match="refused before it was sent"):
                WAYS[name](provider)
    assert provider.requests == 1


def request_to(url: str, **more: Any) -> TransportRequest:
    body = json.dumps({**ASK, **more}).encode()
    return TransportRequest("POST", url, [("content-type", "application/json")], body)


def read_sync(url: str) -> bytes:
    with StdlibTransport() as transport, transport.stream(request_to(url, stream=True)) as response:
        return bytes(response.read())


def read_async(url: str) -> bytes:
    async def work() -> bytes:
        async with StdlibAsyncTransport() as transport, transport.stream(request_to(url, stream=True)) as response:
            return bytes(await response.read())

    return asyncio.run(work())


@pytest.mark.parametrize("read", [read_sync, read_async])
@pytest.mark.parametrize("packed", [False, True])
def test_stream_of_dspys_client_is_read_and_shows_nothing_new(provider: FakeProvider, read: Callable[[str], bytes], packed: bool) -> None:
    if packed:
        packing(provider)
    url = f"{provider.openai_url}/chat/completions"
    bare = read(url)
    with wflo_nb.execution(budget_usd=1):
        assert read(url) == bare
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"] and ledger_total() == provider.bill[1].nano_usd


def test_stream_of_dspys_client_that_is_left_keeps_its_hold_and_what_reaches_nobody_costs_nothing(provider: FakeProvider) -> None:
    async def leave() -> None:
        async with StdlibAsyncTransport() as transport, transport.stream(request_to(url, stream=True)) as response:
            async for _ in response:
                break

    url = f"{provider.openai_url}/chat/completions"
    with wflo_nb.execution(budget_usd=1) as run:
        with StdlibTransport() as transport, transport.stream(request_to(url, stream=True)) as response:
            next(response.iter_lines())
        asyncio.run(leave())
        with pytest.raises(ConnectError), StdlibTransport() as transport:
            transport.stream(request_to("http://127.0.0.1:9/v1/chat/completions"))
    assert [row["state"] for row in ledger_calls()] == ["UNCONFIRMED", "UNCONFIRMED", "RELEASED"]
    assert run.figures().held_nano == 0


def test_clients_are_left_as_they_were_when_somebody_asks_for_it() -> None:
    """In a process of its own: a thread that CrewAI starts in another test works for a run from then on, so that all stays watched."""
    body = """
        import os
        import wflo_nb
        from dspy._vendor.lm15.transports import StdlibAsyncTransport, StdlibTransport
        from wflo_nb.workflow.runtime import runtime

        def clients():
            return StdlibTransport.stream, StdlibAsyncTransport._do_stream, os.environ.get("LITELLM_RUST")

        before = clients()
        with wflo_nb.execution():
            assert clients()[0] is not before[0]
        assert runtime().restore() == []
        assert clients() == before
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(body)], check=True)
