"""The judge of `make demo` is able to say no."""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BEFORE = ("item,price\ntea,3\n", ["tea"], {"basket": ["tea"]}, True)
SPOILT = ("item,price\ntea,300\n", ["tea", "regret"], {"basket": ["tea", "regret"]}, True)
# Five calls of 10 fresh and 2 cached input tokens and 4 output tokens, at 150, 75 and 600 nano-USD a token.
COST = 10 * 150 + 2 * 75 + 4 * 600


@pytest.fixture(scope="module")
def run_demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_demo", ROOT / "scripts" / "run_demo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_demo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def ledger(folder: Path, *, settled: int = 5, refused: int = 1, spent: int = 5 * COST, state: str = "SETTLED") -> None:
    connection = sqlite3.connect(folder / "wflo.db")
    connection.execute("CREATE TABLE llm_calls (state, model, answered_model, output_tokens, cost_nano)")
    connection.execute("CREATE TABLE budgets (id, scope, cap_nano, spent_nano, held_nano)")
    rows = [(state, "m", "m", 4, COST)] * settled + [("REFUSED", "m", None, None, 0)] * refused
    connection.executemany("INSERT INTO llm_calls VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute("INSERT INTO budgets VALUES ('b', 'cell', 100000, ?, 0)", (spent,))
    connection.commit()
    connection.close()


def seen(module: ModuleType, **changes: Any) -> Any:
    facts: dict[str, Any] = {
        "variables": {"variables": BEFORE, "spoil": SPOILT, "rollback": BEFORE},
        "refusals": ["BudgetExceededError"],
        "served": (60, 10, 20),
        "reported": Decimal(5 * COST).scaleb(-9),
    }
    return module.Seen(**{**facts, **changes})


def test_a_run_in_which_all_is_true_is_accepted(run_demo: ModuleType, tmp_path: Path) -> None:
    ledger(tmp_path)
    assert run_demo.judge(seen(run_demo), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"refusals": []}, id="no cell was stopped"),
        pytest.param({"refusals": ["BudgetExceededError", "NameError"]}, id="another cell failed"),
        pytest.param({"variables": {"variables": BEFORE, "spoil": BEFORE, "rollback": BEFORE}}, id="nothing had changed"),
        pytest.param({"variables": {"variables": BEFORE, "spoil": SPOILT, "rollback": SPOILT}}, id="nothing was rolled back"),
        pytest.param({"variables": {"variables": BEFORE, "spoil": SPOILT, "rollback": (*BEFORE[:3], False)}}, id="the list was copied"),
        pytest.param({"served": (60, 10, 21)}, id="the engine generated one token more"),
        pytest.param({"served": (60, 11, 20)}, id="one token more came from the cache"),
        pytest.param({"reported": Decimal(5 * COST + 1).scaleb(-9)}, id="the report is a nano-dollar off"),
        pytest.param({"reported": None}, id="there is no report"),
    ],
)
def test_a_run_in_which_one_thing_is_not_true_is_rejected(run_demo: ModuleType, tmp_path: Path, changes: dict[str, Any]) -> None:
    ledger(tmp_path)
    assert not run_demo.judge(seen(run_demo, **changes), tmp_path)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param({"refused": 0}, id="no refused call"),
        pytest.param({"refused": 2}, id="two refused calls"),
        pytest.param({"spent": 100_001}, id="a budget was overspent"),
        pytest.param({"state": "UNCONFIRMED"}, id="no call was settled"),
    ],
)
def test_a_ledger_in_which_one_thing_is_not_true_is_rejected(run_demo: ModuleType, tmp_path: Path, rows: dict[str, Any]) -> None:
    ledger(tmp_path, **rows)
    assert not run_demo.judge(seen(run_demo), tmp_path)


def test_four_generations_are_too_few(run_demo: ModuleType, tmp_path: Path) -> None:
    ledger(tmp_path, settled=4, spent=4 * COST)
    assert not run_demo.judge(seen(run_demo, served=(48, 8, 16), reported=Decimal(4 * COST).scaleb(-9)), tmp_path)


def test_with_a_provider_the_engine_is_not_asked(run_demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger(tmp_path)
    assert run_demo.judge(seen(run_demo, served=None), tmp_path)
    assert "run this without OPENAI_API_KEY" in capsys.readouterr().out
