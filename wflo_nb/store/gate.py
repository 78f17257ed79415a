"""The write gate of an embedded store: one writer at a time, over all threads and processes of a machine.

SQLite's own waiting lets one writer starve for seconds while another commits thousands of times. A lock on a side file is
fair, and the system frees it when its owner is killed. It belongs to the open file description, so each connection opens
its own, and a forked child must close its copies (or it would keep its parent's lock alive).

An owner that was stopped (Ctrl-Z) frees nothing, and the system's lock has no time-out. Asking for it again and again would have
one, and would not be fair. So who finds the gate shut lets another thread wait in the system's queue, in his place, and waits for
that thread with a time-out. Who finds it open needs one call to the system, as ever.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import os
import sys
import threading
import time

from wflo_nb.errors import StoreUnavailableError

#: Seconds that a writer waits at the gate: far more than all writers together need, if they are at work.
PATIENCE = 20.0

if sys.platform == "win32":
    import msvcrt

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
        """Wait for the gate, however long that takes."""
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


class Door:
    """One connection's way through the gate. For one thread at a time.

    Attributes:
        fd: its descriptor, below zero when the door is closed.
    """

    __slots__ = ("_path", "fd")

    def __init__(self, path: str) -> None:
        self._path = path
        self.fd = open_gate(path)

    def lock(self) -> None:
        """Wait for the gate, in the order of arrival. After an interrupt it may be ours or not: `unlock` is right in both cases.

        Raises:
            StoreUnavailableError: somebody does not come to an end.
        """
        if try_lock(self.fd) or self._waited():
            return
        raise StoreUnavailableError(
            f"Another process has held {self._path} for {PATIENCE:g} s, so nothing can be written to the store beside it. Was that process "
            f"stopped (Ctrl-Z, a debugger)? Let it go on, or end it; `fuser {self._path}` names it."
        )

    def unlock(self) -> None:
        """Open the gate; nothing happens if it was not ours."""
        unlock(self.fd)

    def close(self) -> None:
        """Give the descriptor back, and with it the gate. May be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _waited(self) -> bool:
        return self._asked_again() if sys.platform == "win32" or self._path in _lost else self._queued()

    def _asked_again(self) -> bool:
        """Without a queue: where the system has none, and while the gate is known to be stuck."""
        until = time.monotonic() + PATIENCE
        while not try_lock(self.fd):
            if time.monotonic() >= until:
                return False
            time.sleep(0.002)
        return True

    def _queued(self) -> bool:
        try:
            waiter = _idle.pop()
        except IndexError:
            waiter = _Waiter()
        through = False
        try:
            waiter.go(self.fd)
            through = waiter.through.acquire(timeout=PATIENCE)
        finally:
            with _mutex:
                if through or waiter.is_through:
                    through = True
                    waiter.rest()
                else:  # it goes on waiting, with the descriptor that was ours
                    waiter.lost = self._path
                    _lost.setdefault(self._path, []).append(waiter)
                    self.fd = open_gate(self._path)
        return through


class _Waiter:
    """A thread that waits at gates for others.

    Attributes:
        fd: what it waits with.
        through: released when it has got through; `is_through` then.
        lost: the path of its gate, if nobody waits for it any more: then it gives the gate back at once.
    """

    def __init__(self) -> None:
        self.fd = -1
        self.through = threading.Lock()
        self.is_through = False
        self.lost: str | None = None
        self._work = threading.Lock()
        self.through.acquire()
        self._work.acquire()
        _thread.start_new_thread(self._run, ())

    def go(self, fd: int) -> None:
        """Wait at a gate."""
        self.fd = fd
        self._work.release()

    def rest(self) -> None:
        """Be there for the next. Called with the mutex."""
        self.through.acquire(blocking=False)
        self.fd, self.is_through = -1, False
        _idle.append(self)

    def _run(self) -> None:
        while True:
            self._work.acquire()
            with contextlib.suppress(OSError):
                lock(self.fd)
            with _mutex:
                self.is_through = True
                if self.lost is None:
                    self.through.release()
                    continue
                _lost[self.lost].remove(self)
                if not _lost[self.lost]:
                    del _lost[self.lost]
                self.lost = None
                os.close(self.fd)
                self.rest()


_mutex = threading.Lock()
_idle: list[_Waiter] = []
_lost: dict[str, list[_Waiter]] = {}


def _after_fork_in_child() -> None:
    global _mutex
    _mutex = threading.Lock()
    _idle.clear()  # their threads are the parent's
    for waiter in itertools.chain.from_iterable(_lost.values()):
        os.close(waiter.fd)  # a copy, which would keep the gate shut that the parent gets through
    _lost.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
