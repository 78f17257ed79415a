"""The benchmarks of the ledger, small: nothing overspent, stranded, lost or drifted, and nobody asks here how long it took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def lines(name: str, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_kernels_that_use_up_a_budget_together_overspend_and_strand_nothing(postgres_url: str) -> None:
    found = lines("ledger.py", "--quick", "--postgres", postgres_url)
    assert {"4 processes", "20 kernels, through leases", "20 kernels, call by call"} <= {line["way"] for line in found}
    for line in found:
        assert line["pairs"] > 0 and line["overspent_nano"] == line["stranded_nano"] == line["gave_up"] == 0


def test_many_calls_add_up_to_one_integer_whoever_is_asked() -> None:
    found = lines("many.py", "--calls", "500", "--sdk", "0")
    assert [(line["kind"], line["calls"], line["drift"]) for line in found] == [("account", 500, 0)]
