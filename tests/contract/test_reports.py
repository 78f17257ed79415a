"""Reports: typed, exact, and equal to the ledger whatever they are grouped by."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from tests.contract.conftest import a_budget, a_call, an_execution, released, settled, unconfirmed
from wflo_nb import report
from wflo_nb import store as stores
from wflo_nb.errors import ConfigurationError, StoreUnavailableError
from wflo_nb.model import CallState, ExecutionStatus, Usage, microseconds, now, usd
from wflo_nb.store import SnapshotRow, Store

GROUPINGS = ["model", "cell", "step", "node", "agent", "task", "tool", "workflow", "day", "provider", "status"]
MONEY = pd.ArrowDtype(pa.decimal128(20, 9))
UTC_US = pd.DatetimeTZDtype("us", "UTC")


@pytest.fixture
def filled(store: Store) -> tuple[Store, int]:
    """A store with sixty calls of all kinds, and what they cost together in nano-USD."""
    chance = random.Random(7)
    total = 0
    store.open_budget(a_budget("nb", None))
    for e in range(3):
        store.begin_execution(an_execution(f"exec-{e}", workflow=f"flow {e}", cell=f"In [{e}]"), holder="h|1|1|x")
    for n in range(60):
        call = a_call(
            execution_id=f"exec-{n % 3}",
            provider=("openai", "anthropic")[n % 2],
            model=("gpt-4o", "claude-sonnet-4-5", "gpt-4o-mini")[n % 3],
            cell=f"In [{n % 3}]",
            cell_id=f"c{n % 3}",
            created_us=microseconds(datetime(2026, 11, 20, 23, 59, 59, 999_999, tzinfo=UTC) + timedelta(hours=7 * (n % 5))),
        )
        store.reserve(call, ["nb"], lo_nano=1, hi_nano=10**10 + n)
        cost = chance.randrange(10**10)
        usage = Usage(chance.randrange(10**6), chance.randrange(10**4), 3, 2, 1, 4)
        match n % 6:
            case 0:
                store.finish(unconfirmed(call))
                total += 10**10 + n
            case 1:
                store.finish(released(call))
            case 2:
                store.finish(settled(call, None, usage=usage))
            case 3:
                pass  # still under way
            case _:
                store.finish(settled(call, cost, usage=usage))
                total += cost
    store.record(a_call(execution_id="exec-0", state=CallState.REFUSED, reason="does not fit"))
    return store, total


def test_agents_tasks_and_tools_are_groups_of_their_own(store: Store) -> None:
    store.begin_execution(an_execution("exec-0"), holder="h|1|1|x")
    places: list[tuple[str | None, dict[str, str]]] = [
        ("researcher", {"agent": "researcher", "task": "dig", "tool": "search"}),
        ("researcher", {"agent": "researcher", "task": "dig"}),
        ("search", {"tool": "search"}),  # a step that is a tool is no agent
        ("tell", {"task": "tell", "agent": "it's a writer"}),
        ("writer", {}),  # a step that nobody calls anything else is one
        (None, {}),
    ]
    for n, (step, meta) in enumerate(places):
        call = a_call(execution_id="exec-0", step=step, meta=dict(meta))
        store.reserve(call, [], lo_nano=1, hi_nano=100)
        store.finish(settled(call, 10**n, usage=Usage(1, 1)))

    def costs(by: str) -> dict[str, int]:
        frame = report.costs(by, store)
        return dict(zip(frame[by].fillna("-"), frame["cost_nano"], strict=True))

    assert costs("agent") == {"researcher": 11, "it's a writer": 1000, "writer": 10_000, "-": 100_100}
    assert costs("task") == {"dig": 11, "tell": 1000, "-": 110_100}
    assert costs("tool") == {"search": 101, "-": 111_010}
    assert costs("node") == costs("step") == {"researcher": 11, "search": 100, "tell": 1000, "writer": 10_000, "-": 100_000}
    calls = report.calls(store)
    found = {tuple(row) for row in calls[["agent", "task", "tool"]].fillna("-").itertuples(index=False)}
    assert found == {(m.get("agent", "-"), m.get("task", "-"), m.get("tool", "-")) for _, m in places}


@pytest.mark.parametrize("by", GROUPINGS)
def test_every_grouping_adds_up_to_the_ledger(filled: tuple[Store, int], by: str) -> None:
    store, total = filled
    costs, calls = report.costs(by, store), report.calls(store)
    assert costs["cost_usd"].sum() == calls["cost_usd"].sum() == report.executions(store)["cost_usd"].sum() == usd(total)
    assert costs["cost_nano"].sum() == total == store.budget("nb").spent_nano
    assert (costs["calls"].sum(), costs["refused"].sum(), costs["unpriced"].sum()) == (60, 1, 10)
    assert costs["input_tokens"].sum() == calls["input_tokens"].sum() > 0
    assert costs["unconfirmed_usd"].sum() == report.executions(store)["unconfirmed_usd"].sum() == usd(store.budget("nb").unconfirmed_nano)
    assert calls[calls["status"] == "UNCONFIRMED"]["cost_usd"].sum() == usd(store.budget("nb").unconfirmed_nano)
    row = report.budgets(store).set_index("id").loc["nb"]
    assert (row["spent_usd"], row["unconfirmed_usd"]) == (usd(total), costs["unconfirmed_usd"].sum()) and pd.isna(row["cap_usd"])


def test_days_are_days_of_utc(filled: tuple[Store, int]) -> None:
    days = report.costs("day", filled[0])
    assert days["day"].dtype == UTC_US
    assert [d.isoformat() for d in days["day"].iloc[:2]] == ["2026-11-20T00:00:00+00:00", "2026-11-21T00:00:00+00:00"]


def test_groups_stand_in_the_order_of_their_cost(filled: tuple[Store, int]) -> None:
    spent = report.costs("model", filled[0])["cost_nano"].dropna().tolist()
    assert len(spent) > 2 and spent == sorted(spent, reverse=True)


def test_a_price_nobody_knows_is_not_a_zero(store: Store) -> None:
    store.record(a_call(state=CallState.SETTLED, cost_nano=None, model="unknown", usage=Usage(5, 5)))
    store.record(a_call(state=CallState.SETTLED, cost_nano=0, model="free", usage=Usage(5, 5)))
    store.reserve(a_call(model="under way"), (), lo_nano=0, hi_nano=9)
    costs = report.costs("model", store).set_index("model")["cost_usd"]
    assert costs["free"] == Decimal(0) and pd.isna(costs["unknown"]) and pd.isna(costs["under way"])
    assert report.calls(store).set_index("model")["cost_usd"].isna().tolist() == [True, False, True]


def test_an_execution_whose_calls_have_no_price_does_not_cost_nothing(store: Store) -> None:
    for id in ("exec-unknown", "exec-both", "exec-refused"):
        store.begin_execution(an_execution(id), holder="h|1|1|x")
    for execution_id, cost in (("exec-unknown", None), ("exec-both", None), ("exec-both", 7)):
        call = a_call(execution_id=execution_id)
        store.reserve(call, (), lo_nano=0, hi_nano=9)
        store.finish(settled(call, cost, usage=Usage(5, 5)))
    store.record(a_call(execution_id="exec-refused", state=CallState.REFUSED, cost_nano=0))
    found = report.executions(store).set_index("id")
    assert pd.isna(found["cost_usd"]["exec-unknown"]) and pd.isna(found["cost_nano"]["exec-unknown"])
    assert found["cost_nano"]["exec-both"] == 7 and found["cost_usd"]["exec-refused"] == Decimal(0)
    assert found["unpriced"].to_dict() == {"exec-unknown": 1, "exec-both": 1, "exec-refused": 0}


def test_a_path_without_a_store_is_told_and_not_made(tmp_path: Path) -> None:
    for name in ("mistyped.db", "mistyped"):
        with pytest.raises(StoreUnavailableError, match=rf"no store at .*{name}.*Check the path"):
            report.costs(store=tmp_path / name)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("by", GROUPINGS)
def test_the_money_stands_beside_what_it_was_spent_on(store: Store, by: str) -> None:
    assert "cost_usd" in list(report.costs(by, store).columns)[1:3]


def test_tokens_nobody_told_are_not_zeros(store: Store) -> None:
    store.record(a_call(state=CallState.SETTLED, cost_nano=1, usage=None))
    assert report.calls(store)["input_tokens"].isna().all()
    assert report.costs(store=store)["input_tokens"].isna().all()


def test_an_empty_store_gives_empty_frames_of_the_same_types(filled: tuple[Store, int], store: Store, tmp_path: object) -> None:
    full, _ = filled
    full.put_snapshot(SnapshotRow("snap-1", "nb", "label", now(), b"{}"))
    empty = stores.open_store(f"{tmp_path}/empty.db")
    for table in (
        report.executions,
        report.calls,
        report.checkpoints,
        report.budgets,
        *((lambda s, by=by: report.costs(by, s)) for by in GROUPINGS),
    ):
        want, got = table(full), table(empty)
        assert len(want) > 0 and len(got) == 0
        assert got.dtypes.to_dict() == want.dtypes.to_dict()
    empty.close()


def test_columns_have_types_that_count_and_compare(filled: tuple[Store, int]) -> None:
    calls = report.calls(filled[0])
    kinds = {
        c: calls[c].dtype for c in ("cost_usd", "reserved_usd", "input_tokens", "created_at", "model", "stream", "latency_ms", "cost_nano")
    }
    assert kinds == {
        "cost_usd": MONEY,
        "reserved_usd": MONEY,
        "input_tokens": pd.Int64Dtype(),
        "created_at": UTC_US,
        "model": "string",
        "stream": pd.BooleanDtype(),
        "latency_ms": pd.Float64Dtype(),
        "cost_nano": pd.Int64Dtype(),
    }
    assert calls["created_at"].iloc[0] == datetime(2026, 11, 20, 23, 59, 59, 999_999, tzinfo=UTC)


def test_sums_of_money_are_exact_and_print_as_amounts(store: Store) -> None:
    for cost in (1, 9_007_199_254_740_993, 0):
        store.record(a_call(state=CallState.SETTLED, cost_nano=cost))
    calls = report.calls(store)
    assert calls["cost_usd"].sum() == Decimal("9007199.254740994")
    assert calls.groupby("model")["cost_usd"].sum().tolist() == [Decimal("9007199.254740994")]
    printed = calls[["cost_usd"]].to_string()
    assert "0.000000001" in printed and "E-" not in printed


def test_tells_how_an_execution_failed(store: Store) -> None:
    store.begin_execution(an_execution(budget_nano=2_500_000_000), holder="h|1|1|x")
    store.end_execution("exec-1", ExecutionStatus.FAILED, error={"type": "BudgetExceededError", "message": "no more"})
    row = report.executions(store).iloc[0]
    assert (row["error"], row["budget_usd"], row["workflow"], row["status"]) == (
        "BudgetExceededError: no more",
        Decimal("2.5"),
        "a workflow",
        "FAILED",
    )
    store.begin_execution(an_execution("exec-2"), holder="h|1|1|x")
    store.end_execution("exec-2", ExecutionStatus.FAILED, error={"type": "KeyboardInterrupt", "message": ""})
    assert report.executions(store).set_index("id")["error"]["exec-2"] == "KeyboardInterrupt"


def test_lists_checkpoints_by_their_labels(store: Store) -> None:
    store.put_snapshot(SnapshotRow("snap-1", "nb", "before In [1]", now(), b"{}", variables=3, bytes_total=99))
    row = report.checkpoints(store).iloc[0]
    assert (row["label"], row["variables"], row["bytes"], row["version"]) == ("before In [1]", 3, 99, 1)


def test_a_grouping_that_does_not_exist_is_answered_with_the_nearest(store: Store) -> None:
    with pytest.raises(ConfigurationError, match=r"by='modell' is not known. Did you mean 'model'\?"):
        report.costs("modell", store)


def test_speaks_of_the_store_of_this_process_unless_told_otherwise(filled: tuple[Store, int], where: str) -> None:
    store, total = filled
    assert len(report.calls()) == 0
    stores.use(store)
    assert report.costs()["cost_usd"].sum() == usd(total)
    assert report.costs(store=where)["cost_usd"].sum() == usd(total)


def test_a_cell_run_twice_is_two_groups_and_other_notebooks_keep_apart(store: Store) -> None:
    for cell, cell_id in (("In [1]", "a"), ("In [1]", "b"), ("In [2]", "a")):
        store.record(replace(a_call(), state=CallState.SETTLED, cost_nano=5, cell=cell, cell_id=cell_id))
    assert len(report.costs("cell", store)) == 3


def test_importing_reports_loads_no_pandas() -> None:
    check = (
        "import sys, wflo_nb.report, wflo_nb.store; print([m for m in ('pandas', 'pyarrow', 'sqlalchemy', 'psycopg') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout.strip() == "[]"
