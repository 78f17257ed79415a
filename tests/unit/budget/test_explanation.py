"""The arithmetic of an explanation: parts that make the sum, and an output that just fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wflo_nb.budget import explanation
from wflo_nb.budget.explanation import cost_rows, explain, fitting_output
from wflo_nb.errors import ConfigurationError
from wflo_nb.model import BudgetState, Call, CallState, Execution, ExecutionStatus, microseconds, new_id, now, now_us, usd
from wflo_nb.store import Store, open_store


def total(bound: dict[str, Any]) -> int:
    pico = bound["input_tokens"] * bound["input_rate_pico"] + bound["output_tokens"] * bound["output_rate_pico"] + bound["call_pico"]
    return -(-pico * bound["surcharge_mille"] // 1_000_000) + bound["uses"] * bound["use_nano"]


def a_bound(**changes: Any) -> dict[str, Any]:
    made = {
        "model": "gpt-4o",
        "input_tokens": 1_000,
        "input_by": "bytes",
        "output_tokens": 500,
        "output_by": "the cap in the request",
        "input_rate_pico": 2_500_000,
        "output_rate_pico": 10_000_000,
        "price_source": "a table",
        "price_date": "2026-11-01",
        "call_pico": 0,
        "surcharge_mille": 1000,
        "tools": "",
        "uses": 0,
        "use_nano": 0,
        "choices": 1,
        "rounds": 1,
        "tiers": "",
    }
    made.update(changes)
    made["total_nano"] = total(made)
    return made


amounts = st.integers(0, 10**6)
bounds = st.builds(
    a_bound,
    input_tokens=amounts,
    output_tokens=amounts,
    input_rate_pico=st.integers(0, 10**9),
    output_rate_pico=st.integers(1, 10**9),
    call_pico=st.integers(0, 10**10),
    surcharge_mille=st.sampled_from([1000, 1100, 1337]),
    uses=st.integers(0, 20),
    use_nano=st.integers(0, 10**8),
)


@given(bounds)
def test_the_parts_of_a_bound_make_its_sum(bound: dict[str, Any]) -> None:
    assert sum((amount for _, _, _, amount in cost_rows(bound)), Decimal(0)) == usd(bound["total_nano"])


@given(bounds, st.integers(0, 10**12))
def test_the_output_that_fits_is_the_longest_that_does(bound: dict[str, Any], left: int) -> None:
    tokens = fitting_output(bound, left)
    if tokens < 0:
        assert total({**bound, "output_tokens": 0}) > left
    else:
        assert total({**bound, "output_tokens": tokens}) <= left < total({**bound, "output_tokens": tokens + 1})


@pytest.mark.parametrize(
    ("nano", "told"), [(819_000, 820_000), (1, 1), (99, 99), (101, 110), (10**9, 10**9), (1_234_567_890, 1_300_000_000)]
)
def test_a_budget_to_copy_is_enough_and_short(nano: int, told: int) -> None:
    assert explanation._round_up(nano) == told >= nano


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "store.db")
    yield opened
    opened.close()


MIDNIGHT = datetime(2026, 11, 23, 0, 0, 5, tzinfo=UTC)


def refused(store: Store, error: str, notebook: str = "nb-1", **changes: Any) -> Call:
    execution = Execution(new_id("exec"), "a cell", ExecutionStatus.RUNNING, now(), now(), notebook_id=notebook)
    store.begin_execution(execution, holder="h|1|1|x")
    meta = {**changes.pop("meta", {}), "error": error}
    call = Call(
        new_id("call"), execution.id, "openai", "chat", "gpt-4o", CallState.REFUSED, now_us(), reason="the words of the error", meta=meta
    )
    call = replace(call, **changes)
    store.record(call)
    return call


def short(**changes: Any) -> dict[str, Any]:
    level = {"id": "exec-1", "scope": "cell", "cap_nano": 10**6, "spent_nano": 400_000, "unconfirmed_nano": 100_000, "held_nano": 200_000}
    level = {**level, "left_nano": 400_000, **changes}
    return {"budget": level["id"], "requested_nano": a_bound()["total_nano"], "levels": [level]}


def test_without_a_refusal_there_is_nothing_to_explain(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="No call of this notebook was refused"):
        explain(store, notebook="nb-1")


def test_the_last_refusal_of_the_notebook_is_explained_and_others_are_named(store: Store) -> None:
    mine = refused(store, "UnknownModelError", created_us=microseconds(now() - timedelta(hours=1)))
    other = refused(store, "UnknownModelError", notebook="nb-2")
    told = explain(store, notebook="nb-1")
    assert told.call is not None and told.call.id == mine.id
    with pytest.raises(ConfigurationError, match=f"why {other.id}"):
        explain(store, notebook="nb-3")
    found = explain(store, other.id, notebook="nb-1").call
    assert found is not None and found.id == other.id


def test_a_call_that_was_sent_was_not_refused(store: Store) -> None:
    call = refused(store, "", state=CallState.SETTLED)
    with pytest.raises(ConfigurationError, match="was not refused: it is SETTLED"):
        explain(store, call.id)


def test_every_number_of_a_refusal_for_money_is_told(store: Store) -> None:
    facts = short()
    facts["holders"] = [
        {
            "call": "call-9",
            "model": "o1",
            "held_nano": 150_000,
            "since": "2026-11-23T00:00:00+00:00",
            "cell": "In [2]",
            "holder": "far#1|7|1|x",
        },
        {"calls": 3, "held_nano": 50_000},
    ]
    call = refused(
        store,
        "BudgetExceededError",
        meta={"refused": facts, "bound": a_bound()},
        created_us=microseconds(MIDNIGHT),
    )
    told = explain(store, call.id)
    assert told.sentences[1].endswith("the cell budget of $0.001 had $0.0004 left: $0.0071 too little.")
    left, cost, held = told.parts
    (row,) = left.rows
    assert row[1] - row[2] - row[3] == row[4] and row[5] == usd(7_500_000) and row[6] == "refused"  # type: ignore[operator]
    assert "$0.0001 of what the cell budget spent is unconfirmed" in left.note
    assert [r[-1] for r in cost.rows] == [Decimal("0.0025"), Decimal("0.005"), Decimal("0.0075")]
    assert "a table of 2026-11-01" in cost.note
    assert held.rows[0][:5] == (usd(150_000), "o1", "5.0 s", "In [2]", "process 7 on far") and held.rows[1][1] == "3 smaller ones"
    assert told.sentences[-1] == "Not even its input fitted into what was left."
    lines = [line for line, _ in told.steps]
    assert lines == ["%%wflo budget=0.0081", "%wflo budget", "%wflo reconcile"]


@pytest.mark.parametrize(
    ("level", "line"),
    [
        ({"id": "nb:1", "scope": "notebook"}, "%wflo budget 0.0081"),
        ({"id": "exec-1", "scope": "execution"}, "execution(budget_usd=0.0081)"),
        ({"id": "team:r&d%40home@2026-11", "scope": "team"}, "%wflo budget 0.0081 'team=r&d@home'"),
    ],
)
def test_the_line_that_raises_the_budget_names_the_one_that_refused(store: Store, level: dict[str, Any], line: str) -> None:
    call = refused(store, "BudgetExceededError", meta={"refused": short(**level), "bound": a_bound()})
    assert explain(store, call.id).steps[0][0] == line


def test_a_refusal_after_the_first_is_explained_by_the_first(store: Store) -> None:
    first = refused(store, "BudgetExceededError", meta={"refused": short(), "bound": a_bound()})
    later = refused(store, "BudgetExceededError", meta={"refused": {"stopped": "budget", "first": first.id, "requested_nano": 1}})
    told = explain(store, notebook="nb-1")
    assert told.call is not None and told.call.id == later.id
    assert "an earlier call of the same run" in told.sentences[0] and first.id in told.sentences[1] and told.parts


@pytest.mark.parametrize(
    ("error", "meta", "says"),
    [
        ("UnknownModelError", {}, "%wflo price gpt-4o input=… output=…"),
        ("UnboundedCallError", {"bound": a_bound()}, "max_input=…"),
        ("UnsupportedFormatError", {}, "unmetered"),
        ("UnsupportedFormatError", {}, "entry point of the group wflo_nb.formats"),
        ("BudgetExceededError", {"refused": {"stopped": "user", "first": None, "requested_nano": 5}}, "you stopped the run"),
    ],
)
def test_refusals_without_money_say_what_to_declare_or_allow(store: Store, error: str, meta: dict[str, Any], says: str) -> None:
    told = explain(store, refused(store, error, meta=meta).id)
    assert says in " ".join([*told.sentences, *(word for step in told.steps for word in step)])


def test_budgets_are_explained_also_when_their_surroundings_could_not_be_read(store: Store) -> None:
    from wflo_nb.budget.refusals import figures

    store.close()
    facts = figures(store, ["nb", "cell"], BudgetState("cell", "cell", 10, 4, 3, 0), 5)
    assert facts["budget"] == "cell" and facts["levels"][0]["left_nano"] == 3 and "holders" not in facts
