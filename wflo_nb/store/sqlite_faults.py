"""What SQLite and the file system say, in words that tell the user what to do."""

from __future__ import annotations

import errno
import sqlite3

from wflo_nb.errors import StoreError, StoreUnavailableError, WfloError

# Primary result codes; the extended ones carry them in their low byte.
_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _NOTADB = 5, 6, 8, 10, 11, 13, 26
_OF_A_ROW = frozenset({18, 19, 20, 25})  # too big, constraint, mismatch, range: a fault of what is written, not of the place
ELSEWHERE = "Choose another place with WFLO_STORE or `%wflo connect PATH`."


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk (or a quota) may have run out. A quota shows as a failed write."""
    return error.sqlite_errorcode & 0xFF in (_FULL, _IOERR)


def readonly(location: str) -> str:
    """The message for a place that cannot be written."""
    return f"The store at {location} cannot be written: its folder or file is read-only for this user. {ELSEWHERE}"


def explain(error: BaseException, location: str, busy_seconds: float) -> WfloError | None:
    """The error to raise instead of a fault of the file; None if it is not one."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    elif isinstance(error, OSError):
        code = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EROFS: _READONLY, errno.EACCES: _READONLY, errno.EPERM: _READONLY}.get(
            error.errno or 0, 0
        )
    else:
        return None
    said = getattr(error, "strerror", None) or str(error)
    if code in _OF_A_ROW:
        return StoreError(f"The store at {location} cannot keep this: {said}.")
    return StoreUnavailableError(_words(code, location, said, busy_seconds))


def _words(code: int, location: str, said: str, busy_seconds: float) -> str:
    if code == _NOTADB:
        return f"{location} is not a wflo_nb store: the file is not an SQLite database. Nothing was changed. {ELSEWHERE}"
    if code == _FULL:
        return f"The disk that holds the store {location} is full. Everything recorded before is safe. Free some space. {ELSEWHERE}"
    if code == _READONLY:
        return readonly(location)
    if code in (_BUSY, _LOCKED):
        return f"The store at {location} was locked by another program for {busy_seconds:g} s. Close that program and try again."
    if code == _CORRUPT:
        return f"The store at {location} is damaged: {said}. Move the file away to start a new one; `sqlite3 FILE .recover` may save some."
    return f"The store at {location} cannot be used: {said}. {ELSEWHERE}"
