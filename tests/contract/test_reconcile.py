"""What is in doubt is settled by evidence: once, everywhere it was counted, and by nothing but evidence."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.contract.conftest import a_budget, a_call, an_execution, settled, unconfirmed
from wflo_nb import report
from wflo_nb.budget import reconcile as room
from wflo_nb.budget.reconcile import SILENT, evidence, reconcile
from wflo_nb.errors import ConfigurationError, StoreError, UnknownModelError
from wflo_nb.model import Call, CallState, Usage, microseconds, now
from wflo_nb.pricing.book import PriceBook
from wflo_nb.store import Store
from wflo_nb.store.holder import this_holder

HOLD = 1_000_000


@pytest.fixture
def doubtful(store: Store) -> tuple[Store, Call]:
    """A call that is unconfirmed at its hold, in a cell inside a notebook, beside one that is settled."""
    store.open_budget(a_budget("nb", 10 * HOLD))
    store.open_budget(a_budget("cell", 5 * HOLD, parent="nb"))
    store.begin_execution(an_execution(), holder=this_holder())
    call, other = a_call(cell="In [3]"), a_call()
    for one in (call, other):
        store.reserve(one, ["nb", "cell"], lo_nano=HOLD, hi_nano=HOLD)
    store.finish(unconfirmed(call))
    store.finish(settled(other, 700))
    return store, call


def sums(store: Store) -> tuple[int, int, int]:
    """Spent, held and unconfirmed, the same in both budgets and in the execution."""
    nb, cell = store.budget("nb"), store.budget("cell")
    assert (nb.spent_nano, nb.held_nano, nb.unconfirmed_nano) == (cell.spent_nano, cell.held_nano, cell.unconfirmed_nano)
    assert store.execution("exec-1").cost_nano == nb.spent_nano
    assert int(report.costs("model", store)["cost_nano"].sum()) == nb.spent_nano
    return nb.spent_nano, nb.held_nano, nb.unconfirmed_nano


@pytest.mark.parametrize(
    ("told", "cost", "state"),
    [
        ({"cost_usd": "0.0000012"}, 1_200, CallState.SETTLED),
        ({"cost_usd": "0.0000000001"}, 1, CallState.SETTLED),
        ({"cost_usd": 0.5}, 500_000_000, CallState.SETTLED),
        ({"free": True}, 0, CallState.RELEASED),
        ({"usage": {"input": "1_000", "output": 10}}, 2_600_000, CallState.SETTLED),
        ({"usage": Usage(1_000, 10, cache_read_tokens=1_000)}, 1_350_000, CallState.SETTLED),
    ],
)
def test_evidence_corrects_the_call_its_execution_and_every_budget(
    doubtful: tuple[Store, Call], told: dict[str, Any], cost: int, state: CallState
) -> None:
    store, call = doubtful
    assert sums(store) == (HOLD + 700, 0, HOLD)
    after = reconcile(store, call.id, **told)
    assert (after.state, after.cost_nano) == (state, cost)
    assert sums(store) == (cost + 700, 0, 0)
    assert "reconciled" in str(after.reason) and "the stream was cut" in str(after.reason)
    assert after.meta["reconciled"]["was_nano"] == HOLD
    if "usage" in told:
        assert after.usage is not None and after.usage.input_tokens == 1_000 and after.price_source


def test_it_happens_once_and_cannot_be_done_again(doubtful: tuple[Store, Call]) -> None:
    store, call = doubtful
    reconcile(store, call.id, cost_usd="0.0000012")
    for again in ({"free": True}, {"cost_usd": 5}, {"dead": True}):
        with pytest.raises(ConfigurationError, match=r"is not in doubt: it is SETTLED at \$0.0000012"):
            reconcile(store, call.id, **again)  # type: ignore[arg-type]
    assert sums(store) == (1_900, 0, 0)


def test_of_many_who_know_something_else_one_is_believed(doubtful: tuple[Store, Call]) -> None:
    store, call = doubtful
    failed: list[Exception] = []

    def tell(nano: int) -> None:
        try:
            reconcile(store, call.id, cost_usd=Decimal(nano).scaleb(-9))
        except (StoreError, ConfigurationError) as error:
            failed.append(error)

    threads = [threading.Thread(target=tell, args=(1_000 + n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    found = store.call(call.id)
    assert found is not None and len(failed) == 5
    assert sums(store) == ((found.call.cost_nano or 0) + 700, 0, 0)


def test_what_the_provider_reported_is_the_least(doubtful: tuple[Store, Call]) -> None:
    store, _ = doubtful
    call = a_call()
    store.reserve(call, ["nb", "cell"], lo_nano=HOLD, hi_nano=HOLD)
    store.finish(replace(unconfirmed(call), usage=Usage(100, 0)))
    for told in ({"free": True}, {"cost_usd": "0.0002"}):
        with pytest.raises(ConfigurationError, match="100 tokens in and 0 out"):
            reconcile(store, call.id, **told)  # type: ignore[arg-type]
    assert reconcile(store, call.id, cost_usd="0.00025").cost_nano == 250_000


def test_a_usage_of_a_model_without_a_price_needs_one(doubtful: tuple[Store, Call]) -> None:
    store, _ = doubtful
    call = a_call(model="mine", provider="elsewhere")
    store.reserve(call, ["nb", "cell"], lo_nano=HOLD, hi_nano=HOLD)
    store.finish(unconfirmed(call))
    with pytest.raises(UnknownModelError):
        reconcile(store, call.id, usage={"input": 10, "output": 1})
    book = PriceBook()
    book.declare("mine", input=1, output=2)
    assert reconcile(store, call.id, usage={"input": 10, "output": 1}, book=book).cost_nano == 12_000


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({}, "nothing says"),
        ({"free": True, "cost_usd": 1}, "cost and free together"),
        ({"cost_usd": -1}, "negative"),
        ({"cost_usd": "much"}, "not an amount"),
        ({"usage": {"input": 5}}, "both counts"),
        ({"usage": {"input": 5, "output": "x"}}, "not a whole number"),
        ({"usage": {"input": 5, "output": 1, "words": 2}}, "no count of tokens"),
        ({"usage": {"input": 5, "output": 1, "cache_read": 6}}, "larger than its whole"),
    ],
)
def test_what_is_no_evidence_is_said(told: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        evidence(**told)


def test_a_call_that_does_not_exist_is_said(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="No call call-x"):
        reconcile(store, "call-x", free=True)


def test_a_call_in_flight_here_is_left_alone(doubtful: tuple[Store, Call]) -> None:
    store, _ = doubtful
    call = a_call(holder=this_holder())
    store.reserve(call, ["nb", "cell"], lo_nano=HOLD, hi_nano=HOLD)
    before = sums(store)
    for told in ({"free": True}, {"dead": True}):
        with pytest.raises(ConfigurationError, match=r"in flight: this process is alive"):
            reconcile(store, call.id, **told)  # type: ignore[arg-type]
    assert sums(store) == before


def test_holds_of_dead_processes_of_this_machine_are_found_by_themselves(doubtful: tuple[Store, Call]) -> None:
    store, _ = doubtful
    host = this_holder().partition("|")[0]
    call = a_call(holder=f"{host}|999999|1@x|y")
    store.reserve(call, ["nb", "cell"], lo_nano=HOLD, hi_nano=HOLD)
    assert room.sweep(store) == 1
    assert sums(store) == (2 * HOLD + 700, 0, 2 * HOLD)
    assert reconcile(store, call.id, free=True).cost_nano == 0


def test_holds_of_other_machines_are_shown_when_they_fall_silent_and_judged_by_the_user(doubtful: tuple[Store, Call]) -> None:
    store, _ = doubtful
    old = now() - 2 * SILENT
    store.begin_execution(an_execution("exec-far", created_at=old, updated_at=old), holder="far#1|7|1|x")
    store.begin_execution(an_execution("exec-busy", created_at=old, updated_at=now()), holder="far#1|7|1|x")
    silent, busy, young = (
        a_call(execution_id=e, created_us=microseconds(at), holder="far#1|7|1|x")
        for e, at in (("exec-far", old), ("exec-busy", old), ("exec-far", now()))
    )
    for one in (silent, busy, young):
        store.reserve(one, ["nb", "cell"], lo_nano=HOLD, hi_nano=HOLD)
    assert [h.entry.call.id for h in room.silent_holds(store)] == [silent.id]
    with pytest.raises(ConfigurationError, match=rf"held by process 7 on far.*reconcile {silent.id} dead"):
        reconcile(store, silent.id, free=True)
    spent, held, doubt = store.budget("nb").spent_nano, store.budget("nb").held_nano, store.budget("nb").unconfirmed_nano
    assert reconcile(store, silent.id, dead=True).state is CallState.UNCONFIRMED
    state = store.budget("nb")
    assert (state.spent_nano, state.held_nano, state.unconfirmed_nano) == (spent + HOLD, held - HOLD, doubt + HOLD)
    store.finish(settled(silent, 5))  # it lived after all: its own answer is the truth
    assert store.budget("nb").spent_nano == spent + 5


def test_many_are_planned_first_and_then_done(doubtful: tuple[Store, Call]) -> None:
    store, first = doubtful
    store.open_budget(a_budget("wide", None))
    for n in range(5):
        call = a_call(model="gpt-4o-mini", cell="In [4]", created_us=microseconds(now() - timedelta(hours=n)))
        store.reserve(call, ["wide"], lo_nano=HOLD, hi_nano=HOLD)
        store.finish(unconfirmed(call))
    entries = room.unconfirmed(store)
    assert len(entries) == 6
    assert [e.call.id for e in room.only(entries, cell="In [3]")] == [first.id]
    assert len(room.only(entries, model="gpt-4o-mini", older=timedelta(hours=2))) == 3
    planned = room.plan(room.only(entries, model="gpt-4o-mini"), evidence(free=True))
    assert planned.difference_nano == -5 * HOLD and store.budget("wide").spent_nano == 5 * HOLD, "nothing has happened yet"
    reconcile(store, planned.changes[0].before.id, cost_usd="0.000001")  # meanwhile
    seen: list[tuple[int, int]] = []
    done = room.carry_out(store, planned, lambda n, of: seen.append((n, of)))
    assert len(done.changes) == 4 and list(done.problems) == [planned.changes[0].before.id] and seen[-1] == (5, 5)
    state = store.budget("wide")
    assert (state.spent_nano, state.unconfirmed_nano) == (1_000, 0)
