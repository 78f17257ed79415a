"""A namespace that behaves like a notebook's, and engines over a real SQLite store."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wflo_nb.snapshot.engine import SnapshotEngine
from wflo_nb.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "snapshots.db")
    yield opened
    opened.close()


@pytest.fixture
def ns() -> dict[str, Any]:
    return {"__name__": "__main__"}


@pytest.fixture
def run(ns: dict[str, Any]) -> Callable[[str], None]:
    """Run a cell."""

    def cell(source: str) -> None:
        exec(compile(textwrap.dedent(source), "<cell>", "exec", dont_inherit=True), ns)

    return cell


@pytest.fixture
def engine(store: Store, ns: dict[str, Any]) -> SnapshotEngine:
    return SnapshotEngine(store, ns)


@pytest.fixture
def everything_stored(tmp_path: Path, store: Store) -> Callable[[], bytes]:
    """Every byte that the store keeps: its files as they are, and every chunk decoded."""
    from wflo_nb.snapshot.chunks import decode

    def read() -> bytes:
        raw = b"".join(p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file() and "state" not in p.relative_to(tmp_path).parts)
        rows = [row for scope in ("default", "other") for row in store.snapshots(scope, limit=1000)]
        chunks = [decode(chunk, digest) for row in rows for digest, chunk in store.get_chunks(list(row.digests)).items()]
        return raw + b"".join(chunks) + b"".join(row.manifest for row in rows)

    return read
