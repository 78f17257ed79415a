"""What is particular to SQLite: the file, the write gate, the synchronous rules, packs for bytes, a full disk.

Rules of this file:

* Every write transaction runs inside the gate, COMMIT included, because the checkpoint of the write-ahead log runs there.
* A hold may be lost by a power cut (``synchronous=NORMAL``): the call it was for is lost with it. Everything else is on the
  disk when its method returns (``FULL``).
* A connection serves one thread at a time and is taken from a last-in-first-out pool, so that a thousand short threads
  share a few connections. A forked child drops what it inherited, without closing it, and opens its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wflo_nb.errors import ChunkCorruptedError, StoreUnavailableError, WfloError, WfloWarning
from wflo_nb.model import BudgetState
from wflo_nb.store import gate, migrations, rows
from wflo_nb.store.faults import Translated, unwrapped
from wflo_nb.store.packs import Packs
from wflo_nb.store.places import network_filesystem
from wflo_nb.store.records import Chunk, Shortfall

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

T = TypeVar("T")

_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND = timedelta(microseconds=1)
_BUSY_SECONDS = 30.0  # somebody else's tool may hold the file; our own writers wait at the gate
_SPARE_BYTES = 1 << 20
_INLINE_BYTES = 64 << 10
_READONLY, _BUSY, _LOCKED, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 8, 5, 6, 10, 11, 13, 14, 26
_ELSEWHERE = "Choose another place with WFLO_STATE_DIR or `%wflo connect PATH`."

_ROW_OF_CALL = "SELECT state, reserved_nano, cost_nano, chain, execution_id FROM llm_calls WHERE team_id = ? AND id = ?"
_CREDIT = "held_nano = held_nano - ?, spent_nano = spent_nano + ?, unconfirmed_nano = unconfirmed_nano + ?, updated_at = ?"
_FINISH = f"UPDATE llm_calls SET {rows.FINISH_SET}, cost_nano = :cost_nano WHERE team_id = :team_id AND id = :id"
_ADD_COST = "UPDATE workflow_executions SET cost_nano = cost_nano + ?, updated_at = ? WHERE team_id = ? AND id = ?"


class _Handle:
    """One connection with its own door to the gate."""

    __slots__ = ("db", "durable", "fd")

    def __init__(self, db: sqlite3.Connection, fd: int) -> None:
        self.db = db
        self.fd = fd
        self.durable: bool | None = None

    def transact(self, work: Callable[[sqlite3.Cursor], T], durable: bool) -> T:
        """Run `work` as one transaction inside the gate."""
        db = self.db
        try:
            gate.lock(self.fd)  # inside the try: an interrupt right after it must not leave the gate shut
            if self.durable is not durable:
                db.execute("PRAGMA synchronous=FULL" if durable else "PRAGMA synchronous=NORMAL")
                self.durable = durable
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db.cursor())
                db.execute("COMMIT")
                return result
            except BaseException:
                if db.in_transaction:  # after "disk is full" SQLite has already rolled back
                    db.execute("ROLLBACK")
                raise
        finally:
            gate.unlock(self.fd)

    def close(self) -> None:
        """Close inside the gate: the last close of a file writes its log back."""
        gate.lock(self.fd)
        try:
            self.db.close()
        finally:
            gate.unlock(self.fd)
            os.close(self.fd)


class SQLite:
    """The embedded database. Thread-safe."""

    local = True

    def __init__(self, path: Path, team: str) -> None:
        self.path = path
        self.location = str(path)
        self.team = team
        self.packs = Packs(path.with_name(path.name + ".packs"))
        self._gate_path = str(path) + ".gate"
        self._spare = path.with_name(path.name + ".spare")
        self._lock = threading.Lock()
        self._idle: list[_Handle] = []
        self._all: set[_Handle] = set()
        self._inherited: list[_Handle] = []  # a parent's connections: kept, because dropping them would close them
        self._keep_idle = True
        self._closed = False
        self._sqlalchemy: Engine | None = None
        self._faults = Translated(self)
        _stores.add(self)

    # -- connections -----------------------------------------------------------------------------------------------

    def _take(self) -> _Handle:
        with self._lock:
            if self._closed:
                raise StoreUnavailableError(f"The store at {self.location} was closed. Open it again with open_store().")
            if self._idle:
                return self._idle.pop()
        fd = gate.open_gate(self._gate_path)
        try:
            db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256)
        except BaseException:
            os.close(fd)
            raise
        handle = _Handle(db, fd)
        with self._lock:
            self._all.add(handle)
        return handle

    def _give(self, handle: _Handle) -> None:
        with self._lock:
            if self._keep_idle and not self._closed:
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
        with self._faults:
            for handle in idle:
                handle.close()

    def close(self) -> None:
        """Close every idle connection; one that is in use closes when it is given back."""
        self.retire()
        with self._lock:
            self._closed = True

    def freeze(self) -> bool:
        """Before a fork: close idle connections and let nobody open one. True if none is left open."""
        self._lock.acquire()
        idle, self._idle = self._idle, []
        self._all.difference_update(idle)
        for handle in idle:
            with contextlib.suppress(sqlite3.Error):
                handle.close()
        return not self._all

    def thaw(self) -> None:
        """After a fork, in the parent."""
        self._lock.release()

    def forget(self) -> None:
        """After a fork, in the child: what was still open belongs to the parent."""
        for handle in self._all:
            with contextlib.suppress(OSError):
                os.close(handle.fd)  # a copy of the parent's gate, which would stay shut as long as we live
        self._inherited += self._all
        self._all, self._idle, self._sqlalchemy = set(), [], None
        self._lock = threading.Lock()

    # -- set-up ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the file ready: log mode, tables, the spare bytes for a full disk."""
        with self._faults:
            if self.path.is_dir():
                raise StoreUnavailableError(f"{self.path} is a folder, not a database file. {_ELSEWHERE}")
            if not os.access(self.path.parent, os.W_OK) or (self.path.exists() and not os.access(self.path, os.W_OK)):
                raise StoreUnavailableError(self._readonly())
            handle = self._take()
            try:
                gate.lock(handle.fd)
                if not migrations.is_current(_version(handle.db), self.location):
                    self._set_up(handle)
            finally:
                gate.unlock(handle.fd)
                self._give(handle)
            self._lay_spare()

    def _set_up(self, handle: _Handle) -> None:
        network = network_filesystem(self.path)
        if network:
            warnings.warn(
                f"{self.path} is on a network file system ({network}), where SQLite is slower and its locks depend on the server. Keep the "
                "store on a local disk (WFLO_STATE_DIR), or share one through PostgreSQL (`%wflo connect postgresql://…`).",
                WfloWarning,
                stacklevel=2,
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
                creator=lambda: sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False),
                poolclass=sa.NullPool,
            )
        return self._sqlalchemy

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """SQLAlchemy's view of the file, for reports."""
        # One of our own connections stays open meanwhile, so that closing this one never is the last close, outside the gate.
        with self._faults, self._connection():
            with unwrapped(), self._engine().connect() as connection:
                yield connection

    # -- a full disk -----------------------------------------------------------------------------------------------

    def _lay_spare(self) -> None:
        """Bytes to give back when the disk is full, so that calls already paid can still be recorded."""
        with contextlib.suppress(OSError):
            if not self._spare.exists():
                fresh = self._spare.with_name(f"{self._spare.name}.{os.getpid()}.{threading.get_ident()}")
                try:
                    fresh.write_bytes(os.urandom(_SPARE_BYTES))  # random: some file systems store zeros for free
                    fresh.replace(self._spare)
                finally:
                    fresh.unlink(missing_ok=True)

    def _spend_spare(self, handle: _Handle) -> bool:
        try:
            self._spare.unlink()
        except OSError:
            return False
        warnings.warn(
            f"The disk that holds {self.path} is full. The last {_SPARE_BYTES // 1024} KiB kept for this are in use so that finished calls "
            "are still recorded; new calls under a budget will be refused. Free some space.",
            WfloWarning,
            stacklevel=2,
        )
        with contextlib.suppress(sqlite3.Error):  # so that the log is written over from its start, and needs no new space
            gate.lock(handle.fd)
            try:
                handle.db.execute("PRAGMA wal_checkpoint(RESTART)")
            finally:
                gate.unlock(handle.fd)
        return True

    # -- statements ------------------------------------------------------------------------------------------------

    def select(self, sql: str, params: rows.Params) -> list[rows.Row]:
        """Rows of a query."""
        with self._faults, self._connection() as db:
            return db.execute(sql, params).fetchall()

    def transact(self, work: Callable[[sqlite3.Cursor], T], *, must_land: bool = True) -> T:
        """Run `work` with a cursor as one durable transaction. When the disk is full, the spare bytes are spent on it if it `must_land`."""
        with self._faults:
            handle = self._take()
            try:
                try:
                    return handle.transact(work, True)
                except sqlite3.OperationalError as error:
                    if not must_land or error.sqlite_errorcode & 0xFF not in (_FULL, _IOERR) or not self._spend_spare(handle):
                        raise
                    return handle.transact(work, True)
            finally:
                self._give(handle)

    def reserve(self, call: rows.Params, chain: Sequence[str], lo: int, hi: int, share: int) -> int | Shortfall:
        """See `Store.reserve`."""
        team = self.team
        marks = ",".join("?" * len(chain))

        def work(cursor: sqlite3.Cursor) -> int | Shortfall:
            known = cursor.execute("SELECT reserved_nano FROM llm_calls WHERE team_id = ? AND id = ?", (team, call["id"])).fetchone()
            if known is not None:
                return int(known[0])
            amount: int | Shortfall = hi
            if chain:
                found = {
                    r[0]: BudgetState(*r)
                    for r in cursor.execute(
                        "SELECT id, scope, cap_nano, spent_nano, held_nano, unconfirmed_nano, parent_id FROM budgets"
                        f" WHERE team_id = ? AND id IN ({marks})",
                        (team, *chain),
                    )
                }
                if len(found) != len(chain):
                    raise rows.missing_budget([b for b in chain if b not in found])
                amount = rows.grant([found[b] for b in chain], lo, hi, share)
                if isinstance(amount, Shortfall):
                    return amount
                cursor.execute(
                    f"UPDATE budgets SET held_nano = held_nano + ?, updated_at = ? WHERE team_id = ? AND id IN ({marks})",
                    (amount, call["created_at"], team, *chain),
                )
            cursor.execute(rows.INSERT_CALL, {**call, "reserved_nano": amount})
            return amount

        with self._faults:
            handle = self._take()
            try:
                return handle.transact(work, False)
            finally:
                self._give(handle)

    def finish(self, call: rows.Params, cost: Callable[[int], int | None]) -> bool:
        """See `Store.finish`; False if there is no such call."""
        team, state, at = self.team, call["state"], call["settled_at"]

        def work(cursor: sqlite3.Cursor) -> bool:
            row = cursor.execute(_ROW_OF_CALL, (team, call["id"])).fetchone()
            if row is None:
                return False
            was, reserved, counted, chain, execution = row
            if was not in ("RESERVED", "UNCONFIRMED") or was == state:
                return True
            final = cost(reserved)
            before = counted or 0 if was == "UNCONFIRMED" else 0
            doubt = (final or 0 if state == "UNCONFIRMED" else 0) - before
            more = (final or 0) - before
            ids = json.loads(chain) if chain else []
            if ids:
                cursor.execute(
                    f"UPDATE budgets SET {_CREDIT} WHERE team_id = ? AND id IN ({','.join('?' * len(ids))})",
                    (reserved if was == "RESERVED" else 0, more, doubt, at, team, *ids),
                )
            cursor.execute(_FINISH, {**call, "cost_nano": final})
            if more:
                cursor.execute(_ADD_COST, (more, at, team, execution))
            return True

        return self.transact(work)

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
                    (0, cost, doubt, at, team, *chain),
                )
            cursor.execute(_ADD_COST, (cost, at, team, call["execution_id"]))

        self.transact(work)

    # -- bytes -----------------------------------------------------------------------------------------------------

    def put_chunks(self, chunks: Sequence[Chunk], at: datetime) -> None:
        """Keep chunks that are not kept yet; durable on return."""
        pack_id: str | None = None
        offsets: Sequence[int | None] = [None] * len(chunks)
        with self._faults:
            if sum(len(c.data) for c in chunks) > _INLINE_BYTES:
                pack_id, offsets = self.packs.write([c.data for c in chunks])
        used = self.time(at)
        values = [
            (self.team, c.digest, c.raw_bytes, len(c.data), c.codec, pack_id, o, None if pack_id else c.data, used)
            for c, o in zip(chunks, offsets, strict=True)
        ]

        def work(cursor: sqlite3.Cursor) -> None:
            cursor.executemany(
                "INSERT INTO chunks (team_id, digest, raw_bytes, stored_bytes, codec, pack_id, pack_offset, data, last_used_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (team_id, digest) DO UPDATE SET last_used_at = excluded.last_used_at",
                values,
            )

        try:
            self.transact(work, must_land=False)
        except WfloError:  # rolled back; after an interrupt it may have been committed, and an unnamed pack does no harm
            if pack_id is not None:
                self.packs.delete(pack_id)
            raise

    def get_chunks(self, digests: Sequence[bytes]) -> dict[bytes, Chunk]:
        """The chunks that are kept, of those asked for."""
        found: dict[bytes, Chunk] = {}
        for start in range(0, len(digests), 500):
            part = digests[start : start + 500]
            try:
                found.update(self._read_chunks(part))
            except FileNotFoundError:
                found.update(self._read_chunks(part))  # collected into another pack between the row and the file
        return found

    def _read_chunks(self, digests: Sequence[bytes]) -> dict[bytes, Chunk]:
        with self._faults, self._connection() as db:
            listed = db.execute(
                "SELECT digest, raw_bytes, codec, data, pack_id, pack_offset, stored_bytes FROM chunks"
                f" WHERE team_id = ? AND digest IN ({','.join('?' * len(digests))}) ORDER BY pack_id, pack_offset",
                (self.team, *digests),
            ).fetchall()
        found: dict[bytes, Chunk] = {}
        by_pack: dict[str, list[Any]] = {}
        for row in listed:
            if row[4] is None:
                found[row[0]] = Chunk(row[0], row[1], row[2], row[3])
            else:
                by_pack.setdefault(row[4], []).append(row)
        for pack_id, members in by_pack.items():
            for row, data in zip(members, self.packs.read(pack_id, [(r[5], r[6]) for r in members]), strict=True):
                if len(data) == row[6]:
                    found[row[0]] = Chunk(row[0], row[1], row[2], data)
        return found

    def sweep_chunks(self, unused_since: datetime) -> int:
        """Delete chunks that no snapshot names and nobody used since; returns the bytes given back."""
        cutoff = self.time(unused_since)
        before = sum(self.packs.sizes().values())
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

        self.transact(work)
        for pack_id in gone:  # after the commit: a row never points to a file that is gone
            self.packs.delete(pack_id)
        self._lay_spare()
        return freed_inline + max(0, before - sum(self.packs.sizes().values()))

    def _compact(self, cursor: sqlite3.Cursor, touched: set[str]) -> list[str]:
        """Move what is left of mostly dead packs to new ones; returns the packs that nothing names any more."""
        kept: dict[str, int] = dict(
            cursor.execute("SELECT pack_id, sum(stored_bytes) FROM chunks WHERE pack_id IS NOT NULL GROUP BY pack_id")
        )
        empty = []
        for pack_id, size in self.packs.sizes().items():
            if pack_id not in kept:
                if pack_id in touched or self.packs.is_orphan(pack_id):
                    empty.append(pack_id)
            elif kept[pack_id] * 2 < size:
                members = cursor.execute(
                    "SELECT team_id, digest, pack_offset, stored_bytes FROM chunks WHERE pack_id = ?", (pack_id,)
                ).fetchall()
                fresh, offsets = self.packs.write(self.packs.read(pack_id, [(m[2], m[3]) for m in members]))
                cursor.executemany(
                    "UPDATE chunks SET pack_id = ?, pack_offset = ? WHERE team_id = ? AND digest = ?",
                    [(fresh, o, m[0], m[1]) for m, o in zip(members, offsets, strict=True)],
                )
                empty.append(pack_id)
        return empty

    # -- faults ----------------------------------------------------------------------------------------------------

    def _readonly(self) -> str:
        return f"The store at {self.location} cannot be written: its folder or file is read-only for this user. {_ELSEWHERE}"

    def explain(self, error: BaseException) -> WfloError | None:
        """What went wrong, in words that say what to do."""
        if isinstance(error, sqlite3.Error):
            return StoreUnavailableError(self._words(getattr(error, "sqlite_errorcode", 0) & 0xFF, str(error)))
        if isinstance(error, FileNotFoundError) and str(error.filename).endswith(".pack"):
            return ChunkCorruptedError(f"The file {error.filename} with bytes of snapshots is missing beside the store {self.location}.")
        if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
            return StoreUnavailableError(self._readonly())
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return StoreUnavailableError(self._words(_FULL if full else _CANTOPEN, error.strerror or str(error)))
        return None

    def _words(self, code: int, said: str) -> str:
        match code:
            case _ if code == _NOTADB:
                return f"{self.location} is not a wflo_nb store: the file is not an SQLite database. Nothing was changed. {_ELSEWHERE}"
            case _ if code == _FULL:
                return (
                    f"The disk that holds the store {self.location} is full. Everything recorded before is safe. Free some space, or choose "
                    "another place with WFLO_STATE_DIR or `%wflo connect PATH`."
                )
            case _ if code == _READONLY:
                return self._readonly()
            case _ if code in (_BUSY, _LOCKED):
                return (
                    f"The store at {self.location} was locked by another program for {_BUSY_SECONDS:g} s. Close that program and try again."
                )
            case _ if code == _CORRUPT:
                return f"The store at {self.location} is damaged ({said}). Move the file away to start a new one; `sqlite3 FILE .recover` may save it."
        return f"The store at {self.location} cannot be used: {said}. {_ELSEWHERE}"

    # -- types -----------------------------------------------------------------------------------------------------

    def time(self, moment: datetime) -> int:
        """Integer microseconds since 1970."""
        return (rows.utc(moment) - _EPOCH) // _MICROSECOND

    def moment(self, value: int) -> datetime:
        """A UTC time."""
        return _EPOCH + timedelta(microseconds=value)

    def names(self, ids: Sequence[str]) -> str:
        """A JSON array."""
        return json.dumps(list(ids))

    def ids(self, value: str) -> list[str]:
        """The list of a JSON array."""
        return list(json.loads(value))

    def document(self, value: str) -> Any:
        """The value of a JSON text."""
        return json.loads(value)


def _version(db: sqlite3.Connection) -> str | None:
    try:
        row = db.execute(migrations.SELECT_VERSION).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    return None if row is None else str(row[0])


# -- forks -------------------------------------------------------------------------------------------------------------
# SQLite remembers per process which locks it holds. A child that inherits this memory, but not the locks, would believe
# itself protected; so connections are closed before a fork, and both sides open new ones when they need them.

_stores: weakref.WeakSet[SQLite] = weakref.WeakSet()
_forking = threading.Lock()
_frozen: list[SQLite] = []
_FORK_PATIENCE = 1.0


def _before_fork() -> None:
    _forking.acquire()
    deadline = time.monotonic() + _FORK_PATIENCE
    for store in list(_stores):
        while not store.freeze() and time.monotonic() < deadline:
            store.thaw()
            time.sleep(0.001)
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
