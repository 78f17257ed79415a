"""The shelf of snapshots: bytes only, the snapshot room gives them meaning."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from wflo_nb.errors import CheckpointNotFoundError, ChunkCorruptedError, StoreError
from wflo_nb.model import now
from wflo_nb.store import rows
from wflo_nb.store.database import Cursor, Over
from wflo_nb.store.records import Chunk, SnapshotRow


class Snapshots(Over):
    """Snapshots and the chunks that they are made of."""

    def missing_chunks(self, digests: Sequence[bytes]) -> set[bytes]:
        """Which of these chunks are not kept yet."""
        missing = set(digests)
        for part in _parts(list(missing)):
            marks, params = _listed(part)
            missing -= {
                bytes(r[0])
                for r in self._db.select(f"SELECT digest FROM chunks WHERE team_id = :team_id AND digest IN ({marks})", self._key(**params))
            }
        return missing

    def put_chunks(self, chunks: Sequence[Chunk]) -> None:
        """Keep chunks; durable on return. One that is already kept is not written again."""
        wanted = {c.digest: c for c in chunks}
        if any(len(d) != 32 for d in wanted):
            raise StoreError("A chunk is named by the 32 bytes of its BLAKE3 digest.")
        fresh = self.missing_chunks(list(wanted))
        if fresh:
            self._db.put_chunks([c for d, c in wanted.items() if d in fresh], now())

    def get_chunks(self, digests: Sequence[bytes]) -> dict[bytes, Chunk]:
        """Chunks by digest. Whether their bytes are what they were is for the reader to check.

        Raises:
            ChunkCorruptedError: one of them is gone or cut short.
        """
        wanted = list(dict.fromkeys(digests))
        found = self._db.get_chunks(wanted)
        if lost := [d for d in wanted if d not in found]:
            raise ChunkCorruptedError(
                f"{len(lost)} of {len(wanted)} stored chunks are missing or cut short in {self.location} (first: {lost[0].hex()[:16]})."
            )
        return found

    def put_snapshot(self, s: SnapshotRow) -> SnapshotRow:
        """Keep a snapshot whose chunks are kept already; returns it with its version, which no two writers get alike.

        Raises:
            ChunkCorruptedError: a chunk it needs is not in the store (any more); put the chunks again.
        """
        params = rows.snapshot_params(s, self.team, self._db)
        needed = list(dict.fromkeys(s.digests))

        def work(cursor: Cursor) -> SnapshotRow:
            by_id = f"{rows.SELECT_SNAPSHOTS} AND id = :id"
            row = cursor.execute(by_id, self._key(id=s.id)).fetchone()
            if row is None:
                # Used now: a collection at the same time leaves them alone.
                kept = 0
                for part in _parts(needed):
                    marks, digests = _listed(part)
                    cursor.execute(
                        f"UPDATE chunks SET last_used_at = :at WHERE team_id = :team_id AND digest IN ({marks})",
                        self._key(at=self._db.time(now()), **digests),
                    )
                    kept += cursor.rowcount
                if kept < len(needed):
                    raise ChunkCorruptedError(
                        f"{len(needed) - kept} of {len(needed)} chunks of snapshot {s.id} are not in {self.location}."
                    )
                cursor.execute(rows.INSERT_SNAPSHOT, params)
                row = cursor.execute(by_id, self._key(id=s.id)).fetchone()
            return rows.snapshot_from(row, self._db)

        return self._db.transact(work, must_land=False)

    def snapshots(self, scope: str, limit: int = 100) -> list[SnapshotRow]:
        """The newest snapshots of a scope, newest first."""
        found = self._db.select(f"{rows.SELECT_SNAPSHOTS} AND scope = :scope{rows.NEWEST_FIRST}", self._key(scope=scope, most=limit))
        return [rows.snapshot_from(r, self._db) for r in found]

    def snapshot(self, scope: str, id: str) -> SnapshotRow:
        """One snapshot.

        Raises:
            CheckpointNotFoundError: the scope has none with this id.
        """
        row = self._one(f"{rows.SELECT_SNAPSHOTS} AND scope = :scope AND id = :id", scope=scope, id=id)
        if row is None:
            raise self._no_checkpoint(id)
        return rows.snapshot_from(row, self._db)

    def delete_snapshot(self, scope: str, id: str) -> None:
        """Forget a snapshot; its chunks go with the next `collect`.

        Raises:
            CheckpointNotFoundError: the scope has none with this id.
        """
        if self._write(rows.DELETE_SNAPSHOT, self._key(scope=scope, id=id)) == 0:
            raise self._no_checkpoint(id)

    def _no_checkpoint(self, id: str) -> CheckpointNotFoundError:
        return CheckpointNotFoundError(f"No checkpoint {id} is in the store {self.location}. `%wflo checkpoints` lists those that are.")

    def collect(self, grace: timedelta | float = 3600.0) -> int:
        """Delete chunks that no snapshot needs and nobody used during `grace` (seconds); returns the bytes given back."""
        return self._db.sweep_chunks(now() - (grace if isinstance(grace, timedelta) else timedelta(seconds=grace)))

    def stored_bytes(self, scope: str | None = None) -> int:
        """Bytes kept for the snapshots of a scope, chunks that they share counted once; None: for all chunks of the team."""
        if scope is None:
            return int(self._db.select("SELECT coalesce(sum(stored_bytes), 0) FROM chunks WHERE team_id = :team_id", self._key())[0][0])
        joined = self._db.select("SELECT digests FROM state_snapshots WHERE team_id = :team_id AND scope = :scope", self._key(scope=scope))
        total = 0
        for part in _parts(list({d for (row,) in joined for d in rows.split_digests(bytes(row))})):
            marks, params = _listed(part)
            sql = f"SELECT coalesce(sum(stored_bytes), 0) FROM chunks WHERE team_id = :team_id AND digest IN ({marks})"
            total += int(self._db.select(sql, self._key(**params))[0][0])
        return total


def _parts(digests: list[bytes]) -> list[list[bytes]]:
    """Few enough at a time for one statement on either database."""
    return [digests[i : i + 500] for i in range(0, len(digests), 500)]


def _listed(digests: list[bytes]) -> tuple[str, dict[str, bytes]]:
    names = [f"d{i}" for i in range(len(digests))]
    return ", ".join(f":{n}" for n in names), dict(zip(names, digests, strict=True))
