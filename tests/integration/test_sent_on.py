"""Calls that are sent on to another place, refused at a price, or made through a library that was imported a second time."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
import httpx2
import pytest
import requests
import urllib3

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls
from wflo_nb.errors import BudgetExceededError
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime

ASK: dict[str, Any] = {"model": "gpt-4o", "messages": PROMPT, "max_tokens": 60}


class Sign(ThreadingHTTPServer):
    """Sends everybody on: by the number in the path to what follows it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pointing)
        self.target = ""
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Pointing(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("location", self.server.target)  # type: ignore[attr-defined]
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.fixture
def sign() -> Iterator[Sign]:
    with Sign() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("status", [307, 308])
def test_call_that_is_sent_on_to_where_nobody_watches_keeps_its_hold(provider: FakeProvider, sign: Sign, status: int) -> None:
    sign.target = f"{provider.url}/hop/abc"
    with wflo_nb.execution(budget_usd=1) as run:
        httpx2.post(f"{sign.url}/{status}/v1/chat/completions", json=ASK, follow_redirects=True)
    (row,) = ledger_calls()
    assert (row["state"], row["http_status"]) == ("UNCONFIRMED", status)
    assert run.figures().spent_nano == row["reserved_nano"] > 0


def by_aiohttp(url: str) -> None:
    async def work() -> None:
        async with aiohttp.ClientSession() as session, session.post(url, json=ASK) as response:
            await response.read()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("post", "status"),
    [
        (lambda url: requests.post(url, json=ASK, timeout=20), 307),
        (lambda url: urllib3.PoolManager().request("POST", url, json=ASK), 302),  # it goes on with the body
        (by_aiohttp, 308),
    ],
    ids=["requests", "urllib3", "aiohttp"],
)
def test_call_of_any_library_is_counted_where_it_arrives_or_keeps_its_hold(
    provider: FakeProvider, sign: Sign, post: Callable[[str], object], status: int
) -> None:
    for place, states in (("/hop/abc", ["UNCONFIRMED"]), ("/v1/chat/completions", ["UNCONFIRMED", "RELEASED", "SETTLED"])):
        sign.target = f"{provider.url}{place}"
        with wflo_nb.execution(budget_usd=1):
            post(f"{sign.url}/{status}/v1/chat/completions")
        assert [row["state"] for row in ledger_calls()] == states
    assert ledger_calls()[-1]["cost_nano"] == provider.spent_nano > 0


def test_call_that_is_answered_by_a_page_to_log_in_at_costs_nothing(provider: FakeProvider, sign: Sign) -> None:
    sign.target = f"{provider.url}/login"
    with wflo_nb.execution(budget_usd=1) as run:
        httpx2.post(f"{sign.url}/302/v1/chat/completions", json=ASK)
    assert [row["state"] for row in ledger_calls()] == ["RELEASED"]
    assert run.figures().spent_nano == 0


@pytest.mark.parametrize("status", [307, 308])
def test_call_that_is_sent_on_to_where_it_is_seen_is_counted_there(provider: FakeProvider, sign: Sign, status: int) -> None:
    sign.target = f"{provider.openai_url}/chat/completions"
    with wflo_nb.execution(budget_usd=1) as run:
        httpx2.post(f"{sign.url}/{status}/v1/chat/completions", json=ASK, follow_redirects=True)
    assert [row["state"] for row in ledger_calls()] == ["RELEASED", "SETTLED"]
    assert run.figures().spent_nano == provider.spent_nano > 0


def test_azure_may_bill_what_its_filter_refuses_and_is_not_asked_twice(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=azure.ai.openai")
    provider.next(status=400)
    with wflo_nb.execution(budget_usd=1):
        httpx2.post(f"{provider.openai_url}/chat/completions", json={**ASK, "stream": True})
    (row,) = ledger_calls()
    assert (row["state"], row["cost_nano"], row["http_status"]) == ("UNCONFIRMED", row["reserved_nano"], 400)
    assert provider.requests == 1


def test_azure_that_does_not_know_our_wish_is_asked_again_where_no_budget_counts(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=azure.ai.openai")
    provider.next(status=400)
    with wflo_nb.execution():
        assert httpx2.post(f"{provider.openai_url}/chat/completions", json={**ASK, "stream": True}).status_code == 200
    assert provider.requests == 2


def test_library_that_is_imported_a_second_time_is_watched_too(provider: FakeProvider) -> None:
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("httpx2", "httpcore2")}
    try:
        with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd=0):
            for name in ours:
                del sys.modules[name]
            import httpx2 as again

            assert again is not ours["httpx2"]
            again.post(f"{provider.openai_url}/chat/completions", json=ASK)
        assert runtime().restore() == []
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("httpx2", "httpcore2")]:
            del sys.modules[name]
        sys.modules.update(ours)
    assert provider.requests == 0
    assert not hasattr(again.HTTPTransport.handle_request, "__wflo_nb_original__")
