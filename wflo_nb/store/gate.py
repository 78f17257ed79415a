"""The write gate of an embedded store: one writer at a time, over all threads and processes of a machine.

SQLite's own waiting lets one writer starve for seconds while another commits thousands of times. A lock on a side file is
fair, and the system frees it when its owner is killed. It belongs to the open file description, so each connection opens
its own, and a forked child must close its copies (or it would keep its parent's lock alive).
"""

from __future__ import annotations

import os
import sys
import time

if sys.platform == "win32":
    import msvcrt

    def lock(fd: int) -> None:
        """Wait for the gate. `msvcrt` gives up after ten seconds, we do not."""
        while True:
            try:
                os.lseek(fd, 0, os.SEEK_SET)
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
                return
            except OSError:
                time.sleep(0.002)

    def try_lock(fd: int) -> bool:
        """Take the gate if nobody has it."""
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def share(fd: int) -> None:
        """Nothing here: the system lets nobody delete a file that is open."""

    def unlock(fd: int) -> None:
        """Open the gate; nothing happens if it was not ours."""
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
        except OSError:
            pass
else:
    import fcntl

    def lock(fd: int) -> None:
        """Wait for the gate."""
        fcntl.flock(fd, fcntl.LOCK_EX)

    def try_lock(fd: int) -> bool:
        """Take the gate if nobody has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def share(fd: int) -> None:
        """Keep others from taking it, together with all who share it."""
        fcntl.flock(fd, fcntl.LOCK_SH)

    def unlock(fd: int) -> None:
        """Open the gate; nothing happens if it was not ours."""
        fcntl.flock(fd, fcntl.LOCK_UN)


def open_gate(path: str) -> int:
    """A descriptor of its own for one connection."""
    return os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
