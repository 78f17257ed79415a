"""Snapshot bytes: kept once, given back as they were, collected only when nobody needs them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from wflo_nb.errors import CheckpointNotFoundError, ChunkCorruptedError, StoreError
from wflo_nb.model import new_id, now
from wflo_nb.store import Chunk, SnapshotRow, Store

BIG = 200_000


def a_chunk(size: int = 10, codec: str = "raw") -> Chunk:
    data = os.urandom(size)
    return Chunk(hashlib.sha256(data).digest(), size * 2, codec, data)


def a_snapshot(*digests: bytes, scope: str = "nb", label: str = "mine", **more: object) -> SnapshotRow:
    return SnapshotRow(new_id("snap"), scope, label, now(), b"{}", digests=digests, **more)  # type: ignore[arg-type]


class TestChunks:
    @pytest.mark.parametrize("sizes", [[0], [1, 2, 3], [BIG], [BIG, 0, 5, BIG]], ids=str)
    def test_come_back_as_they_were(self, store: Store, sizes: list[int]) -> None:
        chunks = [a_chunk(s, codec) for s, codec in zip(sizes, ["raw", "zstd", "raw", "x"], strict=False)]
        store.put_chunks(chunks)
        assert store.get_chunks([c.digest for c in chunks]) == {c.digest: c for c in chunks}
        assert store.stored_bytes() == sum(sizes)

    def test_many_come_back_by_one_question(self, store: Store) -> None:
        chunks = [a_chunk(300) for _ in range(1100)]
        store.put_chunks(chunks)
        assert store.get_chunks([c.digest for c in chunks]) == {c.digest: c for c in chunks}
        assert store.missing_chunks([c.digest for c in chunks]) == set()

    def test_only_those_that_are_not_kept_are_missing(self, store: Store) -> None:
        kept, other = a_chunk(), a_chunk()
        store.put_chunks([kept])
        assert store.missing_chunks([kept.digest, other.digest, other.digest]) == {other.digest}
        assert store.missing_chunks([]) == set()

    def test_are_kept_once(self, store: Store) -> None:
        big = a_chunk(BIG)
        for _ in range(3):
            store.put_chunks([big, big, a_chunk(7)])
        assert store.stored_bytes() == BIG + 3 * 7

    def test_a_lost_one_is_told(self, store: Store) -> None:
        gone = a_chunk()
        with pytest.raises(ChunkCorruptedError, match=f"1 of 1 .* {gone.digest.hex()[:16]}"):
            store.get_chunks([gone.digest])

    def test_a_digest_of_another_length_is_refused(self, store: Store) -> None:
        with pytest.raises(StoreError, match="32 bytes"):
            store.put_chunks([Chunk(b"short", 1, "raw", b"x")])

    def test_the_same_ones_from_many_threads_end_up_kept_once(self, store: Store) -> None:
        chunks = [a_chunk(40_000) for _ in range(6)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.put_chunks(chunks[n % 3 :] + chunks[: n % 3]), range(16)))
        assert store.stored_bytes() == 6 * 40_000
        assert store.get_chunks([c.digest for c in chunks]) == {c.digest: c for c in chunks}


class TestSnapshots:
    def test_come_back_as_they_were(self, store: Store) -> None:
        chunk = a_chunk()
        store.put_chunks([chunk])
        row = SnapshotRow(
            "snap-1",
            "nb:1",
            "before In [3]",
            datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
            '{"b":"é","a":"\\u0000"}'.encode(),
            signature=bytes(range(32)),
            digests=(chunk.digest, chunk.digest),
            execution_id="exec-1",
            variables=7,
            bytes_total=2**40,
            parent_id="snap-0",
        )
        assert store.put_snapshot(row).version == 1
        kept = store.snapshot("nb:1", "snap-1")
        assert kept == store.snapshots("nb:1")[0]
        assert {f: getattr(kept, f) for f in SnapshotRow.__slots__} == {f: getattr(row, f) for f in SnapshotRow.__slots__} | {"version": 1}

    def test_are_listed_newest_first_and_by_scope(self, store: Store) -> None:
        start = now()
        for n, scope in enumerate(["a", "b", "a", "a"]):
            store.put_snapshot(SnapshotRow(f"snap-{n}", scope, "label", start + timedelta(microseconds=n), b"{}"))
        assert [s.id for s in store.snapshots("a")] == ["snap-3", "snap-2", "snap-0"]
        assert [s.id for s in store.snapshots("a", limit=1)] == ["snap-3"]
        assert store.snapshots("nobody") == []

    def test_versions_of_a_label_count_up_whoever_writes(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            rows = list(pool.map(lambda _: store.put_snapshot(a_snapshot()), range(24)))
        assert sorted(r.version for r in rows) == list(range(1, 25))
        assert store.put_snapshot(a_snapshot(scope="other")).version == 1
        assert store.put_snapshot(a_snapshot(label="other")).version == 1

    def test_the_same_one_again_changes_nothing(self, store: Store) -> None:
        row = a_snapshot()
        assert store.put_snapshot(row) == store.put_snapshot(row)
        assert len(store.snapshots("nb")) == 1

    def test_one_whose_chunks_are_not_kept_is_refused(self, store: Store) -> None:
        kept, other = a_chunk(), a_chunk()
        store.put_chunks([kept])
        with pytest.raises(ChunkCorruptedError, match="1 of 2"):
            store.put_snapshot(a_snapshot(kept.digest, other.digest))
        assert store.snapshots("nb") == []

    def test_an_unknown_one_is_named(self, store: Store) -> None:
        row = store.put_snapshot(a_snapshot(scope="theirs"))
        for ask in (store.snapshot, store.delete_snapshot):
            with pytest.raises(CheckpointNotFoundError, match=row.id):
                ask("mine", row.id)
        assert store.snapshot("theirs", row.id) == row

    def test_stored_bytes_count_shared_chunks_once(self, store: Store) -> None:
        shared, mine, theirs = a_chunk(100), a_chunk(10), a_chunk(1)
        store.put_chunks([shared, mine, theirs])
        store.put_snapshot(a_snapshot(shared.digest, mine.digest))
        store.put_snapshot(a_snapshot(shared.digest))
        store.put_snapshot(a_snapshot(shared.digest, theirs.digest, scope="other"))
        assert (store.stored_bytes("nb"), store.stored_bytes("other"), store.stored_bytes()) == (110, 101, 111)


class TestCollection:
    @pytest.mark.parametrize("size", [50, BIG])
    def test_takes_what_no_snapshot_needs(self, store: Store, size: int) -> None:
        needed, other = a_chunk(size), a_chunk(size)
        store.put_chunks([needed])
        store.put_chunks([other])
        row = store.put_snapshot(a_snapshot(needed.digest))
        assert store.collect(0) == size
        assert store.get_chunks([needed.digest]) == {needed.digest: needed}
        assert store.missing_chunks([other.digest]) == {other.digest}
        store.delete_snapshot("nb", row.id)
        assert store.collect(0) == size
        assert store.stored_bytes() == 0

    def test_leaves_what_was_used_a_moment_ago(self, store: Store) -> None:
        fresh = a_chunk(BIG)
        store.put_chunks([fresh])
        assert store.collect() == 0
        assert store.collect(timedelta(hours=1)) == 0
        assert store.missing_chunks([fresh.digest]) == set()

    def test_keeps_what_is_left_of_a_mostly_dead_pack(self, store: Store) -> None:
        chunks = [a_chunk(BIG) for _ in range(4)]
        store.put_chunks(chunks)
        store.put_snapshot(a_snapshot(chunks[2].digest))
        assert store.collect(0) == 3 * BIG
        assert store.get_chunks([chunks[2].digest]) == {chunks[2].digest: chunks[2]}
        assert store.collect(0) == 0

    def test_never_takes_what_a_snapshot_begins_to_need_at_the_same_time(self, store: Store, opened: Callable[[], Store]) -> None:
        """Writers of snapshots and a collector without any grace, against each other."""
        chunks = [a_chunk(30_000) for _ in range(4)]
        other = opened()

        def write(_: int) -> int:
            for _ in range(20):  # what the snapshot room does: put, and put again if they went meanwhile
                store.put_chunks(chunks)
                try:
                    row = store.put_snapshot(a_snapshot(*(c.digest for c in chunks)))
                except ChunkCorruptedError:
                    continue
                assert store.get_chunks([c.digest for c in chunks]) == {c.digest: c for c in chunks}
                store.delete_snapshot("nb", row.id)
                return 1
            return 0

        with ThreadPoolExecutor(5) as pool:
            collected = pool.submit(lambda: [other.collect(0) for _ in range(15)])
            assert sum(pool.map(write, range(12))) > 0
            collected.result()
        store.put_chunks(chunks)
        last = store.put_snapshot(a_snapshot(*(c.digest for c in chunks)))
        assert other.collect(0) == 0
        assert store.get_chunks(list(last.digests)) == {c.digest: c for c in chunks}
