"""Snapshots over a real SQLite file and a real PostgreSQL server behave alike."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wflo_nb.errors import CheckpointNotFoundError, ChunkCorruptedError, SignatureError
from wflo_nb.snapshot.engine import SnapshotEngine
from wflo_nb.store import Store


def test_what_one_kernel_saves_another_one_restores(opened: Callable[[], Store]) -> None:
    shared = [1, 2]
    array = np.random.default_rng(1).random(400_000)
    ns: dict[str, Any] = {
        "a": shared,
        "b": {"inner": shared},
        "array": array,
        "view": array[10:20],
        "text": "ü\ud800 and \0" * 3,
        "n": float("nan"),
    }
    taken = SnapshotEngine(opened(), ns, scope="nb").take("before training: step 1 🙂", execution_id="exec-1")
    other: dict[str, Any] = {"unrelated": 1}
    engine = SnapshotEngine(opened(), other, scope="nb")
    (info,) = engine.list()
    assert (info.id, info.label, info.execution_id, info.variables, info.bytes_total) == (
        taken.id,
        taken.label,
        "exec-1",
        6,
        taken.bytes_total,
    )
    assert info.created_at == taken.created_at and info.trusted
    engine.restore("before training: step 1 🙂")
    assert set(other) == set(ns)
    assert other["a"] is other["b"]["inner"] and other["a"] == [1, 2]
    assert np.array_equal(other["array"], array) and other["view"].base is other["array"]
    assert other["text"] == ns["text"] and other["n"] != other["n"]
    engine.undo()
    assert other == {"unrelated": 1}


def test_chunks_are_shared_between_snapshots_and_counted_once(opened: Callable[[], Store]) -> None:
    ns: dict[str, Any] = {"array": np.random.default_rng(1).random(400_000)}
    engine = SnapshotEngine(opened(), ns)
    first = engine.take("one")
    stored = engine.stored_bytes()
    assert first.new_bytes and stored == first.new_bytes
    assert engine.take("two").new_bytes == 0 and engine.stored_bytes() == stored
    ns["array"][0] = 2
    third = engine.take("three")
    assert third.new_bytes and third.new_bytes < (1 << 20) + 2000
    assert engine.stored_bytes() == stored + third.new_bytes


def test_a_deleted_checkpoint_gives_its_bytes_back(opened: Callable[[], Store]) -> None:
    store = opened()
    ns: dict[str, Any] = {"array": np.random.default_rng(1).random(400_000)}
    engine = SnapshotEngine(store, ns)
    engine.take("one")
    stored = engine.stored_bytes()
    ns["array"] = np.random.default_rng(2).random(400_000)
    engine.take("two")
    engine.delete("one")
    assert store.collect(grace=0) > 3_000_000
    assert engine.stored_bytes() <= stored + 1000
    ns["array"] = None
    engine.restore("two")
    assert ns["array"][5] == np.random.default_rng(2).random(400_000)[5]
    with pytest.raises(CheckpointNotFoundError, match="'one'"):
        engine.restore("one")


def test_a_checkpoint_taken_again_after_its_chunks_were_collected_is_whole(opened: Callable[[], Store]) -> None:
    store = opened()
    ns: dict[str, Any] = {"x": list(range(1000)), "y": 1}
    engine = SnapshotEngine(store, ns)
    engine.take("one")
    ns["x"].append(1)
    engine.restore("one")
    for row in store.snapshots("default"):
        store.delete_snapshot("default", row.id)
    store.collect(grace=0)
    engine.take("two")
    ns["x"] = None
    engine.restore("two")
    assert ns["x"] == list(range(1000))


def test_many_kernels_save_at_once(opened: Callable[[], Store]) -> None:
    def kernel(number: int) -> None:
        engine = SnapshotEngine(opened(), {"mine": [number], "common": list(range(500))}, scope="nb")
        for _ in range(3):
            engine.take("same label")

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(kernel, range(6)))
    store = opened()
    rows = store.snapshots("nb")
    assert sorted(row.version for row in rows) == list(range(1, 19))
    ns: dict[str, Any] = {}
    SnapshotEngine(store, ns, scope="nb").restore(rows[-1].id)
    assert ns["common"] == list(range(500))


def test_a_foreign_signature_and_a_lost_chunk_are_refused(opened: Callable[[], Store]) -> None:
    store = opened()
    SnapshotEngine(store, {"x": 1}, key=b"somebody else's key").take("theirs")
    ns: dict[str, Any] = {"good": [1], "bad": list(range(10_000))}
    engine = SnapshotEngine(store, ns)
    with pytest.raises(SignatureError):
        engine.restore("theirs")
    taken = engine.take("mine")
    victim = next(d for d in store.snapshot("default", taken.id).digests if store.get_chunks([d])[d].raw_bytes > 10_000)
    store._db.transact(lambda cursor: cursor.execute("DELETE FROM chunks WHERE digest = :d", {"d": victim}))
    ns.update(good=None, bad=None)
    with pytest.raises(ChunkCorruptedError, match="bad"):
        engine.restore("mine")
    assert ns == {"good": None, "bad": None}
    engine.restore("mine", without=["bad"])
    assert ns == {"good": [1], "bad": None}
