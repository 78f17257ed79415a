"""Each provider's own SDK over a real socket: the ledger says what the provider bills, a spent budget sends nothing, the user's code
receives what it would have received.
"""

from __future__ import annotations

import asyncio
import contextlib
from decimal import Decimal
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import ledger_calls, ledger_total
from tests.integration.sdks import SDKS, Sdk, ask_async
from wflo_nb.errors import BudgetExceededError, UnknownModelError
from wflo_nb.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::wflo_nb.errors.WfloWarning")
WAYS = [pytest.param(sdk, stream, id=f"{sdk}{'-stream' if stream else ''}") for sdk in SDKS for stream in (False, True)[: 1 + sdk.streams]]
PAID = [way for way in WAYS if not way.values[0].free]


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tells whose prices the provider on loopback has."""
    return lambda sdk: monkeypatch.setenv("WFLO_GATEWAYS", f"127.0.0.1={sdk.owner}")


@pytest.mark.parametrize(("sdk", "stream"), WAYS)
def test_ledger_says_what_the_provider_bills_and_the_user_sees_nothing_new(
    provider: FakeProvider, gateway: Any, sdk: Sdk, stream: bool
) -> None:
    gateway(sdk)
    provider.behave(tokens=30, cache_read=sdk.read, reasoning=sdk.reasoning)
    bare = sdk.ask(provider, 400, stream)
    with wflo_nb.execution("t"):
        watched = sdk.ask(provider, 400, stream)
    assert watched == bare
    (row,) = ledger_calls()
    billed = provider.bill[-1]
    assert (row["state"], row["reason"]) == ("SETTLED", None)
    assert row["model"] == billed.model
    assert row["stream"] in ((1, True) if stream else (0, False))
    assert (row["input_tokens"], row["output_tokens"] or 0) == (billed.usage.input_tokens, billed.usage.output_tokens)
    assert (row["cache_read_tokens"] or 0, row["reasoning_tokens"] or 0) == (sdk.read, sdk.reasoning if sdk.writes else 0)
    assert row["cost_nano"] == billed.nano_usd
    assert sdk.free or billed.nano_usd > 0


@pytest.mark.parametrize(("sdk", "stream"), PAID)
def test_budget_that_cannot_pay_sends_nothing(provider: FakeProvider, gateway: Any, sdk: Sdk, stream: bool) -> None:
    gateway(sdk)
    with pytest.raises(BudgetExceededError), wflo_nb.execution("t", budget_usd="0.000000001"):
        sdk.ask(provider, 8_000, stream)
    assert provider.requests == 0
    assert ledger_total() == 0


@pytest.mark.parametrize(("sdk", "stream"), PAID)
def test_refusal_reaches_the_caller_as_itself_and_is_not_tried_again(provider: FakeProvider, gateway: Any, sdk: Sdk, stream: bool) -> None:
    gateway(sdk)
    reached: list[BaseException] = []
    with contextlib.suppress(BudgetExceededError), wflo_nb.execution("t", budget_usd="0.000000001"):
        try:
            sdk.ask(provider, 8_000, stream)
        except Exception as error:  # not as `pytest.raises` does it: what it lets out, the edge makes a refusal of
            reached.append(error)
    assert [isinstance(error, BudgetExceededError) for error in reached] == [True]
    assert [row["state"] for row in ledger_calls()] == ["REFUSED"]
    assert provider.requests == 0


@pytest.mark.parametrize(("sdk", "stream"), [way for way in PAID if way.values[0].writes and way.values[0].cap])
def test_bound_holds_and_a_missing_cap_is_written(provider: FakeProvider, gateway: Any, sdk: Sdk, stream: bool) -> None:
    gateway(sdk)
    provider.behave(tokens=100_000)  # as much as the cap allows
    with wflo_nb.execution("t", budget_usd=sdk.budget):
        sdk.ask(provider, None, stream)
    value: Any = provider.bodies[-1]
    for key in sdk.cap:
        value = value[key]
    (row,) = ledger_calls()
    assert value == row["cap_written"] > 0
    assert 0 < provider.spent_nano == row["cost_nano"] <= row["reserved_nano"] <= Decimal(sdk.budget) * 10**9


@pytest.mark.parametrize(("sdk", "stream"), PAID)
def test_usage_that_never_comes_keeps_the_whole_hold(provider: FakeProvider, gateway: Any, sdk: Sdk, stream: bool) -> None:
    gateway(sdk)
    provider.behave(usage="missing")
    # What an SDK says to an answer without usage is its own affair.
    with wflo_nb.execution("t", budget_usd=1), contextlib.suppress(Exception):
        sdk.ask(provider, 400, stream)
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED"
    assert row["cost_nano"] == row["reserved_nano"] >= provider.spent_nano > 0


def test_asynchronous_clients_are_seen_as_the_others_are(provider: FakeProvider) -> None:
    async def work() -> None:
        price = {"llama-3.3-70b-versatile": {"input": 1, "output": 1}}
        with wflo_nb.execution("t", budget_usd=1, prices=price):
            await ask_async(provider)

    asyncio.run(work())
    rows = ledger_calls()
    assert [row["state"] for row in rows] == ["SETTLED"] * 8
    assert [(row["input_tokens"], row["output_tokens"]) for row in rows] == [
        (line.usage.input_tokens, line.usage.output_tokens) for line in provider.bill
    ]
    assert sum(row["stream"] for row in rows) == 4


def _groq(provider: FakeProvider, kind: str) -> Any:
    from groq import AsyncGroq, Groq

    return (AsyncGroq if kind == "async" else Groq)(base_url=provider.url, api_key="test")  # with its own two retries


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", ["sync", "async", "raw"])
def test_client_that_wraps_every_exception_gives_the_refusal_itself_at_once(
    provider: FakeProvider, gateway: Any, kind: str, stream: bool
) -> None:
    gateway(Sdk("groq", "groq", lambda *_: None))
    client = _groq(provider, kind)

    reached: list[BaseException] = []
    asked: Any = {"model": "llama-3.3-70b-versatile", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8_000}
    create: Any = (client.chat.completions.with_raw_response if kind == "raw" else client.chat.completions).create

    async def work() -> None:
        with wflo_nb.execution("t", budget_usd="0.000000001"):
            for _ in range(4):  # and again, of somebody who swallows it
                try:
                    answer = create(**asked, stream=stream)
                    await answer if kind == "async" else None
                except Exception as error:
                    reached.append(error)

    with pytest.raises(BudgetExceededError):
        asyncio.run(work())
    assert [type(error).__name__ for error in reached] == ["BudgetExceededError"] * 4
    assert "refused before it was sent" in str(reached[0])
    assert [row["state"] for row in ledger_calls()] == ["REFUSED"] * 4
    assert provider.requests == 0


def test_refusals_of_other_kinds_reach_such_a_client_too(provider: FakeProvider, gateway: Any) -> None:
    gateway(Sdk("groq", "groq", lambda *_: None))
    client = _groq(provider, "sync")
    messages: Any = [{"role": "user", "content": "hi"}]
    with wflo_nb.execution("t", budget_usd=1), pytest.raises(UnknownModelError, match="nobody-knows-it"):
        client.chat.completions.create(model="nobody-knows-it", messages=messages)
    assert provider.requests == 0
    with wflo_nb.execution("t", budget_usd=1):  # and what is not refused is what it was
        assert client.chat.completions.create(model="llama-3.3-70b-versatile", messages=messages).choices


@pytest.mark.parametrize("status", [402, 429])
def test_quota_that_is_used_up_at_the_provider_is_the_sdks_own_error_and_costs_nothing(
    provider: FakeProvider, gateway: Any, status: int
) -> None:
    from groq import APIStatusError

    gateway(Sdk("groq", "groq", lambda *_: None))
    provider.behave(status=status, retry_after_ms=1)
    with wflo_nb.execution("t", budget_usd=1) as run, pytest.raises(APIStatusError) as caught:
        _groq(provider, "sync").chat.completions.create(
            model="llama-3.3-70b-versatile", messages=[{"role": "user", "content": "hi"}], max_tokens=50
        )
    assert caught.value.status_code == status
    rows = ledger_calls()
    assert {(row["state"], row["cost_nano"], row["http_status"]) for row in rows} == {("RELEASED", 0, status)}
    assert len(rows) == provider.requests == (3 if status == 429 else 1)  # each of the SDK's retries is a call of its own
    assert (run.figures().spent_nano, run.figures().held_nano, run.figures().stopped) == (0, 0, None)
