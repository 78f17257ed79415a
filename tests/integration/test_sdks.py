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
from wflo_nb.errors import BudgetExceededError
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
