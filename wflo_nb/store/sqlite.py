"""What is particular to SQLite: the file, the write gate, the synchronous rules, packs for bytes, a full disk.

Rules of this file:

* Every write transaction runs inside the gate, COMMIT included, because the checkpoint of the write-ahead log runs there.
* A hold may be lost by a power cut (``synchronous=NORMAL``): the call it was for is lost with it. Everything else is on the
  disk when its method returns (``FULL``), but for beginnings and ends of executions. With a purse (`wflo_nb.store.purse`) holds are on the
  disk too, if a budget goes on after a restart, and ends of calls a moment later: it is asked first, and writes out before anybody reads
  or writes here.
* Connections, and what a fork does to them: `wflo_nb.store.connections`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wflo_nb.errors import StoreUnavailableError, WfloError, tell
from wflo_nb.model import BudgetState, microseconds, moment
from wflo_nb.store import migrations, rows, sqlite_faults
from wflo_nb.store.connections import BUSY_SECONDS, Connections, Handle
from wflo_nb.store.faults import Translated, unwrapped
from wflo_nb.store.packs import Packs
from wflo_nb.store.places import network_filesystem
from wflo_nb.store.purse import Purse
from wflo_nb.store.purses import catch_up, settle, write_out
from wflo_nb.store.records import Chunk, Shortfall
from wflo_nb.store.shelf import Shelf

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

T = TypeVar("T")

_SPARE_BYTES = 1 << 20

_HOLD = rows.INSERT_CALL + " ON CONFLICT (team_id, id) DO NOTHING"
_ROW_OF_CALL = "SELECT state, reserved_nano, cost_nano, chain, execution_id FROM llm_calls WHERE team_id = ? AND id = ?"
# What was spent beyond its hold was not taken out of a lease, so it widens the lease that it is counted in.
_CREDIT = (
    "held_nano = held_nano - ?, spent_nano = spent_nano + ?, unconfirmed_nano = unconfirmed_nano + ?, lease_nano = lease_nano + ?,"
    " updated_at = ?"
)
_FINISH = f"UPDATE llm_calls SET {rows.FINISH_SET}, cost_nano = :cost_nano WHERE team_id = :team_id AND id = :id"
_ADD_COST = "UPDATE workflow_executions SET cost_nano = cost_nano + ?, updated_at = ? WHERE team_id = ? AND id = ?"


class SQLite(Connections):
    """The embedded database. Thread-safe. As a `spool` it stands in front of a server, see `wflo_nb.store.spool`.

    Attributes:
        purse: what this process has set aside, None if every call asks the file.
    """

    local = True

    def __init__(self, path: Path, team: str, *, spool: bool = False, purse: bool = False) -> None:
        self.path = path
        self.spool = spool
        self.location = self.address = str(path)
        self.team = team
        self._shelf = Shelf(self, Packs(path.with_name(path.name + ".packs")))
        self._spare = path.with_name(path.name + ".spare")
        self._sqlalchemy: Engine | None = None
        self.faults = Translated(self)
        super().__init__(path)
        self.purse = Purse(self) if purse else None

    def explain(self, error: BaseException) -> WfloError | None:
        """See `sqlite_faults`."""
        return sqlite_faults.explain(error, self.location, BUSY_SECONDS)

    def forget(self) -> None:
        """After a fork, in the child."""
        super().forget()
        self._sqlalchemy = None
        if self.purse is not None:
            self.purse.forget()

    def settle_before_fork(self, seconds: float) -> None:
        """What the child is to find in the tables."""
        if self.purse is not None:
            self.purse.settle_before_fork(seconds)

    def retire(self) -> None:
        """Keep no connection open between uses."""
        if self.purse is not None and not self.purse.closed:
            self.purse.write_out()
        super().retire()

    def close(self) -> None:
        """Book what is in the purse, then close."""
        try:
            if self.purse is not None:
                self.purse.close()
        finally:
            super().close()

    # -- set-up ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the file ready: log mode, tables, the spare bytes for a full disk."""
        with self.faults:
            if self.path.is_dir():
                raise StoreUnavailableError(f"{self.path} is a folder, not a database file. {sqlite_faults.ELSEWHERE}")
            if not os.access(self.path.parent, os.W_OK) or (self.path.exists() and not os.access(self.path, os.W_OK)):
                raise StoreUnavailableError(sqlite_faults.readonly(self.location))
            # SQLite would let others read what it creates; its log files take after the database.
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
            handle = self._take()
            try:
                handle.door.lock()
                if not migrations.is_current(_version(handle.db), self.location):
                    self._set_up(handle)
            finally:
                handle.door.unlock()
                self._give(handle)
            self._lay_spare()

    def _set_up(self, handle: Handle) -> None:
        network = network_filesystem(self.path)
        if network:
            tell(
                f"{self.path} is on a network file system ({network}), where SQLite is slower and its locks depend on the server. Keep the "
                "store on a local disk (WFLO_STORE), or share one through PostgreSQL (`%wflo connect postgresql://…`)."
            )
        # Not inside a transaction: SQLite cannot change the log mode there.
        handle.db.execute(f"PRAGMA journal_mode={'DELETE' if network else 'WAL'}")
        with unwrapped(), self._engine().connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            migrations.migrate(connection, self.location)
            connection.commit()

    def _engine(self) -> Engine:
        import sqlalchemy as sa

        if self._sqlalchemy is None:
            self._sqlalchemy = sa.create_engine(
                "sqlite://",
                creator=self.connect,
                poolclass=sa.NullPool,
            )
        return self._sqlalchemy

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """SQLAlchemy's view of the file, for reports."""
        self._settle()
        # One of our own connections stays open meanwhile, so that closing this one never is the last close, outside the gate.
        with self.faults, self._connection(), unwrapped(), self._engine().connect() as connection:
            yield connection

    # -- a full disk -----------------------------------------------------------------------------------------------

    def _lay_spare(self) -> None:
        """Bytes to give back when the disk is full, so that calls already paid can still be recorded."""
        with contextlib.suppress(OSError):
            if not self._spare.exists():
                fresh = self._spare.with_name(f"{self._spare.name}.{os.getpid()}.{threading.get_ident()}")
                try:
                    fresh.touch(0o600)
                    fresh.write_bytes(os.urandom(_SPARE_BYTES))  # random: some file systems store zeros for free
                    fresh.replace(self._spare)
                finally:
                    fresh.unlink(missing_ok=True)

    def _spend_spare(self, handle: Handle) -> bool:
        try:
            self._spare.unlink()
        except OSError:
            return False
        tell(
            f"The disk that holds {self.path} is full. The last {_SPARE_BYTES // 1024} KiB kept for this are in use so that finished calls "
            "are still recorded; new calls under a budget will be refused. Free some space."
        )
        with contextlib.suppress(sqlite3.Error):  # so that the log is written over from its start, and needs no new space
            handle.door.lock()
            try:
                handle.db.execute("PRAGMA wal_checkpoint(RESTART)")
            finally:
                handle.door.unlock()
        return True

    # -- statements ------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if self.purse is not None:
            settle(self)

    def catch_up(self) -> None:
        """Wait a moment for what other processes have not entered yet."""
        if self.purse is not None:
            catch_up(self)

    def select(self, sql: str, params: rows.Params | Sequence[Any]) -> list[rows.Row]:
        """Rows of a query."""
        self._settle()
        return self.look(sql, params)

    def look(self, sql: str, params: rows.Params | Sequence[Any] = ()) -> list[rows.Row]:
        """`select`, of the file as it is."""
        with self.faults, self._connection() as db:
            return db.execute(sql, params).fetchall()

    def transact(self, work: Callable[[sqlite3.Cursor], T], *, must_land: bool = True, durable: bool = True) -> T:
        """Run `work` with a cursor as one transaction, `durable` on return (otherwise it is with the next that is). When the disk is
        full, the spare bytes are spent on it if it `must_land`.
        """
        if self.purse is None or self.purse.closed or not must_land:
            write_out(self)
            return self.book(work, must_land=must_land, durable=durable)
        write_out(self, but=self.purse)
        return self.purse.book_with(work, durable=durable)

    def book(self, work: Callable[[sqlite3.Cursor], T], *, must_land: bool = True, durable: bool = True) -> T:
        """`transact`, on the file as it is."""
        with self.faults:
            handle = self._take(durable)
            try:
                try:
                    return handle.transact(work, durable)
                except sqlite3.OperationalError as error:
                    if not must_land or not sqlite_faults.is_full(error) or not self._spend_spare(handle):
                        raise
                    return handle.transact(work, durable)
            finally:
                self._give(handle)

    def sync(self) -> None:
        """Have everything on the disk that transactions which were not durable have written."""
        with contextlib.suppress(FileNotFoundError):  # no log, as on a network's file system: then each was
            log = os.open(f"{self.path}-wal", os.O_RDONLY)
            try:
                os.fsync(log)
            finally:
                os.close(log)

    def take_turns(self, cursor: sqlite3.Cursor, executions: Sequence[str]) -> None:
        """Nothing to wait for: one writes at a time."""

    def reserve(self, call: rows.Params, chain: Sequence[str], lo: int, hi: int, share: int) -> int | Shortfall:
        """See `Store.reserve`."""
        team = self.team
        marks = ",".join("?" * len(chain))

        def work(cursor: sqlite3.Cursor) -> int | Shortfall:
            amount: int | Shortfall = hi
            if chain:
                found = {
                    r[0]: BudgetState(*r)
                    for r in cursor.execute(
                        "SELECT id, scope, coalesce(lease_nano, cap_nano), spent_nano, held_nano, unconfirmed_nano, parent_id FROM budgets"
                        f" WHERE team_id = ? AND id IN ({marks})",
                        (team, *chain),
                    )
                }
                if len(found) != len(chain):
                    raise rows.missing_budget([b for b in chain if b not in found])
                amount = rows.grant([found[b] for b in chain], lo, hi, share)
            if isinstance(amount, Shortfall) or not cursor.execute(_HOLD, {**call, "reserved_nano": amount}).rowcount:
                known = cursor.execute("SELECT reserved_nano FROM llm_calls WHERE team_id = ? AND id = ?", (team, call["id"])).fetchone()
                return amount if known is None else int(known[0])  # asked again: held already
            if chain:
                cursor.execute(
                    f"UPDATE budgets SET held_nano = held_nano + ?, updated_at = ? WHERE team_id = ? AND id IN ({marks})",
                    (amount, call["created_at"], team, *chain),
                )
            return amount

        # Where there should be a purse, and it cannot work, a power cut must not make money free either. A spool lends nothing after one.
        return self.transact(work, must_land=False, durable=self.purse is not None and not self.spool)

    def finish(self, call: rows.Params, cost: Callable[[int], int | None]) -> bool:
        """See `Store.finish`; False if there is no such call."""
        return self.transact(self.ending(call, cost))

    def ending(self, call: rows.Params, cost: Callable[[int], int | None]) -> Callable[[sqlite3.Cursor], bool]:
        """The work of `finish` inside a transaction."""
        team, state, at = self.team, call["state"], call["settled_at"]

        def work(cursor: sqlite3.Cursor) -> bool:
            row = cursor.execute(_ROW_OF_CALL, (team, call["id"])).fetchone()
            if row is None:
                return False
            was, reserved, counted, chain, execution = row
            if was not in ("RESERVED", "UNCONFIRMED") or was == state:
                return True
            if was == "UNCONFIRMED" and self.spool:  # sent in, perhaps: only the server may give that money back
                return False
            final = cost(reserved)
            before = counted or 0 if was == "UNCONFIRMED" else 0
            doubt = (final or 0 if state == "UNCONFIRMED" else 0) - before
            more = (final or 0) - before
            beyond = max(0, (final or 0) - reserved) - max(0, before - reserved)
            ids = json.loads(chain) if chain else []
            if ids:
                cursor.execute(
                    f"UPDATE budgets SET {_CREDIT} WHERE team_id = ? AND id IN ({','.join('?' * len(ids))})",
                    (reserved if was == "RESERVED" else 0, more, doubt, beyond, at, team, *ids),
                )
            cursor.execute(_FINISH, {**call, "cost_nano": final})
            if more:
                cursor.execute(_ADD_COST, (more, at, team, execution))
            return True

        return work

    def record(self, call: rows.Params, chain: Sequence[str]) -> None:
        """See `Store.record`."""
        team, cost, at = self.team, call["cost_nano"] or 0, call["settled_at"]

        def work(cursor: sqlite3.Cursor) -> None:
            if cursor.execute(rows.INSERT_CALL + " ON CONFLICT (team_id, id) DO NOTHING", call).rowcount == 0 or not cost:
                return
            if chain:
                doubt = cost if call["state"] == "UNCONFIRMED" else 0
                cursor.execute(
                    f"UPDATE budgets SET {_CREDIT} WHERE team_id = ? AND id IN ({','.join('?' * len(chain))})",
                    (0, cost, doubt, cost, at, team, *chain),
                )
            cursor.execute(_ADD_COST, (cost, at, team, call["execution_id"]))

        self.transact(work)

    # -- bytes: see Shelf ------------------------------------------------------------------------------------------

    def put_chunks(self, chunks: Sequence[Chunk], at: datetime) -> None:
        """Keep chunks that are not kept yet; durable on return."""
        self._shelf.put(chunks, self.time(at))

    def get_chunks(self, digests: Sequence[bytes]) -> dict[bytes, Chunk]:
        """The chunks that are kept, of those asked for."""
        return self._shelf.get(digests)

    def sweep_chunks(self, unused_since: datetime) -> int:
        """Delete chunks that no snapshot names and nobody used since; returns the bytes given back."""
        freed = self._shelf.sweep(self.time(unused_since))
        self._lay_spare()
        return freed

    # -- types -----------------------------------------------------------------------------------------------------

    def time(self, moment: datetime) -> int:
        """Integer microseconds since 1970."""
        return microseconds(moment)

    def clock(self, us: int) -> int:
        """The same."""
        return us

    def moment(self, value: int) -> datetime:
        """A UTC time."""
        return moment(value)

    def names(self, ids: Sequence[str]) -> str:
        """A JSON array."""
        return _names(tuple(ids))

    def ids(self, value: str) -> list[str]:
        """The list of a JSON array."""
        return list(json.loads(value))

    def document(self, value: str) -> Any:
        """The value of a JSON text."""
        return json.loads(value)


@functools.lru_cache(256)
def _names(ids: tuple[str, ...]) -> str:
    return json.dumps(ids)


def _version(db: sqlite3.Connection) -> str | None:
    try:
        row = db.execute(migrations.SELECT_VERSION).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    return None if row is None else str(row[0])
