"""Stores that are named by a path: one store each, however many blocks, workflows and reports name it."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT
from wflo_nb import report
from wflo_nb.errors import StoreUnavailableError


def ask(client: Any) -> None:
    client.chat.completions.create(model="gpt-4o-mini", messages=PROMPT, max_tokens=5)


def test_blocks_that_name_a_store_share_it(provider: Any, openai_client: Any, tmp_path: Path) -> None:
    path, threads = tmp_path / "mine.db", threading.active_count()
    for _ in range(20):
        with wflo_nb.execution("outer", budget_usd=1, store=str(path)), wflo_nb.execution("inner", store=path):
            ask(openai_client)
    assert threading.active_count() <= threads + 5
    assert len(report.calls(path)) == 20


def test_file_that_was_deleted_is_made_anew(provider: Any, openai_client: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.db"
    for _ in range(2):
        for file in tmp_path.glob("mine.db*"):
            file.unlink()
        with wflo_nb.execution(store=path):
            ask(openai_client)
        assert len(report.calls(path)) == 1


def test_reports_write_into_nothing_that_is_no_store(tmp_path: Path) -> None:
    other, folder = tmp_path / "other.db", tmp_path / "folder"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE notes (x)")
    folder.mkdir()
    for place in (other, folder):
        with pytest.raises(StoreUnavailableError, match="no store"):
            report.costs(store=place)
    assert list(folder.iterdir()) == []
    assert [name for (name,) in sqlite3.connect(other).execute("SELECT name FROM sqlite_master")] == ["notes"]
