"""Sending in what a machine's spool has: its budgets, its executions, its calls that are over, and operations that were interrupted.

Everything that changes both sides is an operation with an id: noted in the spool, done on the server, and only then forgotten by
the spool. Whatever is interrupted in between is completed by the next process that looks, exactly once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Iterator, Sequence

from wflo_nb.errors import StoreError, StoreUnavailableError, tell
from wflo_nb.model import Call, ExecutionStatus
from wflo_nb.store import holder, rows
from wflo_nb.store.leasing import Lessor
from wflo_nb.store.postgres import Postgres
from wflo_nb.store.spool import Spool
from wflo_nb.store.store import Store

#: Most calls sent in by one statement: few, because making its text keeps other threads waiting.
_BATCH = 50


class Sender:
    """What one process sends in. Thread-safe, where it is somebody's `turn`."""

    def __init__(self, server: Postgres, spool: Spool, lessor: Lessor) -> None:
        self._ledger = Store(server)
        self._spool = spool
        self._lessor = lessor
        self._known: set[str] = set()  # budgets that are on the server
        self._said: set[tuple[str, ExecutionStatus]] = set()
        self._over: set[str] = set()  # executions that ended, and that the server knows, but not all of whose calls
        self.renew_locks()

    def renew_locks(self) -> None:
        """In a forked child."""
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One at a time, over all threads and processes of the machine."""
        with self._lock, self._spool.door():
            yield

    @contextlib.contextmanager
    def operation(self) -> Iterator[str]:
        """The id of an operation that this thread is at, so that nobody takes it for an interrupted one."""
        op = f"op-{secrets.token_hex(10)}"
        _ours.add(op)
        try:
            yield op
        finally:
            _ours.discard(op)

    def announce(self) -> None:
        """Make the spool's budgets known to the server."""
        fresh = self._spool.budgets(self._known)
        if fresh:
            self._lessor.open_budgets(fresh)
            self._known.update(b.id for b in fresh)

    def send(self) -> None:
        """Send in everything that is over. In one's `turn`.

        Raises:
            StoreUnavailableError: the server cannot be reached; nothing is lost.
        """
        self._complete()
        while True:
            finals = self._spool.outbox.finals(_BATCH)
            self._send_executions()  # after that look: those of these calls are among them
            if not finals:
                break
            self.announce()
            fresh = self._ship([text for _, _, text in finals])
            # There already: sent before, or seen by the server in another state.
            for call in self._spool.outbox.calls([id for id, _, _ in finals if id not in fresh]):
                self._correct(call)
            self._spool.outbox.drop([(id, state) for id, state, _ in finals])
        if self._over:
            self._over = self._spool.outbox.drop_executions(self._over)

    def _ship(self, calls: Sequence[str]) -> set[str]:
        """Enter calls; one by one, if one of them keeps the others back. Of what cannot be entered even so only what it cost is."""
        try:
            return self._lessor.ship(calls)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            if len(calls) > 1:
                return set().union(*(self._ship([one]) for one in calls))
            fresh = self._lessor.ship([json.dumps(rows.bare(json.loads(calls[0]), _unkept(error)))])
            _tell_bare(error)
            return fresh

    def _correct(self, call: Call) -> None:
        """Change a call that is there; only what it cost, if the rest of it cannot be entered."""
        try:
            self._ledger.correct(call)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            self._ledger.correct(rows.bare_end(call, _unkept(error)))
            _tell_bare(error)

    def _complete(self) -> None:
        """Operations that were interrupted."""
        for op, kind, amounts, asker in self._spool.pending():
            if op in _ours or (asker != holder.this_holder() and not holder.is_dead(asker)):
                continue  # somebody is at it
            if kind == "lease":
                self._spool.done(op, self._lessor.void(op))
            elif kind == "give":
                self._lessor.give(op, amounts)
                self._spool.done(op)
            else:
                self.announce()
                self._lessor.cover(op, amounts)
                self._spool.done(op)

    def _send_executions(self) -> None:
        listed = [(e, h) for e, h in self._spool.outbox.executions() if (e.id, e.status) not in self._said]
        if listed:
            self.announce()
            self._lessor.ship_executions(listed)
            self._said.update((e.id, e.status) for e, _ in listed)
            self._over.update(e.id for e, _ in listed if e.status is not ExecutionStatus.RUNNING)


def _unkept(error: StoreError) -> str:
    return f"its record could not be entered: {error}"


def _tell_bare(error: StoreError) -> None:
    tell(f"Of a finished call only what it cost could be recorded. {error}")


_ours: set[str] = set()  # operations that a thread of this process is at, in whatever store

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ours.clear)
