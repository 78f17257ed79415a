"""The store: what every room asks for, in terms of the model. The database below is SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from wflo_nb.errors import CheckpointNotFoundError, ChunkCorruptedError, ExecutionNotFoundError, StoreError
from wflo_nb.model import MAX_NANO, BudgetState, Call, CallState, Execution, ExecutionStatus, now
from wflo_nb.store import looking, rows
from wflo_nb.store.looking import Entry, Lease, Ran
from wflo_nb.store.records import Chunk, Columns, Elsewhere, Shortfall, SnapshotRow

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")

_KILLED = "the process that made this call ended before its answer was recorded; the whole hold counts as spent"
_KILLED_EXECUTION = {"type": "ProcessEnded", "message": "The process ended (killed, crashed or restarted) before this execution did."}


class Cursor(Protocol):
    """What a transaction works with."""

    @property
    def rowcount(self) -> int:
        """Rows changed by the last statement."""
        ...

    def execute(self, sql: str, params: Any = ..., /) -> Any:
        """Run one statement with named parameters; returns a cursor to fetch from."""
        ...

    def fetchone(self) -> Any:
        """The next row, None at the end."""
        ...

    def fetchall(self) -> list[Any]:
        """All remaining rows."""
        ...


class Database(rows.Codec, Protocol):
    """The few things that the two databases do each in their own way. All are thread-safe, durable on return (a hold excepted) and
    repeatable, and raise this package's errors only.
    """

    location: str
    address: str
    local: bool
    team: str

    def prepare(self) -> None:
        """Connect, check the schema version, create or migrate the tables under a lock."""

    def reading(self) -> AbstractContextManager[Connection]:
        """SQLAlchemy's view, for reports."""

    def select(self, sql: str, params: rows.Params) -> list[rows.Row]:
        """Rows of a query with named parameters."""

    def transact(self, work: Callable[[Any], T], *, must_land: bool = True) -> T:
        """Run `work` with a `Cursor` as one transaction; it may be run again after a fault that undid it."""

    def reserve(self, call: rows.Params, chain: Sequence[str], lo: int, hi: int, share: int) -> int | Shortfall:
        """See `Store.reserve`."""

    def finish(self, call: rows.Params, cost: Callable[[int], int | None]) -> bool:
        """See `Store.finish`; `cost` says from the hold what the call adds. False if there is no such call."""

    def record(self, call: rows.Params, chain: Sequence[str]) -> None:
        """See `Store.record`."""

    def put_chunks(self, chunks: Sequence[Chunk], at: datetime) -> None:
        """Keep chunks that are not kept yet."""

    def get_chunks(self, digests: Sequence[bytes]) -> dict[bytes, Chunk]:
        """The chunks that are kept, of those asked for."""

    def sweep_chunks(self, unused_since: datetime) -> int:
        """Delete chunks that no snapshot names and nobody used since; returns the bytes given back."""

    def retire(self) -> None:
        """Keep no connection open between uses."""

    def close(self) -> None:
        """Close connections; may be called again."""


class Store:
    """A ledger of executions, calls and budgets, and a shelf of snapshots, in one place.

    * Thread-safe and synchronous. After a fork both processes may go on using it.
    * Every write carries the id of what it writes and may be repeated: the second time changes nothing.
    * What a method has written is on the disk when it returns. The one exception is a hold on SQLite (`reserve`): a power cut may
      forget the last holds, never a killed process.
    * Money is integer nano-USD. At every instant ``spent + held <= cap`` holds for every budget, unless a price bound was wrong:
      recording what was spent never asks the cap.
    * Errors are `StoreError` and its kin; a fault of the database is `StoreUnavailableError`.

    Attributes:
        location: where it is, as shown to users; never a password.
        team: the ``team_id`` of everything this store reads and writes.
        local: True for a file on this machine, False for a server that may be slow to answer.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self.location = database.location
        self.team = database.team
        self.local = database.local

    def __repr__(self) -> str:
        return f"<Store {self.location}>"

    @property
    def address(self) -> str:
        """What `open_store` opens it with. It may hold a password: never shown, logged, or put where others can read it."""
        return self._db.address

    def close(self) -> None:
        """Close its connections. May be called again; any other use afterwards is a `StoreUnavailableError`."""
        self._db.close()

    def retire(self) -> None:
        """Another store took this one's place: keep nothing open, but still take late answers of calls that are under way."""
        self._db.retire()

    def _key(self, **more: Any) -> dict[str, Any]:
        return {"team_id": self.team, **more}

    def _one(self, sql: str, **params: Any) -> rows.Row | None:
        found = self._db.select(sql, self._key(**params))
        return found[0] if found else None

    def _write(self, sql: str, params: Mapping[str, Any]) -> int:
        def work(cursor: Cursor) -> int:
            cursor.execute(sql, params)
            return cursor.rowcount

        return self._db.transact(work)

    # -- executions ------------------------------------------------------------------------------------------------

    def begin_execution(self, e: Execution, *, holder: str) -> None:
        """Enter an execution; `holder` is the process that runs it (see `wflo_nb.store.holder`)."""
        self._write(rows.INSERT_EXECUTION, rows.execution_params(e, self.team, holder, self._db))

    def end_execution(
        self, id: str, status: ExecutionStatus, *, outputs: Any = None, error: dict[str, Any] | None = None, at: datetime | None = None
    ) -> None:
        """Say how an execution ended. Its cost is not touched: calls keep it.

        Raises:
            ExecutionNotFoundError: it was never entered.
        """
        params = self._key(
            id=id, status=status.value, outputs=rows.to_json(outputs), error=rows.to_json(error), updated_at=self._db.time(at or now())
        )
        if self._write(rows.END_EXECUTION, params) == 0:
            raise self._no_execution(id)

    def execution(self, id: str) -> Execution:
        """One execution, with its cost so far.

        Raises:
            ExecutionNotFoundError: there is none with this id.
        """
        row = self._one(rows.SELECT_EXECUTION, id=id)
        if row is None:
            raise self._no_execution(id)
        return rows.execution_from(row, self._db)

    def _no_execution(self, id: str) -> ExecutionNotFoundError:
        return ExecutionNotFoundError(f"No execution {id} is in the store {self.location}. `%wflo report` lists those that are.")

    # -- budgets ---------------------------------------------------------------------------------------------------

    def open_budget(self, b: BudgetState) -> BudgetState:
        """Create a budget if there is none with this id, and return what the store holds. An existing one keeps its cap and its sums."""
        params = self._key(**rows.budget_params(b), updated_at=self._db.time(now()))

        def work(cursor: Cursor) -> BudgetState:
            cursor.execute(rows.OPEN_BUDGET, params)
            return rows.budget_from(cursor.execute(rows.SELECT_BUDGET, {"team_id": self.team, "id": b.id}).fetchone())

        return self._db.transact(work)

    def set_cap(self, id: str, cap_nano: int | None) -> BudgetState:
        """Raise, lower or (None) take away a cap. A cap below what is spent stops new calls and changes no sum.

        Raises:
            StoreError: there is no such budget.
        """

        def work(cursor: Cursor) -> rows.Row | None:
            cursor.execute(rows.SET_CAP, self._key(id=id, cap_nano=cap_nano, updated_at=self._db.time(now())))
            found: rows.Row | None = cursor.execute(rows.SELECT_BUDGET, self._key(id=id)).fetchone()
            return found

        row = self._db.transact(work)
        if row is None:
            raise rows.missing_budget([id])
        return rows.budget_from(row)

    def budget(self, id: str) -> BudgetState:
        """A budget at this moment.

        Raises:
            StoreError: there is no such budget.
        """
        row = self._one(rows.SELECT_BUDGET, id=id)
        if row is None:
            raise rows.missing_budget([id])
        return rows.budget_from(row)

    # -- the ledger ------------------------------------------------------------------------------------------------

    def reserve(self, call: Call, chain: Sequence[str], *, lo_nano: int, hi_nano: int, share: int = 1) -> int | Shortfall:
        """Hold money for a call that is about to be sent, in one atomic step over a whole chain of budgets.

        What is left is the least that any budget of the chain has left. The hold is a `share`-th of it, at least `lo_nano` and at
        most `hi_nano`. The same call asked again gets the same answer and is held once.

        Args:
            call: entered as RESERVED, whatever its state says.
            chain: ids of budgets, root first; empty for a call that is only tracked.
            lo_nano: the least that makes sense (the input alone, or the caller's own output cap).
            hi_nano: the most the call can cost.
            share: how many calls want a part of what is left.

        Returns:
            The nano-USD that are now held on every level, or a `Shortfall` with nothing held.

        Raises:
            StoreError: a budget of the chain was never opened.
        """
        ids = list(dict.fromkeys(chain))
        params = rows.call_params(call, self.team, ids, self._db)
        params["state"] = CallState.RESERVED.value
        params["cost_nano"] = None
        params["settled_at"] = None
        return self._db.reserve(params, ids, min(lo_nano, MAX_NANO), min(hi_nano, MAX_NANO), share)

    def finish(self, call: Call, chain: Sequence[str] | None = None) -> None:
        """Record how a call ended; durable on return.

        A RESERVED call becomes SETTLED (its cost is spent), RELEASED (nothing is) or UNCONFIRMED (the whole hold is); an UNCONFIRMED
        one may still be corrected to SETTLED or RELEASED. Anything else changes nothing. The cap is never asked. The budgets are
        those the hold was made in. A call that the store does not know is recorded as `record` does: no paid answer is lost.

        Raises:
            StoreError: the call's state is RESERVED.
        """
        if not self.correct(call):
            self.record(call, chain)

    def correct(self, call: Call) -> bool:
        """`finish`, for a call that the store knows; False, and nothing done, if it does not."""
        rows.cost_of(call, 0)
        params = rows.call_params(call, self.team, None, self._db)
        if params["settled_at"] is None:
            params["settled_at"] = self._db.time(now())
        return self._db.finish(params, lambda reserved: rows.cost_of(call, reserved))

    def record(self, call: Call, chain: Sequence[str] | None = None) -> None:
        """Enter a call that is over and never held money (refused, or seen only afterwards). What it cost is added to its execution
        and to the budgets of `chain` (by default: `call.budget_id` and its ancestors).
        """
        cost = rows.cost_of(call, call.reserved_nano)
        if chain is None:
            chain = self._ancestors(call.budget_id) if cost and call.budget_id else ()
        params = rows.call_params(call, self.team, chain, self._db)
        params["cost_nano"] = cost
        if params["settled_at"] is None:
            params["settled_at"] = self._db.time(now())
        self._db.record(params, list(chain))

    def _ancestors(self, budget: str) -> list[str]:
        return [str(r[0]) for r in self._db.select(rows.ANCESTORS, self._key(id=budget))]

    def elsewhere(self, execution_id: str, *, since: datetime, holder: str) -> Elsewhere:
        """What processes other than `holder` did for an execution (begun at `since`) and for those inside it."""
        key = self._key(id=execution_id, since=self._db.time(since), holder=holder)
        found = {str(r[0]): [int(n) for n in r[1:]] for r in self._db.select(rows.ELSEWHERE, key)}
        nothing = [0] * 6
        settled, unsure = found.get("SETTLED", nothing), found.get("UNCONFIRMED", nothing)
        flying, refused = found.get("RESERVED", nothing), found.get("REFUSED", nothing)
        reasons = self._db.select(rows.REFUSED_ELSEWHERE, key) if refused[0] else []
        short = (str(r[0]) for r in reasons if r[1] and self._db.document(r[1]).get("error") == "BudgetExceededError")
        return Elsewhere(
            calls=settled[0] + unsure[0],
            in_flight=flying[0],
            refused=refused[0],
            unpriced=settled[0] - settled[1] + unsure[0] - unsure[1],
            spent_nano=settled[2] + unsure[2],
            held_nano=flying[3],
            unconfirmed_nano=unsure[2],
            input_tokens=settled[4] + unsure[4],
            output_tokens=settled[5] + unsure[5],
            short_of_money=next(short, None),
        )

    def sweep(self, holder_is_dead: Callable[[str], bool]) -> int:
        """Settle the affairs of processes that are no more; returns how many holds were found.

        A hold becomes UNCONFIRMED: nobody knows whether its call was answered, so it counts as spent. Running executions become FAILED.
        """
        swept = 0
        for (holder,) in self._db.select(rows.HOLDERS, self._key()):
            if not holder_is_dead(holder):
                continue
            open_calls = f"{rows.SELECT_CALL} AND state = 'RESERVED' AND holder = :holder"
            for row in self._db.select(open_calls, self._key(holder=holder)):
                call, _ = rows.call_from(row, self._db)
                self.finish(replace(call, state=CallState.UNCONFIRMED, reason=_KILLED, settled_at=now()))
                swept += 1
            self._write(
                rows.ABANDON_EXECUTIONS,
                self._key(holder=holder, error=rows.to_json(_KILLED_EXECUTION), updated_at=self._db.time(now())),
            )
        return swept

    # -- snapshots: bytes only, the snapshot room gives them meaning --------------------------------------------------

    def missing_chunks(self, digests: Sequence[bytes]) -> set[bytes]:
        """Which of these chunks are not kept yet."""
        missing = set(digests)
        for part in _parts(list(missing)):
            marks, params = _listed(part)
            missing -= {
                bytes(r[0])
                for r in self._db.select(f"SELECT digest FROM chunks WHERE team_id = :team_id AND digest IN ({marks})", self._key(**params))
            }
        return missing

    def put_chunks(self, chunks: Sequence[Chunk]) -> None:
        """Keep chunks; durable on return. One that is already kept is not written again."""
        wanted = {c.digest: c for c in chunks}
        if any(len(d) != 32 for d in wanted):
            raise StoreError("A chunk is named by the 32 bytes of its BLAKE3 digest.")
        fresh = self.missing_chunks(list(wanted))
        if fresh:
            self._db.put_chunks([c for d, c in wanted.items() if d in fresh], now())

    def get_chunks(self, digests: Sequence[bytes]) -> dict[bytes, Chunk]:
        """Chunks by digest. Whether their bytes are what they were is for the reader to check.

        Raises:
            ChunkCorruptedError: one of them is gone or cut short.
        """
        wanted = list(dict.fromkeys(digests))
        found = self._db.get_chunks(wanted)
        if lost := [d for d in wanted if d not in found]:
            raise ChunkCorruptedError(
                f"{len(lost)} of {len(wanted)} stored chunks are missing or cut short in {self.location} (first: {lost[0].hex()[:16]})."
            )
        return found

    def put_snapshot(self, s: SnapshotRow) -> SnapshotRow:
        """Keep a snapshot whose chunks are kept already; returns it with its version, which no two writers get alike.

        Raises:
            ChunkCorruptedError: a chunk it needs is not in the store (any more); put the chunks again.
        """
        params = rows.snapshot_params(s, self.team, self._db)
        needed = list(dict.fromkeys(s.digests))

        def work(cursor: Cursor) -> SnapshotRow:
            by_id = f"{rows.SELECT_SNAPSHOTS} AND id = :id"
            row = cursor.execute(by_id, self._key(id=s.id)).fetchone()
            if row is None:
                # Used now: a collection at the same time leaves them alone.
                kept = 0
                for part in _parts(needed):
                    marks, digests = _listed(part)
                    cursor.execute(
                        f"UPDATE chunks SET last_used_at = :at WHERE team_id = :team_id AND digest IN ({marks})",
                        self._key(at=self._db.time(now()), **digests),
                    )
                    kept += cursor.rowcount
                if kept < len(needed):
                    raise ChunkCorruptedError(
                        f"{len(needed) - kept} of {len(needed)} chunks of snapshot {s.id} are not in {self.location}."
                    )
                cursor.execute(rows.INSERT_SNAPSHOT, params)
                row = cursor.execute(by_id, self._key(id=s.id)).fetchone()
            return rows.snapshot_from(row, self._db)

        return self._db.transact(work, must_land=False)

    def snapshots(self, scope: str, limit: int = 100) -> list[SnapshotRow]:
        """The newest snapshots of a scope, newest first."""
        found = self._db.select(f"{rows.SELECT_SNAPSHOTS} AND scope = :scope{rows.NEWEST_FIRST}", self._key(scope=scope, most=limit))
        return [rows.snapshot_from(r, self._db) for r in found]

    def snapshot(self, scope: str, id: str) -> SnapshotRow:
        """One snapshot.

        Raises:
            CheckpointNotFoundError: the scope has none with this id.
        """
        row = self._one(f"{rows.SELECT_SNAPSHOTS} AND scope = :scope AND id = :id", scope=scope, id=id)
        if row is None:
            raise self._no_checkpoint(id)
        return rows.snapshot_from(row, self._db)

    def delete_snapshot(self, scope: str, id: str) -> None:
        """Forget a snapshot; its chunks go with the next `collect`.

        Raises:
            CheckpointNotFoundError: the scope has none with this id.
        """
        if self._write(rows.DELETE_SNAPSHOT, self._key(scope=scope, id=id)) == 0:
            raise self._no_checkpoint(id)

    def _no_checkpoint(self, id: str) -> CheckpointNotFoundError:
        return CheckpointNotFoundError(f"No checkpoint {id} is in the store {self.location}. `%wflo checkpoints` lists those that are.")

    def collect(self, grace: timedelta | float = 3600.0) -> int:
        """Delete chunks that no snapshot needs and nobody used during `grace` (seconds); returns the bytes given back."""
        return self._db.sweep_chunks(now() - (grace if isinstance(grace, timedelta) else timedelta(seconds=grace)))

    def stored_bytes(self, scope: str | None = None) -> int:
        """Bytes kept for the snapshots of a scope, chunks that they share counted once; None: for all chunks of the team."""
        if scope is None:
            return int(self._db.select("SELECT coalesce(sum(stored_bytes), 0) FROM chunks WHERE team_id = :team_id", self._key())[0][0])
        joined = self._db.select("SELECT digests FROM state_snapshots WHERE team_id = :team_id AND scope = :scope", self._key(scope=scope))
        total = 0
        for part in _parts(list({d for (row,) in joined for d in rows.split_digests(bytes(row))})):
            marks, params = _listed(part)
            sql = f"SELECT coalesce(sum(stored_bytes), 0) FROM chunks WHERE team_id = :team_id AND digest IN ({marks})"
            total += int(self._db.select(sql, self._key(**params))[0][0])
        return total

    # -- reading ---------------------------------------------------------------------------------------------------

    def calls(self, state: CallState, *, notebook: str | None = None, newest: int | None = None) -> list[Entry]:
        """The calls in one state as records, with the budgets they are charged to; see `wflo_nb.store.looking.calls`."""
        return looking.calls(self._db, state, notebook=notebook, newest=newest)

    def call(self, id: str) -> Entry | None:
        """One call, None if there is none with this id."""
        return looking.call(self._db, id)

    def budgets(self, ids: Sequence[str] | None = None, *, inside: str | None = None) -> list[BudgetState]:
        """These budgets, or one and all that lie in it, or all; see `wflo_nb.store.looking.budgets`."""
        return looking.budgets(self._db, ids, inside=inside)

    def runs(self, ids: Sequence[str]) -> dict[str, Ran]:
        """What these executions are called and whether they live."""
        return looking.runs(self._db, ids)

    def leases(self) -> list[Lease]:
        """The leases of all machines that hold or lost money."""
        return looking.leases(self._db)

    def read(self, table: str, *, where: Mapping[str, Any] | None = None) -> Columns:
        """A whole table as plain columns, oldest first; see `wflo_nb.store.reading.read`."""
        from wflo_nb.store import reading  # SQLAlchemy, at first use

        return reading.read(self._db, table, where)

    def aggregate(self, by: str) -> Columns:
        """Costs summed per group; see `wflo_nb.store.reading.aggregate`."""
        from wflo_nb.store import reading

        return reading.aggregate(self._db, by)


def _parts(digests: list[bytes]) -> list[list[bytes]]:
    """Few enough at a time for one statement on either database."""
    return [digests[i : i + 500] for i in range(0, len(digests), 500)]


def _listed(digests: list[bytes]) -> tuple[str, dict[str, bytes]]:
    names = [f"d{i}" for i in range(len(digests))]
    return ", ".join(f":{n}" for n in names), dict(zip(names, digests, strict=True))
