"""What a process notes down of its calls before they are in the tables: a file that outlives it, however it is killed.

A note is a list of plain values (`marshal`, version 2, which every Python reads), behind its length and a checksum, so that nothing is read
that was not written whole. The file is mapped into memory, which takes a fraction of the time of a system call, and the length is written
last: the system keeps what a killed process has stored there. Its space is taken in advance, in steps, so that a full disk is an error at
a step and never a fault in between. A power cut may take the last notes with it; then the money that the process had set aside of budgets
that go on counts as spent (see `wflo_nb.store.booking`).
"""

from __future__ import annotations

import contextlib
import json
import marshal
import mmap
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wflo_nb.store import rows

Note = list[Any]

_HEAD = struct.Struct("<II")  # bytes of the note, and their Adler-32: it needs no table, so it is quick also when it is called seldom
_NO_MORE = bytes(_HEAD.size)  # where the next note begins, as long as there is none
#: Bytes of notes that are in the tables by now, beyond which the file is written anew without them.
_LONG = 1 << 20
#: Bytes by which the file grows at least.
_STEP = 1 << 16


class Journal:
    """One process's file. Not thread-safe: its owner has a lock.

    Attributes:
        path: where it is.
        size: bytes of the notes so far.
    """

    def __init__(self, beside: Path) -> None:
        self.path = beside.with_name(f"{beside.name}.{os.getpid()}-{secrets.token_hex(4)}.calls")
        self._open(self.path, os.O_EXCL)

    def _open(self, path: Path, flag: int) -> None:
        self._fd = os.open(path, os.O_CREAT | flag | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600)
        self.size = 0
        try:
            self._map = self._mapped(0, _STEP)
        except BaseException:
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise

    def _mapped(self, room: int, more: int) -> mmap.mmap:
        """The file with `more` bytes beyond its `room`, which are written, because what is only promised may not be there when needed."""
        while more:
            written = os.write(self._fd, bytes(more))
            room, more = room + written, more - written
        return mmap.mmap(self._fd, room)

    def note(self, values: Note) -> None:
        """Append one note.

        Raises:
            OSError: it could not be written whole; nothing more may be noted in this file.
        """
        try:
            data = marshal.dumps(values, 2)
        except ValueError:
            data = marshal.dumps(_plain(values), 2)
        start = self.size + _HEAD.size
        end = start + len(data)
        room = len(self._map)
        if end + _HEAD.size > room:
            before, self._map = self._map, self._mapped(room, max(_STEP, room, end + _HEAD.size - room))
            before.close()
        self._map[start : end + _HEAD.size] = data + _NO_MORE
        head = _HEAD.pack(len(data), zlib.adler32(data))
        self._map[self.size : start] = head  # now it counts; nothing is called from here on, so no interrupt comes in between
        self.size = end

    @property
    def used(self) -> bool:
        """Whether it is time for `restart`, if that can be."""
        return self.size > _STEP // 2

    @property
    def long(self) -> bool:
        """Whether it is time for `renew`."""
        return self.size > _LONG

    def restart(self) -> None:
        """Everything that was noted is in the tables: begin again in the same space."""
        self._map[: _HEAD.size] = _NO_MORE
        self.size = 0

    def renew(self, notes: Iterable[Note]) -> None:
        """Begin again with these notes, which are all that is not in the tables yet. At every moment the one or the other file is whole.

        Raises:
            OSError: the old file stays.
        """
        fresh = self.path.with_name(self.path.name + ".new")
        before = self._fd, self._map, self.size
        self._open(fresh, os.O_TRUNC)
        try:
            for values in notes:
                self.note(values)
            fresh.replace(self.path)
        except BaseException:
            self.drop()
            fresh.unlink(missing_ok=True)
            self._fd, self._map, self.size = before
            raise
        before[1].close()
        with contextlib.suppress(OSError):
            os.close(before[0])

    def drop(self) -> None:
        """Let go of the file and leave it where it is."""
        self._map.close()
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
        if not length:  # the space behind the last note, where an older one may have been
            return
        note = data[body : body + length]
        if len(note) != length or zlib.adler32(note) != checksum:
            yield None
            return
        yield list(marshal.loads(note))
        at = body + length
