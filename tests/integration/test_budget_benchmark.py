"""The budget benchmark, in its quick form for this package alone, is a test: every case ends within the budget, exact to the nano."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "budget.py"), "--only", "wflo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, check=False)


@pytest.mark.timeout(600)
def test_no_case_of_the_benchmark_exceeds_its_budget(postgres_server: str) -> None:
    done = benchmark("--quick", WFLO_TEST_POSTGRES=postgres_server)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == done.stdout.count("ratio ") >= 31  # nothing was left out
    assert max(row["ratio"] for row in rows) <= 1
    assert sum(row["late"] for row in rows) == 0
    assert min(row["usable"] for row in rows if row["usable"] is not None) >= 0.9


@pytest.mark.parametrize("wrong", [["--cases", "nonsense"], ["--only", "nobody"]])
def test_a_name_that_does_not_exist_is_answered_with_those_that_do(wrong: list[str]) -> None:
    done = benchmark(*wrong)
    assert done.returncode == 1
    assert "There are: " in done.stderr
