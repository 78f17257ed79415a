"""A worker may be killed at any microsecond: see `benchmarks/kill.py`, of which this is a small run."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import kill
from wflo_nb.config import Settings


@pytest.mark.parametrize("kind", kill.KINDS)
@pytest.mark.parametrize("cap", [10**12, 40_000])
def test_nothing_is_lost_and_nothing_is_free(kind: str, cap: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    where = str(tmp_path / "kill.db") if kind == "sqlite" else str(request.getfixturevalue("postgres_url"))
    settings = Settings(state_dir=tmp_path / "state", offline="lease" if kind == "leased" else "refuse")
    found = kill.play(where, settings, 20 if cap > 10**6 else 5, cap=cap)
    assert found["acknowledged"] > 0 and found["spent_nano"] <= cap
