"""What is open, in doubt or refused, whose budget lies in whose: the same on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from tests.contract.conftest import a_budget, a_call, an_execution, settled, unconfirmed
from wflo_nb.model import BudgetState, CallState, ExecutionStatus, microseconds, now
from wflo_nb.store import Store


def test_calls_are_found_by_their_state_with_the_budgets_they_are_charged_to(store: Store) -> None:
    store.open_budget(a_budget("nb", None))
    store.open_budget(a_budget("cell", 10**6, parent="nb"))
    store.begin_execution(an_execution(notebook_id="nb-mine"), holder="h|1|1|x")
    store.begin_execution(an_execution("exec-2", notebook_id="nb-other"), holder="h|1|1|x")
    at = now()
    made = [a_call(created_us=microseconds(at + timedelta(seconds=n)), execution_id=f"exec-{1 + n % 2}") for n in range(6)]
    for call in made[:4]:
        store.reserve(call, ["nb", "cell"], lo_nano=5, hi_nano=5)
    store.finish(settled(made[0], 3))
    store.finish(unconfirmed(made[1]))
    for call in made[4:]:
        store.record(replace(call, state=CallState.REFUSED, cost_nano=0, meta={"refused": {"requested_nano": 7}}))

    def ids(state: CallState, **more: object) -> list[str]:
        return [e.call.id for e in store.calls(state, **more)]  # type: ignore[arg-type]

    assert ids(CallState.RESERVED) == [made[2].id, made[3].id]
    assert {e.chain for e in store.calls(CallState.RESERVED)} == {("nb", "cell")}
    assert ids(CallState.UNCONFIRMED) == [made[1].id] and ids(CallState.SETTLED) == [made[0].id]
    assert ids(CallState.REFUSED, newest=1) == [made[5].id]
    assert ids(CallState.REFUSED, notebook="nb-mine", newest=1) == [made[4].id]
    assert ids(CallState.REFUSED, notebook="nb-none") == []
    found = store.call(made[4].id)
    assert found is not None and found.call.meta == {"refused": {"requested_nano": 7}}
    assert store.call("call-none") is None


def test_budgets_are_found_by_id_with_all_that_lies_in_them_or_all(store: Store) -> None:
    for id, parent in (("nb", None), ("a", "nb"), ("b", "nb"), ("deep", "a"), ("other", None)):
        store.open_budget(a_budget(id, 10**6, parent=parent))
    store.open_budget(BudgetState("team:r", 'team "r"', 10**6, name="r", period="month", zone="UTC"))
    call = a_call()
    store.reserve(call, ["nb", "a", "deep"], lo_nano=7, hi_nano=7)
    assert [b.id for b in store.budgets(inside="nb")] == ["a", "b", "deep", "nb"]
    assert [b.id for b in store.budgets(["other", "nb", "none"])] == ["nb", "other"]
    assert {b.id for b in store.budgets()} == {"a", "b", "deep", "nb", "other", "team:r"}
    assert store.budgets([]) == []
    held = {b.id: b.held_nano for b in store.budgets(inside="nb")}
    assert held == {"nb": 7, "a": 7, "deep": 7, "b": 0}
    (team,) = store.budgets(["team:r"])
    assert (team.name, team.period, team.zone) == ("r", "month", "UTC")
    assert len(store.budgets([f"x{n}" for n in range(1_200)] + ["nb"])) == 1, "more than one statement takes"


def test_runs_tell_their_name_and_last_sign_of_life(store: Store) -> None:
    old = now() - timedelta(hours=1)
    store.begin_execution(an_execution(created_at=old, updated_at=old, workflow="label", cell="In [3]"), holder="h|1|1|x")
    run = store.runs(["exec-1", "exec-none"])["exec-1"]
    assert (run.name, run.status, run.cell, run.holder, run.at) == ("label", "RUNNING", "In [3]", "h|1|1|x", old)
    call = a_call()
    store.reserve(call, (), lo_nano=0, hi_nano=9)
    store.finish(settled(call, 9))
    assert store.runs(["exec-1"])["exec-1"].at > old, "a settled call is a sign of life"
    store.end_execution("exec-1", ExecutionStatus.COMPLETED)
    assert store.runs(["exec-1"])["exec-1"].status == "COMPLETED" and store.runs([]) == {}


def test_without_leases_there_are_none(store: Store) -> None:
    store.open_budget(a_budget("nb", 10**6))
    assert [lease for lease in store.leases() if lease.lost_nano] == []
