"""What is particular to PostgreSQL: a reserve and a finish in one statement each, set-up, chunks, types.

Rules of this file:

* Every write is one statement, or a short transaction that may be run again. No session state, no prepared statements, no
  session locks: a pooler in transaction mode may give each statement another server session.
* Budget rows are always locked root first. A statement that locked them in another order would meet a reserve in a deadlock.
* A lost connection, a restart, a deadlock or a serialisation failure is answered by asking again with the same call id
  (`wflo_nb.store.postgres_connections`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from wflo_nb.errors import MissingDependencyError, WfloError
from wflo_nb.model import BudgetState, moment
from wflo_nb.store import migrations, postgres_faults, rows
from wflo_nb.store.faults import Translated, unwrapped
from wflo_nb.store.patience import LONG_SILENCE
from wflo_nb.store.places import shown
from wflo_nb.store.postgres_connections import ATTEMPTS, Connections
from wflo_nb.store.records import Chunk, Shortfall

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection, Engine

    from wflo_nb.store.purse import Purse

T = TypeVar("T")

_SETUP_LOCK = 7210_1901
_COLLISION = frozenset({"23505"})
#: Seconds after which the server undoes a transaction whose process says nothing more (Ctrl-Z, a debugger): others wait for its rows.
#: Well below their `SILENCE`.
_STOPPED = 10.0

_LOCK_CHAIN = (
    "SELECT b.id, b.cap_nano, b.spent_nano, b.held_nano FROM budgets b{source} WHERE b.team_id = :team_id AND b.id = ANY({chain})"
    " ORDER BY array_position({chain}, b.id) FOR UPDATE OF b"
)

_CALL_VALUES = ", ".join("g.amount" if c == "reserved_nano" else f":{c}" for c in rows.CALL_COLUMNS)
_RESERVE = f"""
WITH l AS ({_LOCK_CHAIN.format(source="", chain="CAST(:chain AS text[])")}),
     f AS (SELECT count(*) = cardinality(CAST(:chain AS text[])) AS complete, count(l.cap_nano) > 0 AS capped,
                  greatest(0, min(l.cap_nano - l.spent_nano - l.held_nano)) AS room FROM l),
     g AS (SELECT CASE WHEN f.capped THEN least(CAST(:hi AS bigint), greatest(CAST(:lo AS bigint), f.room / CAST(:share AS bigint)))
                       ELSE CAST(:hi AS bigint) END AS amount, f.* FROM f),
     u AS (UPDATE budgets b SET held_nano = b.held_nano + g.amount, updated_at = :created_at FROM l, g
           WHERE b.team_id = :team_id AND b.id = l.id AND g.complete AND (NOT g.capped OR g.amount <= g.room) RETURNING 1)
INSERT INTO llm_calls ({", ".join(rows.CALL_COLUMNS)})
SELECT {_CALL_VALUES} FROM g WHERE g.complete AND (SELECT count(*) FROM u) = cardinality(CAST(:chain AS text[]))
RETURNING reserved_nano"""
_TRACK = rows.INSERT_CALL + " ON CONFLICT (team_id, id) DO NOTHING RETURNING reserved_nano"

# A call may be quicker than its execution. Were both entered at the same moment, neither would see the other, and what the call cost
# would be missing in the execution's sum: so a call whose execution is not there is left alone, until it is its turn (`early`).
_TAKE_TURNS = (
    "SELECT pg_advisory_xact_lock(hashtextextended(CAST(:team_id AS text) || '/' || id, 0)) FROM unnest(CAST(:ids AS text[])) AS id"
    " ORDER BY id"
)
_EXECUTION_THERE = "EXISTS (SELECT 1 FROM workflow_executions WHERE team_id = :team_id AND id = :execution_id)"
_DUE = f"(CAST(:early AS boolean) OR {_EXECUTION_THERE})"

# The parts of a finish, in the order in which their rows are locked: the call, its budgets root first, its execution. Each part
# reads the one before it, which is what keeps that order. `was` is empty when there is nothing (more) to change.
_CREDIT = """
     u AS (UPDATE budgets b SET held_nano = b.held_nano - d.held, spent_nano = b.spent_nano + d.spent,
                  unconfirmed_nano = b.unconfirmed_nano + d.doubt, updated_at = :settled_at
           FROM d, l WHERE b.team_id = :team_id AND b.id = l.id RETURNING 1),
     e AS (UPDATE workflow_executions x SET cost_nano = x.cost_nano + d.spent, updated_at = :settled_at
           FROM d, (SELECT count(*) AS n FROM u) AS after_budgets
           WHERE d.spent <> 0 AND after_budgets.n >= 0 AND x.team_id = :team_id AND x.id = d.execution_id RETURNING 1)"""
_FINISH = f"""
WITH was AS (SELECT state, reserved_nano, cost_nano, chain, execution_id FROM llm_calls
             WHERE team_id = :team_id AND id = :id AND state IN ('RESERVED', 'UNCONFIRMED') AND state <> :state AND {_DUE} FOR UPDATE),
     c AS (SELECT was.*, CASE CAST(:state AS text)
                  WHEN 'SETTLED' THEN CAST(:cost_nano AS bigint)
                  WHEN 'UNCONFIRMED' THEN CASE WHEN CAST(:cost_nano AS bigint) IS NULL AND was.reserved_nano = 0 THEN NULL
                                               ELSE greatest(coalesce(CAST(:cost_nano AS bigint), 0), was.reserved_nano) END
                  ELSE 0 END AS final,
                  CASE WHEN was.state = 'UNCONFIRMED' THEN coalesce(was.cost_nano, 0) ELSE 0 END AS counted FROM was),
     d AS (SELECT c.execution_id, c.chain, c.final, coalesce(c.final, 0) - c.counted AS spent,
                  CASE WHEN c.state = 'RESERVED' THEN c.reserved_nano ELSE 0 END AS held,
                  CASE WHEN CAST(:state AS text) = 'UNCONFIRMED' THEN coalesce(c.final, 0) ELSE 0 END - c.counted AS doubt FROM c),
     m AS (UPDATE llm_calls t SET {rows.FINISH_SET}, cost_nano = d.final FROM d WHERE t.team_id = :team_id AND t.id = :id RETURNING 1),
     l AS ({_LOCK_CHAIN.format(source=", d, (SELECT count(*) FROM m) AS after_call", chain="d.chain")}),{_CREDIT}
SELECT {_EXECUTION_THERE}, EXISTS (SELECT 1 FROM llm_calls WHERE team_id = :team_id AND id = :id)"""
_RECORD = f"""
WITH m AS (INSERT INTO llm_calls ({", ".join(rows.CALL_COLUMNS)}) SELECT {", ".join(f":{c}" for c in rows.CALL_COLUMNS)} WHERE {_DUE}
           ON CONFLICT (team_id, id) DO NOTHING
           RETURNING execution_id, chain, coalesce(cost_nano, 0) AS spent, state),
     d AS (SELECT m.*, 0 AS held, CASE WHEN m.state = 'UNCONFIRMED' THEN m.spent ELSE 0 END AS doubt FROM m),
     l AS ({_LOCK_CHAIN.format(source=", d", chain="d.chain")}),{_CREDIT}
SELECT {_EXECUTION_THERE}"""

_PUT_CHUNK = (
    "INSERT INTO chunks (team_id, digest, raw_bytes, stored_bytes, codec, data, last_used_at)"
    " VALUES (%s, %b, %s, %s, %s, %b, %s) ON CONFLICT (team_id, digest) DO UPDATE SET last_used_at = excluded.last_used_at"
)


@functools.cache
def _native(sql: str) -> str:
    """SQL with ``:name`` parameters as the driver wants it."""
    return re.sub(r"(?<!:):([a-z_]\w*)", r"%(\1)s", sql.replace("%", "%%"))


def _not_for_ever() -> str:
    """Says so of a transaction, and not of a session, which a pooler does not give."""
    return f"SET LOCAL idle_in_transaction_session_timeout = {int(_STOPPED * 1000)}"


@contextlib.contextmanager
def _transaction(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """As the driver's own, but begun with a limit in the same message."""
    try:
        connection.execute(f"BEGIN; {_not_for_ever()}")
        yield
        connection.commit()
    except BaseException:
        with contextlib.suppress(Exception):  # it may be closed; what is left of a transaction ends with its connection
            connection.rollback()
        raise


class _Cursor:
    """A driver's cursor that understands ``:name`` parameters."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor
        self.fetchone = cursor.fetchone
        self.fetchall = cursor.fetchall

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    def execute(self, sql: str, params: Any = None, /) -> _Cursor:
        self._cursor.execute(_native(sql), params)
        return self


class Postgres:
    """A database on a PostgreSQL server. Thread-safe."""

    local = False
    purse: Purse | None = None

    def __init__(self, url: str, team: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise MissingDependencyError("psycopg", "postgres") from None
        self._psycopg = psycopg
        self._url = self.address = url
        self.team = team
        self.location = shown(url)
        self._faults = Translated(self)
        self._connections = Connections(url, self.location)
        self._sqlalchemy: Engine | None = None
        _stores.add(self)

    def _retrying(self, work: Callable[[psycopg.Connection[Any]], T], also: frozenset[str] = frozenset()) -> T:
        with self._faults:
            return self._connections.retrying(work, also)

    def retire(self) -> None:
        """Keep no connection open between uses: another store took this one's place, late answers may still come."""
        self._connections.retire()

    def close(self) -> None:
        """Close every idle connection; one that is in use closes when it is given back."""
        self._connections.close()

    def forget(self) -> None:
        """After a fork, in the child: the connections are the parent's."""
        self._connections.forget()
        self._sqlalchemy = None

    # -- set-up ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Connect and make the tables ready."""

        def version(connection: psycopg.Connection[Any]) -> str | None:
            try:
                row = connection.execute(migrations.SELECT_VERSION).fetchone()
            except self._psycopg.errors.UndefinedTable:
                return None
            return None if row is None else str(row[0])

        if migrations.is_current(self._retrying(version), self.location):
            return
        with self._faults, unwrapped(), self._engine().begin() as connection:
            # Of the transaction, not of the session: behind a pooler a session lock is given to several clients.
            connection.exec_driver_sql(_not_for_ever())
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SETUP_LOCK})")
            migrations.migrate(connection, self.location)

    def _engine(self) -> Engine:
        if self._sqlalchemy is None:
            import sqlalchemy as sa

            def connect() -> Any:
                connection: Any = self._connections.connect()
                connection.autocommit = False
                connection.silence = LONG_SILENCE
                return connection

            self._sqlalchemy = sa.create_engine("postgresql+psycopg://", creator=connect, poolclass=sa.NullPool)
        return self._sqlalchemy

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """SQLAlchemy's view of the database, for reports."""
        with self._faults:
            self._connections.check_open()
            with unwrapped(), self._engine().connect() as connection:
                yield connection

    # -- statements ------------------------------------------------------------------------------------------------

    def select(self, sql: str, params: rows.Params) -> list[rows.Row]:
        """Rows of a query."""
        return self._retrying(lambda c: c.execute(_native(sql), params).fetchall())

    def once(self, sql: str, params: rows.Params) -> list[rows.Row] | None:
        """Rows of a statement that inserts an id of its own, or gives none and changes nothing; None, and nothing changed, if an attempt
        whose answer was lost may have inserted that id, or may still do so.
        """
        attempts = itertools.count(1)

        def attempt(connection: psycopg.Connection[Any]) -> list[rows.Row] | None:
            alone = next(attempts) == 1
            try:
                found = connection.execute(_native(sql), params).fetchall()
            except self._psycopg.errors.UniqueViolation:
                return None
            return found if found or alone else None  # what the statement looked for may have been taken by the one before it

        return self._retrying(attempt)

    def transact(self, work: Callable[[Any], T], *, must_land: bool = True, durable: bool = True) -> T:  # noqa: ARG002 - a local disk's
        """Run `work` with a cursor as one transaction; run again when the transaction was undone by the server or the connection lost."""

        def run(connection: psycopg.Connection[Any]) -> T:
            with _transaction(connection), connection.cursor() as cursor:
                return work(_Cursor(cursor))

        # A collision: another writer took the same version number between our look and our insert.
        return self._retrying(run, also=_COLLISION)

    def reserve(self, call: rows.Params, chain: Sequence[str], lo: int, hi: int, share: int) -> int | Shortfall:
        """See `Store.reserve`."""
        held = {"team_id": self.team, "id": call["id"]}
        params = {**call, "lo": lo, "hi": hi, "share": max(1, share), "reserved_nano": hi}
        statement: Any = _native(_RESERVE if chain else _TRACK)

        def attempt(connection: psycopg.Connection[Any]) -> int | None:
            try:
                row = connection.execute(statement, params).fetchone()
            except self._psycopg.errors.UniqueViolation:
                row = None  # held already, by an attempt whose answer was lost: the whole statement was undone
            # When the budget is full a repeat is refused before it meets its own row: look for it before refusing.
            known = row or connection.execute(_native(_HELD), held).fetchone()
            return None if known is None else int(known[0])

        for _ in range(ATTEMPTS):
            amount = self._retrying(attempt)
            if amount is not None:
                return amount
            found = {r[0]: BudgetState(*r) for r in self.select(_LEVELS, {"team_id": self.team, "chain": list(chain)})}
            if len(found) != len(chain):
                raise rows.missing_budget([b for b in chain if b not in found])
            verdict = rows.grant([found[b] for b in chain], lo, hi, share)
            if isinstance(verdict, Shortfall):
                return verdict
            # Room was made between the refusal and our look at it: ask again.
        tightest = min((b for b in found.values() if b.cap_nano is not None), key=lambda b: b.left_nano or 0)
        return Shortfall(tightest, lo)

    def catch_up(self) -> None:
        """Nothing to wait for: what others did is here."""

    def finish(self, call: rows.Params, cost: Callable[[int], int | None]) -> bool:  # noqa: ARG002 - the statement says it in SQL
        """See `Store.finish`; False if there is no such call."""
        return bool(self._in_turn(_FINISH, call)[1])

    def record(self, call: rows.Params, chain: Sequence[str]) -> None:  # noqa: ARG002 - it is in the row
        """See `Store.record`."""
        self._in_turn(_RECORD, call)

    def _in_turn(self, sql: str, call: rows.Params) -> rows.Row:
        """Say how a call ended, in its turn if its execution is not there: that is what the statement tells first."""
        found = self.select(sql, {**call, "early": False})[0]
        if found[0]:
            return found

        def work(cursor: Any) -> rows.Row:
            self.take_turns(cursor, [call["execution_id"]])
            row: rows.Row = cursor.execute(sql, {**call, "early": True}).fetchone()
            return row

        return self.transact(work)

    def take_turns(self, cursor: Any, executions: Sequence[str]) -> None:
        """See `Database`."""
        cursor.execute(_TAKE_TURNS, {"team_id": self.team, "ids": list(executions)})

    # -- bytes -----------------------------------------------------------------------------------------------------

    def put_chunks(self, chunks: Sequence[Chunk], at: datetime) -> None:
        """Keep chunks that are not kept yet; durable on return."""
        # In one order for all: two writers of the same chunks would otherwise wait for each other.
        values = [(self.team, c.digest, c.raw_bytes, len(c.data), c.codec, c.data, at) for c in sorted(chunks, key=lambda c: c.digest)]

        def run(connection: psycopg.Connection[Any]) -> None:
            with _transaction(connection), connection.cursor() as cursor:
                cursor.executemany(_PUT_CHUNK, values)

        self._retrying(run)

    def get_chunks(self, digests: Sequence[bytes]) -> dict[bytes, Chunk]:
        """The chunks that are kept, of those asked for."""

        def run(connection: psycopg.Connection[Any]) -> dict[bytes, Chunk]:
            found: dict[bytes, Chunk] = {}
            with connection.cursor(binary=True) as cursor:
                for start in range(0, len(digests), 32):  # chunks are megabytes: a few at a time
                    part = list(digests[start : start + 32])
                    cursor.execute(
                        "SELECT digest, raw_bytes, codec, data FROM chunks WHERE team_id = %s AND digest = ANY(%s)", (self.team, part)
                    )
                    found.update({bytes(r[0]): Chunk(bytes(r[0]), r[1], r[2], bytes(r[3])) for r in cursor})
            return found

        return self._retrying(run)

    def sweep_chunks(self, unused_since: datetime) -> int:
        """Delete chunks of the team that no snapshot names and nobody used since; returns the bytes given back.

        In two steps, because snapshots are written meanwhile: chunks that look dead are marked, then the living are counted again. A
        snapshot that needs a chunk either was there for the second count, or has taken away the mark.
        """
        team = self.team

        def living(connection: psycopg.Connection[Any]) -> set[bytes]:
            joined = connection.execute("SELECT digests FROM state_snapshots WHERE team_id = %s", (team,))
            return {d for (row,) in joined for d in rows.split_digests(bytes(row))}

        def run(connection: Any) -> int:
            connection.silence = LONG_SILENCE
            try:
                return swept(connection)
            finally:
                del connection.silence  # of this one

        def swept(connection: psycopg.Connection[Any]) -> int:
            live = living(connection)
            old = connection.execute("SELECT digest FROM chunks WHERE team_id = %s AND last_used_at < %s", (team, unused_since)).fetchall()
            dead = {bytes(d) for (d,) in old} - live
            ours = "WHERE team_id = %s AND digest = ANY(%s)"
            connection.execute(f"UPDATE chunks SET last_used_at = 'epoch' {ours} AND last_used_at < %s", (team, list(dead), unused_since))
            live = living(connection)
            connection.execute(f"UPDATE chunks SET last_used_at = now() {ours}", (team, list(dead & live)))
            row = connection.execute(
                f"WITH gone AS (DELETE FROM chunks {ours} AND last_used_at = 'epoch' RETURNING stored_bytes)"
                " SELECT coalesce(sum(stored_bytes), 0)::bigint FROM gone",
                (team, list(dead - live)),
            ).fetchone()
            return int(row[0]) if row else 0

        return self._retrying(run)

    def explain(self, error: BaseException) -> WfloError | None:
        """What went wrong, in words that say what to do and hold no password."""
        return postgres_faults.explain(error, self.location, self._url)

    # -- types -----------------------------------------------------------------------------------------------------

    def time(self, moment: datetime) -> datetime:
        """A time with its zone."""
        return rows.utc(moment)

    def clock(self, us: int) -> datetime:
        """A time with its zone."""
        return moment(us)

    def moment(self, value: datetime) -> datetime:
        """A UTC time; the driver gives it in the zone of the session."""
        return value.astimezone(UTC)

    def names(self, ids: Sequence[str]) -> list[str]:
        """An array."""
        return list(ids)

    def ids(self, value: list[str]) -> list[str]:
        """A list."""
        return list(value)

    def document(self, value: Any) -> Any:
        """JSON, parsed by the driver."""
        return value


_HELD = "SELECT reserved_nano FROM llm_calls WHERE team_id = :team_id AND id = :id"
_LEVELS = (
    "SELECT id, scope, cap_nano, spent_nano, held_nano, unconfirmed_nano, parent_id FROM budgets"
    " WHERE team_id = :team_id AND id = ANY(:chain)"
)

_stores: weakref.WeakSet[Postgres] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
