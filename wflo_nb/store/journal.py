"""What a process notes down of its calls before they are in the tables: a file that outlives it, however it is killed.

A note is a list of plain values (`marshal`, version 2, which every Python reads), behind its length and a checksum, so that nothing is read
that was not written whole. It is written in one piece and not waited for: the system keeps what a killed process has written. A power cut
may take the last notes with it; then the money that the process had set aside counts as spent (see `wflo_nb.store.booking`).
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wflo_nb.store import rows

Note = list[Any]

_HEAD = struct.Struct("<II")  # bytes of the note, and their CRC-32
#: Bytes of notes that are in the tables by now, beyond which the file is written anew without them.
_LONG = 1 << 20


class Journal:
    """One process's file. Not thread-safe: its owner has a lock.

    Attributes:
        path: where it is.
        size: its bytes so far.
    """

    def __init__(self, beside: Path) -> None:
        self.path = beside.with_name(f"{beside.name}.{os.getpid()}-{secrets.token_hex(4)}.calls")
        self._fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self.size = 0

    def note(self, values: Note) -> None:
        """Append one note.

        Raises:
            OSError: it could not be written whole; nothing more may be noted in this file.
        """
        try:
            data = marshal.dumps(values, 2)
        except ValueError:
            data = marshal.dumps(_plain(values), 2)
        data = _HEAD.pack(len(data), zlib.crc32(data)) + data
        if os.write(self._fd, data) != len(data):
            raise OSError(f"{self.path} could not be written whole")
        self.size += len(data)

    @property
    def long(self) -> bool:
        """Whether it is time for `renew`."""
        return self.size > _LONG

    def renew(self, notes: Iterable[Note]) -> None:
        """Begin again with these notes, which are all that is not in the tables yet. At every moment the one or the other file is whole.

        Raises:
            OSError: the old file stays.
        """
        fresh = self.path.with_name(self.path.name + ".new")
        before = self._fd, self.size
        self._fd, self.size = os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o600), 0
        try:
            for values in notes:
                self.note(values)
            fresh.replace(self.path)
        except BaseException:
            self.drop()
            fresh.unlink(missing_ok=True)
            self._fd, self.size = before
            raise
        with contextlib.suppress(OSError):
            os.close(before[0])

    def drop(self) -> None:
        """Let go of the file and leave it where it is."""
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def remove(self) -> None:
        """Nothing in it is needed any more."""
        self.drop()
        self.path.unlink(missing_ok=True)


def _plain(value: Any, depth: int = 0) -> Any:
    """A value in which some are of classes of their own (text, say), or of no shape that can be written down: these as in a row."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple) and depth < 2:
        return [_plain(one, depth + 1) for one in value]
    return json.loads(rows.to_json(value) or "null")


def notes(path: Path) -> Iterator[list[Any] | None]:
    """The notes in a file that another process left, in their order; None for one that was not written whole, which is the last.

    Raises:
        OSError: there is no such file, or it is not ours to read.
    """
    data = path.read_bytes()
    at = 0
    while at < len(data):
        body = at + _HEAD.size
        length, checksum = _HEAD.unpack_from(data, at) if body <= len(data) else (0, 0)
        note = data[body : body + length]
        if not length or len(note) != length or zlib.crc32(note) != checksum:
            yield None
            return
        yield list(marshal.loads(note))
        at = body + length
