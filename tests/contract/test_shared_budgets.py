"""Budgets with a name: who creates them, what they hold, and how their periods turn over. On both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.contract.conftest import a_call, settled
from wflo_nb.budget import shared
from wflo_nb.budget.budget import Budget
from wflo_nb.budget.shared import Shared, define, find, sharing
from wflo_nb.errors import BudgetUnavailableError, ConfigurationError
from wflo_nb.store import Shortfall, Store

USD = 10**9


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, at: str) -> None:
        self.set(at)

    def set(self, at: str) -> None:
        self.at = datetime.fromisoformat(at).replace(tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock("2026-11-23T12:00")
    monkeypatch.setattr(shared, "now", made)
    return made


def reserve(store: Store, budget: Budget, nano: int) -> tuple[Any, int | Shortfall]:
    call = a_call(budget_id=budget.id)
    return call, store.reserve(call, budget.rows(), lo_nano=nano, hi_nano=nano)


def test_the_first_who_names_a_budget_creates_it_and_the_others_share_it(store: Store) -> None:
    mine, yours = find(store, "team", "research", 2 * USD), find(store, "team", "research", 2 * USD)
    assert mine.id == yours.id == "team:research" and mine.scope == 'team "research"'
    assert reserve(store, mine, 1_500_000_000)[1] == 1_500_000_000
    refused = reserve(store, yours, 1_000_000_000)[1]
    assert isinstance(refused, Shortfall) and refused.budget.scope == 'team "research"'
    assert yours.left_usd == mine.left_usd == 0.5


def test_two_who_create_it_at_once_get_the_same_one(opened: Callable[[], Store]) -> None:
    stores, found = [opened() for _ in range(4)], []
    start = threading.Barrier(4)

    def create(store: Store, cap: int) -> None:
        start.wait()
        found.append(find(store, "team", "race", cap * USD))

    threads = [threading.Thread(target=create, args=(store, cap)) for cap, store in enumerate(stores, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.cap_nano for one in found}) == 1


def test_one_that_exists_keeps_its_cap_and_the_user_is_told(store: Store) -> None:
    define(store, "team", "research", 500 * USD)
    asked = sharing(team="research")
    assert asked is not None
    (budget,), said = asked.budgets(store, 2 * USD)
    assert budget.cap_nano == 500 * USD
    assert said == [
        'The budget of team "research" is $500.00 already, and that stands: $2.00 is the cap of this run inside it. '
        "`%wflo budget USD team=research` changes it."
    ]
    assert asked.budgets(store, 500 * USD)[1] == asked.budgets(store, None)[1] == []


def test_one_that_does_not_exist_is_refused_without_a_cap(store: Store) -> None:
    with pytest.raises(ConfigurationError, match=r"There is no budget of user \"ann\".*%wflo budget 500 user=ann"):
        find(store, "user", "ann")


def test_a_month_begins_with_the_whole_cap_and_in_its_own_time_zone(store: Store, clock: Clock) -> None:
    clock.set("2026-11-30T22:59:59")
    budget = find(store, "team", "research", 5 * USD, "month", "Europe/Berlin")
    call, held = reserve(store, budget, 4 * USD)
    assert held == 4 * USD and budget.id == "team:research@2026-11" and budget.scope == 'team "research" (November 2026)'
    assert isinstance(reserve(store, budget, 2 * USD)[1], Shortfall)

    clock.set("2026-11-30T23:00:00")  # midnight in Berlin
    assert reserve(store, budget, 4 * USD)[1] == 4 * USD
    assert budget.id == "team:research@2026-12"
    store.finish(settled(call, 3 * USD))  # its answer comes in December; its money was November's
    assert (store.budget("team:research@2026-11").spent_nano, store.budget("team:research@2026-11").held_nano) == (3 * USD, 0)
    assert (store.budget("team:research@2026-12").spent_nano, store.budget("team:research@2026-12").held_nano) == (0, 4 * USD)
    definition = store.budget("team:research")
    assert (definition.spent_nano, definition.held_nano, definition.period, definition.zone) == (0, 0, "month", "Europe/Berlin")


def test_a_period_without_a_zone_turns_over_in_utc(store: Store, clock: Clock) -> None:
    clock.set("2026-12-31T23:59:59")
    budget = find(store, "team", "research", 5 * USD, "week")
    budget.open()
    assert (budget.id, budget.zone) == ("team:research@2026-W53", "UTC")
    clock.set("2027-01-03T23:59:59")
    assert budget.rows() == ["team:research@2026-W53"]
    clock.set("2027-01-04T00:00:00")
    assert budget.rows() == ["team:research@2027-W01"]


def test_a_clock_that_was_wrong_and_is_set_right_brings_its_own_period_back(store: Store, clock: Clock) -> None:
    budget = find(store, "team", "research", 5 * USD, "month")
    assert reserve(store, budget, 4 * USD)[1] == 4 * USD
    other = find(store, "team", "research")
    clock.set("2027-01-01T00:00")
    assert reserve(store, budget, 4 * USD)[1] == 4 * USD
    assert (budget.id, budget.turned) == ("team:research@2027-01", True)
    clock.set("2026-11-30T23:59:59")
    assert (budget.turned, other.turned) == (False, True)
    for one in (budget, other):
        assert isinstance(reserve(store, one, 4 * USD)[1], Shortfall)
        assert (one.id, one.turned) == ("team:research@2026-11", True)


def test_a_new_cap_counts_from_the_present_period_on(store: Store, clock: Clock) -> None:
    budget = find(store, "team", "research", 5 * USD, "month")
    budget.open()
    clock.set("2026-12-01T00:00")
    state = define(store, "team", "research", 7 * USD)
    assert (state.id, state.cap_nano) == ("team:research@2026-12", 7 * USD)
    assert store.budget("team:research@2026-11").cap_nano == 5 * USD
    assert store.budget("team:research").cap_nano == 7 * USD
    budget.turn()
    assert budget.cap_nano == 7 * USD


@pytest.mark.parametrize(
    ("per", "zone", "says"),
    [
        ("day", None, "per month in Europe/Berlin and cannot be made per day"),
        ("month", "UTC", "per month in Europe/Berlin and cannot be made per month in UTC"),
    ],
)
def test_another_period_or_zone_is_refused_with_both_values(store: Store, per: str, zone: str | None, says: str) -> None:
    define(store, "team", "research", 5 * USD, "month", "Europe/Berlin")
    for cap in (None, 2 * USD):
        with pytest.raises(ConfigurationError, match=says):
            find(store, "team", "research", cap, per, zone)
    assert find(store, "team", "research", 2 * USD, "month").zone == "Europe/Berlin"


def test_one_without_a_period_cannot_be_given_one_later(store: Store) -> None:
    define(store, "team", "research", 5 * USD)
    with pytest.raises(ConfigurationError, match=r"for good \(without a period\) and cannot be made per month"):
        define(store, "team", "research", 5 * USD, "month", "UTC")


def test_names_may_be_addresses_and_never_meet_the_row_of_a_period(store: Store, clock: Clock) -> None:
    define(store, "team", "research", 5 * USD, "month")
    trap = find(store, "team", "research@2026-11", 1 * USD)
    assert trap.id not in {"team:research@2026-11"} and trap.scope == 'team "research@2026-11"'
    assert store.budget(trap.id).name == "research@2026-11"
    assert find(store, "user", "ann@example.org", USD).id == "user:ann%40example.org"


def test_shared_budgets_are_locked_before_others_and_always_in_the_same_order(store: Store) -> None:
    team, user = find(store, "team", "zoo", 9 * USD), find(store, "user", "ann", 9 * USD)
    notebook = Budget(store, "nb:1", "notebook")
    outer = Budget(store, "exec-1", "execution", 5 * USD, notebook, (user,))
    inner = Budget(store, "exec-2", "execution", 4 * USD, outer, (team, find(store, "user", "ann")))
    inner.open()
    assert inner.rows() == ["team:zoo", "user:ann", "nb:1", "exec-1", "exec-2"]
    assert reserve(store, inner, 3 * USD)[1] == 3 * USD
    capped = ["team:zoo", "user:ann", "exec-1", "exec-2"]
    assert [store.budget(id).held_nano for id in capped] == [3 * USD] * 4


def test_a_cap_that_somebody_else_raised_eases_a_refusal_here(store: Store, clock: Clock) -> None:
    budget = find(store, "team", "research", 5 * USD, "month")
    budget.open()
    row, cap = budget.id, budget.cap_nano
    assert not budget.eased(row, cap)
    find(store, "team", "research").set_cap(6 * USD)
    assert budget.eased(row, cap) and not budget.eased(row, 6 * USD)
    clock.set("2026-12-01T00:00")
    assert budget.eased(row, 6 * USD), "a new month has money of its own"


def test_a_shared_budget_always_has_a_cap(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="needs an amount"):
        find(store, "team", "research", USD).set_cap(None)


def test_a_ledger_that_cannot_be_used_says_so_at_the_start(opened: Callable[[], Store]) -> None:
    store, another = opened(), opened()
    define(store, "team", "research", USD)
    for one in (store, another):
        one.close()
    for cap in (None, USD):
        with pytest.raises(BudgetUnavailableError, match='team "research"'):
            find(another, "team", "research", cap)
    with pytest.raises(BudgetUnavailableError, match='team "research"'):
        define(store, "team", "research", 2 * USD)


def test_what_is_known_of_it_needs_no_second_question(opened: Callable[[], Store], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    find(store, "team", "research", USD, "month").open()

    def asked(*_: object) -> None:
        raise AssertionError("the ledger was asked")

    for name in ("open_budget", "budget"):
        monkeypatch.setattr(store, name, asked)
    assert find(store, "team", "research", USD, "month").rows() == ["team:research@2026-11"]


def test_the_advice_tells_when_the_next_period_begins(store: Store, clock: Clock) -> None:
    budget = find(store, "team", "two words", 5 * USD, "month", "Europe/Berlin")
    budget.open()
    assert isinstance(budget, Shared)
    assert "`%wflo budget USD 'team=two words'`" in budget.advice
    assert "wait until 2026-12-01 00:00 Europe/Berlin, when the next month begins" in budget.advice
