"""The open connections of an embedded store, and what a fork does to them.

A connection serves one thread at a time and is taken from a last-in-first-out pool, so that a thousand short threads share a few
connections.

SQLite remembers per process which locks it holds. A child that inherits this memory, but not the locks, would believe itself
protected; so connections are closed before a fork, and both sides open new ones when they need them. Whoever wants one meanwhile
waits. What somebody does not give back in time belongs to the parent: the child keeps it, untouched and unclosed.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from wflo_nb.errors import StoreUnavailableError
from wflo_nb.store import gate
from wflo_nb.store.faults import Translated

T = TypeVar("T")

BUSY_SECONDS = 30.0  # somebody else's tool may hold the file; our own writers wait at the gate
_MOST_IDLE = 16


class Handle:
    """One connection with its own door to the gate."""

    __slots__ = ("db", "door", "durable")
    db: sqlite3.Connection
    door: gate.Door

    def __init__(self) -> None:
        self.durable: bool | None = None

    def transact(self, work: Callable[[sqlite3.Cursor], T], durable: bool) -> T:
        """Run `work` as one transaction inside the gate."""
        db = self.db
        try:
            self.door.lock()  # inside the try: an interrupt right after it must not leave the gate shut
            if db.in_transaction:  # an interrupt came between the last transaction and its rollback
                db.execute("ROLLBACK")
            if self.durable is not durable:
                db.execute("PRAGMA synchronous=FULL" if durable else "PRAGMA synchronous=NORMAL")
                self.durable = durable
            db.execute("BEGIN IMMEDIATE")
            result = work(db.cursor())
            db.execute("COMMIT")
            return result
        finally:
            try:
                # However it ended, also by an interrupt right after BEGIN; after "disk is full" SQLite has already rolled back.
                if db.in_transaction:
                    db.execute("ROLLBACK")
            finally:
                self.door.unlock()

    def close(self) -> None:
        """Close inside the gate: the last close of a file writes its log back. Who holds the gate for too long has the file open, too, so
        that ours is not the last.
        """
        try:
            self.door.lock()
        finally:
            try:
                self.db.close()
            finally:
                self.door.close()

    def drop(self) -> None:
        """Close the door to the gate only."""
        if hasattr(self, "door"):
            self.door.close()


class Connections:
    """A file's connections. Thread-safe."""

    path: Path
    location: str
    faults: Translated

    def __init__(self, path: Path) -> None:
        self._gate_path = str(path) + ".gate"
        self._lock = threading.Lock()
        self._thawed = threading.Condition(self._lock)
        self._frozen_by: int | None = None
        self._idle: list[Handle] = []
        self._all: set[Handle] = set()
        self._inherited: list[Handle] = []  # a parent's connections: kept, because dropping them would close them
        self._keep_idle = True
        self._closed = False
        _stores.add(self)

    def connect(self) -> sqlite3.Connection:
        """A new connection to the file."""
        return sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256)

    def _take(self, durable: bool | None = None) -> Handle:
        """A connection that nobody else has. If there is a choice, one whose last transaction was as `durable`, because changing that makes
        SQLite prepare all its statements anew; but first of all one that an interrupt left in a transaction, which is in everybody's way.
        """
        with self._lock:
            while self._frozen_by not in (None, threading.get_ident()):
                self._thawed.wait()
            if self._closed:
                raise StoreUnavailableError(f"The store at {self.location} was closed. Open it again with open_store().")
            fit = [one for one in self._idle if one.db.in_transaction]
            fit = fit or [one for one in self._idle if durable is None or one.durable is None or one.durable is durable]
            if fit or len(self._idle) > 1:
                handle = fit[-1] if fit else self._idle[-1]
                self._idle.remove(handle)
                return handle
            handle = Handle()
            self._all.add(handle)  # before it is opened: a fork waits for it
        try:
            handle.door = gate.Door(self._gate_path)
            handle.db = self.connect()
        except BaseException:
            with self._lock:
                self._all.discard(handle)
            handle.drop()
            raise
        return handle

    def _give(self, handle: Handle) -> None:
        with self._lock:
            if self._keep_idle and not self._closed and len(self._idle) < _MOST_IDLE:
                self._idle.append(handle)
                return
            self._all.discard(handle)
        handle.close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        handle = self._take()
        try:
            yield handle.db
        finally:
            self._give(handle)

    def retire(self) -> None:
        """Keep no connection open between uses: another store took this one's place, late answers may still come."""
        with self._lock:
            self._keep_idle = False
            idle, self._idle = self._idle, []
            self._all.difference_update(idle)
        with self.faults:
            for handle in idle:
                handle.close()

    def close(self) -> None:
        """Close every idle connection; one that is in use closes when it is given back."""
        self.retire()
        with self._lock:
            self._closed = True

    # -- around a fork ---------------------------------------------------------------------------------------------

    def settle_before_fork(self, seconds: float) -> None:
        """What is to be on the disk before a fork; may take so long."""

    def freeze(self) -> None:
        """Give nobody a connection from now on."""
        with self._lock:
            self._frozen_by = threading.get_ident()

    def settle(self, until: float) -> None:
        """Close the connections as they come back, until the monotonic time `until`; then keep everybody out."""
        while True:
            self._lock.acquire()
            idle, self._idle = self._idle, []
            self._all.difference_update(idle)
            for handle in idle:
                with contextlib.suppress(sqlite3.Error, StoreUnavailableError):
                    handle.close()
            if not self._all or time.monotonic() >= until:
                return
            self._lock.release()
            time.sleep(0.0005)

    def thaw(self) -> None:
        """After a fork, in the parent."""
        self._frozen_by = None
        self._thawed.notify_all()
        self._lock.release()

    def forget(self) -> None:
        """After a fork, in the child: what was still open belongs to the parent."""
        for handle in self._all:
            handle.drop()  # a copy of the parent's gate, which would stay shut as long as we live
        self._inherited += self._all
        self._all, self._idle = set(), []
        self._lock = threading.Lock()
        self._thawed = threading.Condition(self._lock)
        self._frozen_by = None


_stores: weakref.WeakSet[Connections] = weakref.WeakSet()
_forking = threading.Lock()
_frozen: list[Connections] = []
_FORK_PATIENCE = 1.0


def _before_fork() -> None:
    _forking.acquire()
    until = time.monotonic() + _FORK_PATIENCE
    stores = list(_stores)
    for store in stores:
        store.settle_before_fork(_FORK_PATIENCE)
    for store in stores:  # all of them first, so that the time to wait is that of the slowest
        store.freeze()
    for store in stores:
        store.settle(until)
        _frozen.append(store)


def _after_fork_in_parent() -> None:
    for store in _frozen:
        store.thaw()
    _frozen.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    for store in _frozen:
        store.forget()
    _frozen.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
