"""Named budgets in the path of real calls: who is refused, by which budget, and what brings the calls back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls
from wflo_nb.budget import shared
from wflo_nb.errors import BudgetExceededError, ConfigurationError, WfloWarning
from wflo_nb.model import nano_from_usd
from wflo_nb.store import current, open_store
from wflo_nb.testing import FakeProvider


class Clock:
    at = datetime(2026, 11, 30, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(shared, "now", made)
    return made


def ask(client: Any) -> None:
    client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=200)


def test_block_that_runs_past_midnight_charges_each_call_to_its_own_day(provider: FakeProvider, openai_client: Any, clock: Clock) -> None:
    with wflo_nb.execution("night shift", budget_usd=1, team="ops", per="day"):
        ask(openai_client)
        first = provider.spent_nano
        clock.at = datetime(2026, 12, 1, tzinfo=UTC)
        ask(openai_client)
        ask(openai_client)
    store = current()
    assert store.budget("team:ops@2026-11-30").spent_nano == first
    assert store.budget("team:ops@2026-12-01").spent_nano == provider.spent_nano - first
    assert store.budget("team:ops").spent_nano == 0


def test_block_that_was_refused_goes_on_when_the_next_period_begins(provider: FakeProvider, openai_client: Any, clock: Clock) -> None:
    wflo_nb.shared_budget(team="ops", budget_usd="0.000001", per="month", tz="Europe/Berlin")
    with wflo_nb.execution("server", team="ops") as run:
        with pytest.raises(BudgetExceededError, match=r'team "ops" \(November 2026\) budget.*2026-12-01 00:00 Europe/Berlin'):
            ask(openai_client)
        with pytest.raises(BudgetExceededError, match=r'team "ops" \(November 2026\) budget.*An earlier call was refused'):
            ask(openai_client)
        assert provider.requests == 0
        wflo_nb.shared_budget(team="ops", budget_usd="1")
        clock.at = datetime(2026, 11, 30, 23, tzinfo=UTC)  # midnight in Berlin
        ask(openai_client)
    assert provider.requests == 1 and run.state == "done"
    assert current().budget("team:ops@2026-12").spent_nano == provider.spent_nano


def test_cap_that_is_raised_from_elsewhere_lets_calls_through_again(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution("server", budget_usd="0.000001", team="ops"):
        pass
    with wflo_nb.execution("server", budget_usd=1, team="ops") as run:
        with pytest.raises(BudgetExceededError, match='team "ops" budget'):
            ask(openai_client)
        other = open_store(current().location)  # as another kernel would
        wflo_nb.shared_budget(team="ops", budget_usd="0.5", store=other)
        other.close()
        ask(openai_client)
    assert provider.requests == 1 and run.spent_usd > 0


def test_refusal_names_which_of_several_nested_blocks_it_is(provider: FakeProvider, openai_client: Any) -> None:
    outer, inner = wflo_nb.execution("outer", budget_usd=1), wflo_nb.execution("inner", budget_usd="0.000001")
    with pytest.raises(BudgetExceededError, match=r'the execution "inner" budget of \$0\.000001 has') as caught, outer, inner:
        ask(openai_client)
    assert caught.value.scope == 'execution "inner"'
    outer, inner = wflo_nb.execution("outer", budget_usd="0.000001"), wflo_nb.execution("inner", budget_usd=1)
    with pytest.raises(BudgetExceededError, match='the execution "outer" budget'), outer, inner:
        ask(openai_client)


def test_team_of_an_inner_block_stops_that_block_and_not_the_one_around_it(provider: FakeProvider, openai_client: Any) -> None:
    wflo_nb.shared_budget(team="small", budget_usd="0.000001")
    with wflo_nb.execution("outer", budget_usd=1) as run:
        with pytest.raises(BudgetExceededError), wflo_nb.execution("inner", team="small"):
            ask(openai_client)
        ask(openai_client)
    assert provider.requests == 1 and run.state == "done"


def test_team_of_an_outer_block_is_charged_by_the_blocks_inside_it_once(provider: FakeProvider, openai_client: Any) -> None:
    outer = wflo_nb.execution("outer", budget_usd=1, team="big", user="ann")
    with outer, wflo_nb.execution("inner", budget_usd="0.5", team="big"):
        ask(openai_client)
    store = current()
    assert store.budget("team:big").spent_nano == store.budget("user:ann").spent_nano == provider.spent_nano
    assert '"team:big", "user:ann"' in ledger_calls()[0]["chain"]


def test_fifty_gathered_calls_on_a_team_that_another_block_spends_too(
    provider: FakeProvider, async_openai: Callable[[], Any], postgres_url: str
) -> None:
    provider.behave(tokens=200, delay=0.02)
    store = open_store(postgres_url)
    wflo_nb.shared_budget(team="burst", budget_usd="0.03", per="year", store=store)

    async def block(client: Any) -> None:
        with wflo_nb.execution("block", team="burst", store=store):
            asks = (client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=200) for _ in range(25))
            await asyncio.gather(*asks, return_exceptions=True)

    async def main() -> list[Any]:
        async with async_openai() as client:
            return await asyncio.gather(block(client), block(client), return_exceptions=True)

    ended = asyncio.run(main())
    assert [type(error).__name__ for error in ended] == ["BudgetExceededError"] * 2
    assert 0.8 * nano_from_usd("0.03") < provider.spent_nano <= nano_from_usd("0.03")
    state = wflo_nb.shared_budget(team="burst", store=store).state()
    assert (state.spent_nano, state.held_nano) == (provider.spent_nano, 0)
    store.close()


def test_budget_that_is_there_already_keeps_its_cap_and_says_so() -> None:
    wflo_nb.shared_budget(team="research", budget_usd=500, per="month")
    stands = r'team "research" is \$500\.00 per month already, and that stands: \$2\.00 is the cap of this run'
    with pytest.warns(WfloWarning, match=stands), wflo_nb.execution(budget_usd=2, team="research") as run:
        assert run.budget_usd == 2
    assert wflo_nb.shared_budget(team="research").left_usd == 500


def test_block_of_a_team_needs_a_budget_or_an_existing_one() -> None:
    with pytest.raises(ConfigurationError, match=r'no budget of team "research".*shared_budget\(team="research", budget_usd=500\)'):
        wflo_nb.execution(team="research").__enter__()
    with pytest.raises(ConfigurationError, match="add team=NAME"):
        wflo_nb.execution(budget_usd=2, per="month")
    with pytest.raises(ConfigurationError, match="is no name"):
        wflo_nb.execution(budget_usd=2, team="  ")
    with pytest.raises(ConfigurationError, match="one name"):
        wflo_nb.shared_budget(team="a", user="b", budget_usd=1)
    with pytest.raises(ConfigurationError, match="one name"):
        wflo_nb.shared_budget(budget_usd=1)


def test_login_name_is_the_hubs_where_there_is_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "jovyan")
    monkeypatch.delenv("JUPYTERHUB_USER", raising=False)
    assert wflo_nb.shared_budget(user=True, budget_usd=1).scope == 'user "jovyan"'
    monkeypatch.setenv("JUPYTERHUB_USER", "ann")
    assert wflo_nb.shared_budget(user=True, budget_usd=1).scope == 'user "ann"'


def test_blocks_of_two_requests_at_once_spend_their_own_budgets_only(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    provider.behave(delay=0.2)

    async def request(client: Any, asynchronous: bool) -> Any:
        block = wflo_nb.execution("request", budget_usd="0.01")
        ask = {"model": "gpt-4o", "messages": PROMPT, "max_tokens": 200}
        if asynchronous:
            async with block as run:
                await client.chat.completions.create(**ask)
        else:
            with block as run:
                await client.chat.completions.create(**ask)
        return run

    async def serve() -> list[Any]:
        async with async_openai() as client:
            return await asyncio.gather(*(request(client, number % 2 == 0) for number in range(4)))

    runs = asyncio.run(serve())
    assert [run.account.outer for run in runs] == [None] * 4
    assert [run.figures().calls for run in runs] == [1] * 4
