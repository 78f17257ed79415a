"""Money: what a reserve may hold, what a finish leaves, whoever asks, how often, and from how many threads."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.contract.conftest import a_budget, a_call, an_execution, released, settled, unconfirmed
from wflo_nb.errors import ExecutionNotFoundError, StoreError
from wflo_nb.model import MAX_NANO, BudgetState, Call, CallState, ExecutionStatus, Usage, microseconds
from wflo_nb.store import Shortfall, Store

CHAIN = ("team", "notebook", "cell")


def sums(store: Store, id: str) -> tuple[int, int, int]:
    b = store.budget(id)
    return b.spent_nano, b.held_nano, b.unconfirmed_nano


@pytest.fixture
def nested(store: Store) -> Store:
    """Cell (1000) inside a notebook (1500) inside a team without a cap."""
    store.open_budget(a_budget("team", None))
    store.open_budget(a_budget("notebook", 1500, "team"))
    store.open_budget(a_budget("cell", 1000, "notebook"))
    store.begin_execution(an_execution(), holder="host|1|1|x")
    return store


class TestExecutions:
    def test_comes_back_as_it_went_in(self, store: Store) -> None:
        e = an_execution(
            budget_nano=MAX_NANO,
            parent_id="exec-0",
            notebook_id="nb:…/ünïcode 日本.ipynb",
            kernel_id="k",
            cell="In [3]",
            cell_id="abc",
            inputs={"a": [1, 2.5, None, "é\n"], "nested": {"t": True}},
            outputs="1",
            error={"type": "ValueError", "message": "no"},
        )
        store.begin_execution(e, holder="h|1|1|x")
        assert store.execution("exec-1") == e

    def test_entering_it_again_changes_nothing(self, store: Store) -> None:
        store.begin_execution(an_execution(), holder="h|1|1|x")
        store.end_execution("exec-1", ExecutionStatus.COMPLETED)
        store.begin_execution(an_execution(workflow="another"), holder="h|1|1|x")
        e = store.execution("exec-1")
        assert (e.status, e.workflow) == (ExecutionStatus.COMPLETED, "a workflow")

    def test_one_that_is_entered_late_has_the_cost_of_its_calls(self, store: Store) -> None:
        """It began when the ledger could not be reached, and some of its calls ended when that was back."""
        in_doubt = a_call(reserved_nano=50)
        store.finish(settled(a_call(), 10))
        store.finish(unconfirmed(in_doubt))
        store.begin_execution(an_execution(), holder="host|1|1|x")
        assert store.execution("exec-1").cost_nano == 60
        store.begin_execution(an_execution(), holder="host|1|1|x")
        store.finish(settled(in_doubt, 20))
        store.finish(settled(a_call(), 1))
        assert store.execution("exec-1").cost_nano == 31

    def test_ends_with_its_outputs_and_its_error(self, store: Store) -> None:
        store.begin_execution(an_execution(inputs=[1]), holder="h|1|1|x")
        at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
        store.end_execution("exec-1", ExecutionStatus.FAILED, outputs={"n": 1}, error={"type": "KeyError", "message": "'x'"}, at=at)
        e = store.execution("exec-1")
        assert (e.status, e.outputs, e.error, e.updated_at, e.inputs) == (
            ExecutionStatus.FAILED,
            {"n": 1},
            {"type": "KeyError", "message": "'x'"},
            at,
            [1],
        )

    @pytest.mark.parametrize(
        "inputs",
        [{"x": float("nan")}, {"when": object()}, {(1, 2): 3}, "nul \0 and half a pair \ud800", b"bytes", {"deep": "\\u0000"}],
        ids=["nan", "an object", "a tuple as key", "text no database keeps", "bytes", "an escape that is only text"],
    )
    def test_is_recorded_whatever_its_inputs_are(self, store: Store, inputs: object) -> None:
        store.begin_execution(an_execution(inputs=inputs), holder="h|1|1|x")
        assert store.execution("exec-1").inputs is not None

    def test_a_document_of_digits_stays_text(self, store: Store) -> None:
        store.begin_execution(an_execution(inputs="007", outputs=12), holder="h|1|1|x")
        e = store.execution("exec-1")
        assert (e.inputs, e.outputs) == ("007", 12)

    def test_inputs_that_would_make_every_call_slow_are_shortened(self, store: Store) -> None:
        store.begin_execution(an_execution(inputs={"kept": "x" * 10_000}, outputs=["y" * 10**6]), holder="h|1|1|x")
        e = store.execution("exec-1")
        assert e.inputs == {"kept": "x" * 10_000}
        assert e.outputs == {"shortened": True, "length": 10**6 + 4, "start": '["' + "y" * 998}

    def test_an_unknown_one_is_named(self, store: Store) -> None:
        with pytest.raises(ExecutionNotFoundError, match="exec-9"):
            store.execution("exec-9")
        with pytest.raises(LookupError, match="exec-9"):
            store.end_execution("exec-9", ExecutionStatus.COMPLETED)


class TestBudgets:
    def test_is_created_once_and_keeps_its_sums(self, nested: Store) -> None:
        assert nested.reserve(a_call(), CHAIN, lo_nano=100, hi_nano=100) == 100
        again = nested.open_budget(a_budget("cell", 5))
        assert (again.cap_nano, again.held_nano, again.parent_id, again.left_nano) == (1000, 100, "notebook", 900)

    def test_a_cap_is_raised_lowered_and_taken_away(self, nested: Store) -> None:
        assert nested.set_cap("cell", 2000).cap_nano == 2000
        nested.reserve(a_call(), CHAIN, lo_nano=900, hi_nano=900)
        low = nested.set_cap("cell", 10)
        assert (low.cap_nano, low.held_nano, low.left_nano) == (10, 900, 0)
        assert nested.set_cap("cell", None).cap_nano is None
        assert nested.budget("cell").left_nano is None

    def test_an_unknown_one_is_named(self, store: Store) -> None:
        for ask in (lambda: store.budget("none"), lambda: store.set_cap("none", 1)):
            with pytest.raises(StoreError, match="none"):
                ask()


class TestReserve:
    @pytest.mark.parametrize(
        ("cap", "lo", "hi", "share", "expected"),
        [
            (1000, 100, 300, 1, 300),
            (1000, 100, 5000, 1, 1000),
            (1000, 100, 5000, 4, 250),
            (1000, 100, 200, 4, 200),
            (1000, 400, 5000, 4, 400),
            (1000, 1000, 1000, 9, 1000),
            (1000, 1001, 1001, 1, None),
            (1000, 1001, 9000, 1, None),
            (0, 0, 0, 1, 0),
            (0, 1, 1, 1, None),
            (None, 7, 9, 100, 9),
            (MAX_NANO, 1, MAX_NANO, 1, MAX_NANO),
            (1000, 0, 5000, 0, 1000),
        ],
    )
    def test_holds_a_fair_share_between_the_least_and_the_most(
        self, store: Store, cap: int | None, lo: int, hi: int, share: int, expected: int | None
    ) -> None:
        store.open_budget(a_budget("cell", cap))
        got = store.reserve(a_call(), ["cell"], lo_nano=lo, hi_nano=hi, share=share)
        if expected is None:
            assert got == Shortfall(store.budget("cell"), lo)
        assert (None if isinstance(got, Shortfall) else got) == expected
        assert store.budget("cell").held_nano == (expected or 0)

    def test_holds_on_every_level_or_on_none(self, nested: Store) -> None:
        assert nested.reserve(a_call(), CHAIN, lo_nano=600, hi_nano=600) == 600
        nested.set_cap("cell", 5000)
        refused = nested.reserve(a_call(), CHAIN, lo_nano=901, hi_nano=2000)
        assert isinstance(refused, Shortfall)
        assert (refused.budget.id, refused.budget.left_nano, refused.needed_nano) == ("notebook", 900, 901)
        assert [nested.budget(b).held_nano for b in CHAIN] == [600, 600, 600]

    def test_names_the_innermost_of_equally_tight_budgets(self, nested: Store) -> None:
        nested.set_cap("notebook", 1000)
        refused = nested.reserve(a_call(), CHAIN, lo_nano=1001, hi_nano=1001)
        assert isinstance(refused, Shortfall) and refused.budget.id == "cell"

    def test_the_same_call_is_held_once(self, nested: Store) -> None:
        call = a_call()
        assert nested.reserve(call, CHAIN, lo_nano=10, hi_nano=700) == 700
        assert nested.reserve(call, CHAIN, lo_nano=10, hi_nano=700) == 700
        assert nested.budget("cell").held_nano == 700

    def test_the_same_call_is_not_refused_when_the_budget_is_full_by_now(self, nested: Store) -> None:
        call = a_call()
        assert nested.reserve(call, CHAIN, lo_nano=1000, hi_nano=1000) == 1000
        assert nested.reserve(call, CHAIN, lo_nano=1000, hi_nano=1000) == 1000
        assert isinstance(nested.reserve(a_call(), CHAIN, lo_nano=1, hi_nano=1), Shortfall)

    def test_a_call_without_a_budget_is_only_tracked(self, store: Store) -> None:
        call = a_call()
        assert store.reserve(call, (), lo_nano=3, hi_nano=5) == 5
        assert store.reserve(call, (), lo_nano=3, hi_nano=9) == 5
        store.finish(settled(call, 4))
        assert store.read("calls")["cost_nano"] == [4]

    def test_a_budget_nobody_opened_is_an_error_and_holds_nothing(self, nested: Store) -> None:
        with pytest.raises(StoreError, match="nowhere"):
            nested.reserve(a_call(), ("notebook", "nowhere"), lo_nano=1, hi_nano=1)
        assert nested.budget("notebook").held_nano == 0
        assert nested.read("calls")["id"] == []

    def test_a_call_that_costs_nothing_fits_into_an_overdrawn_budget(self, nested: Store) -> None:
        call = a_call()
        nested.reserve(call, CHAIN, lo_nano=10, hi_nano=10)
        nested.finish(settled(call, 5000))
        assert nested.reserve(a_call(), CHAIN, lo_nano=0, hi_nano=0) == 0
        assert isinstance(nested.reserve(a_call(), CHAIN, lo_nano=1, hi_nano=1), Shortfall)

    def test_a_budget_named_twice_in_a_chain_is_charged_once(self, nested: Store) -> None:
        nested.reserve(a_call(), ("cell", "cell"), lo_nano=10, hi_nano=10)
        assert nested.budget("cell").held_nano == 10


class TestFinish:
    @pytest.fixture
    def call(self, nested: Store) -> Call:
        call = a_call(budget_id="cell")
        assert nested.reserve(call, CHAIN, lo_nano=10, hi_nano=700) == 700
        return call

    def test_settling_gives_back_what_was_not_spent(self, nested: Store, call: Call) -> None:
        nested.finish(settled(call, 123))
        assert [sums(nested, b) for b in CHAIN] == [(123, 0, 0)] * 3
        assert nested.execution("exec-1").cost_nano == 123

    def test_releasing_gives_everything_back(self, nested: Store, call: Call) -> None:
        nested.finish(replace(released(call), cost_nano=99))
        assert [sums(nested, b) for b in CHAIN] == [(0, 0, 0)] * 3
        assert nested.read("calls")["cost_nano"] == [0]

    def test_an_unknown_outcome_counts_as_the_whole_hold(self, nested: Store, call: Call) -> None:
        nested.finish(unconfirmed(call))
        assert [sums(nested, b) for b in CHAIN] == [(700, 0, 700)] * 3
        assert nested.execution("exec-1").cost_nano == 700

    def test_an_unknown_outcome_is_corrected_by_the_true_cost(self, nested: Store, call: Call) -> None:
        nested.finish(unconfirmed(call))
        nested.finish(settled(call, 50))
        assert [sums(nested, b) for b in CHAIN] == [(50, 0, 0)] * 3
        assert nested.execution("exec-1").cost_nano == 50

    def test_an_unknown_outcome_is_corrected_when_nothing_was_sent(self, nested: Store, call: Call) -> None:
        nested.finish(unconfirmed(call))
        nested.finish(released(call))
        assert [sums(nested, b) for b in CHAIN] == [(0, 0, 0)] * 3

    def test_what_is_final_stays(self, nested: Store, call: Call) -> None:
        nested.finish(settled(call, 5))
        for later in (settled(call, 900), unconfirmed(call), released(call), settled(call, 5)):
            nested.finish(later)
        assert [sums(nested, b) for b in CHAIN] == [(5, 0, 0)] * 3
        assert nested.read("calls")["state"] == ["SETTLED"]

    def test_an_unknown_outcome_told_twice_counts_once(self, nested: Store, call: Call) -> None:
        nested.finish(unconfirmed(call))
        nested.finish(unconfirmed(call))
        assert sums(nested, "cell") == (700, 0, 700)

    def test_a_cost_beyond_the_cap_is_recorded(self, nested: Store, call: Call) -> None:
        nested.finish(settled(call, 10_000))
        assert nested.budget("cell").spent_nano == 10_000
        assert nested.budget("cell").left_nano == 0

    def test_a_cost_nobody_knows_is_in_no_sum(self, nested: Store, call: Call) -> None:
        nested.finish(settled(call, None))
        assert [sums(nested, b) for b in CHAIN] == [(0, 0, 0)] * 3
        assert nested.read("calls")["cost_nano"] == [None]

    def test_an_unknown_outcome_without_a_price_has_no_cost(self, nested: Store) -> None:
        call = a_call()
        assert nested.reserve(call, CHAIN, lo_nano=0, hi_nano=0) == 0
        nested.finish(replace(unconfirmed(call), cost_nano=None))
        assert nested.read("calls", where={"id": call.id})["cost_nano"] == [None]

    def test_an_unpriced_call_is_priced_later(self, nested: Store) -> None:
        call = a_call()
        nested.reserve(call, CHAIN, lo_nano=0, hi_nano=0)
        nested.finish(replace(unconfirmed(call), cost_nano=None))
        nested.finish(settled(call, 40))
        assert sums(nested, "cell") == (40, 0, 0)

    def test_one_that_the_store_forgot_and_that_is_priced_later_counts_in_its_budgets(self, nested: Store) -> None:
        lost = a_call(budget_id="cell")
        nested.finish(replace(unconfirmed(lost), cost_nano=None))
        nested.finish(settled(lost, 18))
        assert [sums(nested, b) for b in CHAIN] == [(18, 0, 0)] * 3

    def test_another_process_credits_the_same_budgets(self, nested: Store, call: Call, opened: Callable[[], Store]) -> None:
        opened().finish(replace(settled(call, 7), budget_id=None))
        assert [sums(nested, b) for b in CHAIN] == [(7, 0, 0)] * 3

    def test_a_call_the_store_forgot_is_still_paid(self, nested: Store) -> None:
        lost = a_call(budget_id="cell")
        nested.finish(settled(lost, 33))
        nested.finish(settled(lost, 33))
        assert [sums(nested, b) for b in CHAIN] == [(33, 0, 0)] * 3
        assert nested.execution("exec-1").cost_nano == 33

    def test_a_call_that_is_not_over_cannot_be_finished(self, nested: Store, call: Call) -> None:
        with pytest.raises(StoreError, match="RESERVED"):
            nested.finish(call)
        assert sums(nested, "cell") == (0, 700, 0)

    def test_every_field_of_a_call_is_kept(self, nested: Store) -> None:
        usage = Usage(1, 2, 3, 4, 5, 6)
        call = a_call(budget_id="cell", cell="In [3]", cell_id="c3", step="plan", meta={"tools": 2}, stream=True, cap_written=512)
        nested.reserve(call, CHAIN, lo_nano=1, hi_nano=70)
        at = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
        done = settled(
            call,
            9,
            usage=usage,
            answered_model="gpt-4o-2024-08-06",
            price_source="declared",
            price_date="2026-11-22",
            latency_ms=12.5,
            ttft_ms=1.25,
            http_status=200,
            reason="because",
            settled_us=microseconds(at),
            meta={"tools": 3},
        )
        nested.finish(done)
        kept = {k: v[0] for k, v in nested.read("calls").items()}
        want = {f.replace("_us", "_at"): getattr(done, f.replace("_us", "_at")) for f in Call.__dataclass_fields__ if f != "usage"} | {
            **{f: getattr(usage, f) for f in Usage.__dataclass_fields__},
            "reserved_nano": 70,
        }
        assert kept == want


class TestRecord:
    def test_a_refused_call_is_listed_and_costs_nothing(self, nested: Store) -> None:
        refused = a_call(state=CallState.REFUSED, budget_id="cell", cost_nano=12, reason="does not fit")
        nested.record(refused)
        nested.record(refused)
        calls = nested.read("calls")
        assert (calls["state"], calls["cost_nano"], calls["reason"]) == (["REFUSED"], [0], ["does not fit"])
        assert sums(nested, "cell") == (0, 0, 0)

    def test_a_call_seen_only_afterwards_is_charged_once(self, nested: Store) -> None:
        seen = a_call(state=CallState.SETTLED, budget_id="notebook", cost_nano=12)
        nested.record(seen)
        nested.record(seen)
        assert [sums(nested, b) for b in CHAIN] == [(12, 0, 0), (12, 0, 0), (0, 0, 0)]
        assert nested.execution("exec-1").cost_nano == 12

    @pytest.mark.parametrize("text", ["nul\0", "half a pair \ud800", "x" * 100_000, "'; DROP TABLE budgets; --", "%s %(id)s :id ?"])
    def test_no_text_breaks_a_row(self, nested: Store, text: str) -> None:
        nested.record(a_call(state=CallState.REFUSED, model=text, reason=text, cell=text))
        assert len(nested.read("calls")["id"]) == 1

    def test_an_absurd_usage_does_not_lose_the_row(self, nested: Store) -> None:
        nested.record(a_call(state=CallState.SETTLED, cost_nano=1, usage=Usage(10**30, 10**30)))
        assert nested.aggregate("model")["cost_nano"] == [1]


class TestMoneyInSql:
    def test_dollars_are_exact_decimals_in_the_tables_themselves(self, nested: Store) -> None:
        nested.finish(settled(a_call(), 9_007_199_254_740_993))  # one more than a float can tell from its neighbour
        assert nested.read("executions")["cost_total_usd"] == [Decimal("9007199.254740993")]


def test_never_holds_more_than_the_cap_under_sixteen_threads(nested: Store) -> None:
    """Sixteen threads take and give back money; a seventeenth looks at every budget all the while."""
    done = threading.Event()
    seen: list[BudgetState] = []

    def watch() -> None:
        while not done.is_set():
            seen.extend(nested.budget(b) for b in ("notebook", "cell"))

    turns = itertools.count()
    spent: list[int] = []

    def work(seed: int) -> None:
        for n in range(12):
            turn = next(turns)
            call = a_call(budget_id="cell")
            held = nested.reserve(call, CHAIN, lo_nano=20 + turn % 50, hi_nano=40 + turn % 90, share=1 + seed % 4)
            if isinstance(held, Shortfall):
                assert held.budget.left_nano is not None and held.budget.left_nano < held.needed_nano
                continue
            if n % 4 == 0:
                nested.finish(released(call))
            elif n % 4 == 1:
                nested.finish(unconfirmed(call))
                nested.finish(settled(call, held // 10))
                spent.append(held // 10)
            else:
                nested.finish(settled(call, held // 8))
                spent.append(held // 8)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
    finally:
        done.set()
        watcher.join()
    assert seen and all(b.cap_nano is not None and b.spent_nano + b.held_nano <= b.cap_nano for b in seen)
    assert [sums(nested, b) for b in CHAIN] == [(sum(spent), 0, 0)] * 3
    assert nested.execution("exec-1").cost_nano == sum(spent) == sum(nested.read("calls")["cost_nano"])


def test_the_last_money_goes_to_exactly_as_many_calls_as_it_pays_for(nested: Store) -> None:
    def ask(_: int) -> bool:
        return nested.reserve(a_call(), CHAIN, lo_nano=100, hi_nano=100) == 100

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(40))) == 10
    assert nested.budget("cell").held_nano == 1000


def test_the_same_call_from_many_threads_is_held_and_settled_once(nested: Store) -> None:
    call = a_call()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: nested.reserve(call, CHAIN, lo_nano=10, hi_nano=600), range(16))) == {600}
        list(pool.map(lambda _: nested.finish(settled(call, 60)), range(16)))
    assert [sums(nested, b) for b in CHAIN] == [(60, 0, 0)] * 3


def test_a_forked_child_and_its_parent_both_go_on(nested: Store) -> None:
    mine, childs = a_call(), a_call()
    assert nested.reserve(mine, CHAIN, lo_nano=100, hi_nano=100) == 100
    pid = os.fork()
    if pid == 0:
        try:
            fine = nested.reserve(childs, CHAIN, lo_nano=200, hi_nano=200) == 200
            nested.finish(settled(childs, 20))
            os._exit(0 if fine else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    nested.finish(settled(mine, 3))
    assert sums(nested, "cell") == (23, 0, 0)


_steps = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "release", "unconfirm", "unpriced", "cap"]),
        st.integers(0, 5),  # which call
        st.integers(0, 400),  # lo, cost or cap
        st.integers(0, 800),  # hi
        st.integers(1, 4),  # share
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps)
@example(steps=[("reserve", 0, 0, 1, 1), ("cap", 0, 0, 0, 1), ("settle", 0, 0, 0, 1), ("reserve", 1, 1, 0, 1)])
def test_any_sequence_of_writes_agrees_with_plain_arithmetic(store: Store, steps: list[tuple[str, int, int, int, int]]) -> None:
    """The whole ledger, against a dozen lines of Python that keep it in dictionaries."""
    outer, inner = a_call().id, a_call().id  # fresh names: the store stays from example to example
    store.open_budget(a_budget(outer, 1200))
    store.open_budget(a_budget(inner, 1000, outer))
    calls = [a_call(budget_id=inner) for _ in range(6)]
    caps = {outer: 1200, inner: 1000}
    held: dict[int, int] = {}
    state: dict[int, str] = {}
    cost: dict[int, int] = {}

    for verb, n, amount, more, share in steps:
        if verb == "cap":
            caps[inner] = amount * 3
            store.set_cap(inner, amount * 3)
        elif verb == "reserve" and state.get(n, "RESERVED") == "RESERVED":  # nobody asks again for a call that is over
            used = sum(held[i] for i in held if state[i] == "RESERVED") + sum(cost.values())
            left = max(0, min(caps.values()) - used)
            hi = max(amount, more)
            want = min(hi, max(amount, left // share))
            got = store.reserve(calls[n], [outer, inner], lo_nano=amount, hi_nano=hi, share=share)
            if n in held:
                assert got == held[n]
            elif want <= left:
                assert got == want
                held[n], state[n] = want, "RESERVED"
            else:
                assert isinstance(got, Shortfall) and got.budget.cap_nano == min(caps.values())
        elif verb != "reserve" and n in held:
            target = {"settle": "SETTLED", "unpriced": "SETTLED", "release": "RELEASED", "unconfirm": "UNCONFIRMED"}[verb]
            store.finish(replace(calls[n], state=CallState(target), cost_nano=None if verb == "unpriced" else amount))
            if state[n] in ("RESERVED", "UNCONFIRMED") and state[n] != target:
                state[n] = target
                cost[n] = {"settle": amount, "unpriced": 0, "release": 0, "unconfirm": max(amount, held[n])}[verb]
        spent = sum(cost.values())
        doubt = sum(c for i, c in cost.items() if state[i] == "UNCONFIRMED")
        holding = sum(held[i] for i in held if state[i] == "RESERVED")
        assert sums(store, outer) == sums(store, inner) == (spent, holding, doubt)
