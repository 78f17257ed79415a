"""Snapshot bytes of an embedded store: append-only pack files beside the database.

A pack is written once, by one `write`, and never changed: the bytes of its chunks end to end, with offsets kept in the
database. Bytes first, then fsync of file and folder, then the rows: a crash leaves a pack that nothing names, never a row
that points nowhere.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

#: A pack that no row names may still be waiting for its rows; after this long nobody is coming.
ORPHAN_GRACE = 3600.0


class Packs:
    """The folder of packs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, pack_id: str) -> Path:
        return self.folder / f"{pack_id}.pack"

    def write(self, pieces: Sequence[bytes]) -> tuple[str, list[int]]:
        """A new pack that survives a power loss; returns its id and the offset of each piece.

        Raises:
            OSError: the bytes could not be written; nothing is left behind.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        pack_id, offsets, end = uuid.uuid4().hex, [], 0
        path = self._path(pack_id)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600)
        try:
            try:
                for piece in pieces:
                    offsets.append(end)
                    _write_all(fd, piece)
                    end += len(piece)
                os.fsync(fd)
            finally:
                os.close(fd)
            self._sync_folder()
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return pack_id, offsets

    def _sync_folder(self) -> None:
        if os.name != "posix":
            return  # a folder cannot be opened there; NTFS journals names by itself
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def read(self, pack_id: str, spans: Iterable[tuple[int, int]]) -> list[bytes]:
        """The pieces at (offset, length); a piece is shorter than asked if the pack is.

        Raises:
            FileNotFoundError: there is no such pack.
        """
        with self._path(pack_id).open("rb") as file:
            found = []
            for offset, length in spans:
                file.seek(offset)
                found.append(file.read(length))
            return found

    def exists(self, pack_id: str) -> bool:
        """Whether the pack is there."""
        return self._path(pack_id).exists()

    def sizes(self) -> dict[str, int]:
        """Every pack and its length."""
        return {p.stem: p.stat().st_size for p in self.folder.glob("*.pack")} if self.folder.is_dir() else {}

    def delete(self, pack_id: str) -> None:
        """Remove a pack; nothing happens if it is gone."""
        self._path(pack_id).unlink(missing_ok=True)

    def is_orphan(self, pack_id: str) -> bool:
        """Whether a pack without rows is old enough to be nobody's."""
        try:
            return time.time() - self._path(pack_id).stat().st_mtime > ORPHAN_GRACE
        except FileNotFoundError:
            return False


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:  # one write may be short
        view = view[os.write(fd, view) :]
