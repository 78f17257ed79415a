"""The bytes of snapshots in an embedded store: small ones in the database, the others in packs beside it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wflo_nb.errors import WfloError
from wflo_nb.store import rows
from wflo_nb.store.packs import Packs
from wflo_nb.store.records import Chunk

if TYPE_CHECKING:
    from wflo_nb.store.sqlite import SQLite

#: Up to here a pack would cost more (a file and two flushes) than it saves.
_INLINE_BYTES = 64 << 10


class Shelf:
    """Chunks: which are kept, and where."""

    def __init__(self, host: SQLite, packs: Packs) -> None:
        self._host = host
        self._packs = packs

    def put(self, chunks: Sequence[Chunk], used: int) -> None:
        """Keep chunks; durable on return. `used` is this moment, in microseconds."""
        pack_id: str | None = None
        offsets: Sequence[int | None] = [None] * len(chunks)
        with self._host.faults:
            if sum(len(c.data) for c in chunks) > _INLINE_BYTES:
                pack_id, offsets = self._packs.write([c.data for c in chunks])
        values = [
            (self._host.team, c.digest, c.raw_bytes, len(c.data), c.codec, pack_id, o, None if pack_id else c.data, used)
            for c, o in zip(chunks, offsets, strict=True)
        ]

        def work(cursor: sqlite3.Cursor) -> None:
            cursor.executemany(
                "INSERT INTO chunks (team_id, digest, raw_bytes, stored_bytes, codec, pack_id, pack_offset, data, last_used_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (team_id, digest) DO UPDATE SET last_used_at = excluded.last_used_at",
                values,
            )

        try:
            self._host.transact(work, must_land=False)
        except WfloError:  # rolled back; after an interrupt it may have been committed, and an unnamed pack does no harm
            if pack_id is not None:
                self._packs.delete(pack_id)
            raise

    def get(self, digests: Sequence[bytes]) -> dict[bytes, Chunk]:
        """The chunks that are kept whole, of those asked for."""
        found: dict[bytes, Chunk] = {}
        for start in range(0, len(digests), 500):
            part = digests[start : start + 500]
            found.update(self._read(part))
            if moved := [d for d in part if d not in found]:
                found.update(self._read(moved))  # collected into another pack between the row and the file
        return found

    def _read(self, digests: Sequence[bytes]) -> dict[bytes, Chunk]:
        listed = self._host.select(
            "SELECT digest, raw_bytes, codec, data, pack_id, pack_offset, stored_bytes FROM chunks"
            f" WHERE team_id = ? AND digest IN ({','.join('?' * len(digests))}) ORDER BY pack_id, pack_offset",
            (self._host.team, *digests),
        )
        found: dict[bytes, Chunk] = {}
        by_pack: dict[str, list[rows.Row]] = {}
        for row in listed:
            if row[4] is None:
                found[row[0]] = Chunk(row[0], row[1], row[2], row[3])
            else:
                by_pack.setdefault(row[4], []).append(row)
        with self._host.faults:
            for pack_id, members in by_pack.items():
                with contextlib.suppress(FileNotFoundError):
                    for row, data in zip(members, self._packs.read(pack_id, [(r[5], r[6]) for r in members]), strict=True):
                        if len(data) == row[6]:
                            found[row[0]] = Chunk(row[0], row[1], row[2], data)
        return found

    def sweep(self, cutoff: int) -> int:
        """Delete chunks that no snapshot names and nobody used since `cutoff`; returns the bytes given back."""
        before = sum(self._packs.sizes().values())
        freed_inline = 0
        gone: list[str] = []

        def work(cursor: sqlite3.Cursor) -> None:
            nonlocal freed_inline
            freed_inline, gone[:] = 0, []
            live = {d for (joined,) in cursor.execute("SELECT digests FROM state_snapshots") for d in rows.split_digests(joined)}
            dead: list[tuple[str, bytes]] = []
            touched: set[str] = set()
            for team, digest, size, pack in cursor.execute(
                "SELECT team_id, digest, stored_bytes, pack_id FROM chunks WHERE last_used_at < ?", (cutoff,)
            ):
                if digest not in live:
                    dead.append((team, digest))
                    if pack:
                        touched.add(pack)
                    else:
                        freed_inline += size
            cursor.executemany("DELETE FROM chunks WHERE team_id = ? AND digest = ?", dead)
            gone.extend(self._compact(cursor, touched))

        self._host.transact(work)
        for pack_id in gone:  # after the commit: a row never points to a file that is gone
            self._packs.delete(pack_id)
        return freed_inline + max(0, before - sum(self._packs.sizes().values()))

    def _compact(self, cursor: sqlite3.Cursor, touched: set[str]) -> list[str]:
        """Move what is left of mostly dead packs to new ones; returns the packs that nothing names any more."""
        kept: dict[str, int] = dict(
            cursor.execute("SELECT pack_id, sum(stored_bytes) FROM chunks WHERE pack_id IS NOT NULL GROUP BY pack_id")
        )
        empty = []
        for pack_id, size in self._packs.sizes().items():
            if pack_id not in kept:
                if pack_id in touched or self._packs.is_orphan(pack_id):
                    empty.append(pack_id)
            elif kept[pack_id] * 2 < size:
                members = cursor.execute(
                    "SELECT team_id, digest, pack_offset, stored_bytes FROM chunks WHERE pack_id = ?", (pack_id,)
                ).fetchall()
                fresh, offsets = self._packs.write(self._packs.read(pack_id, [(m[2], m[3]) for m in members]))
                cursor.executemany(
                    "UPDATE chunks SET pack_id = ?, pack_offset = ? WHERE team_id = ? AND digest = ?",
                    [(fresh, o, m[0], m[1]) for m, o in zip(members, offsets, strict=True)],
                )
                empty.append(pack_id)
        return empty
