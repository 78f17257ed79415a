"""What a store works with: the few things that SQLite and PostgreSQL do each in their own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from wflo_nb.store import rows
from wflo_nb.store.records import Chunk, Shortfall

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from wflo_nb.store.purse import Purse

T = TypeVar("T")


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
    purse: Purse | None

    def prepare(self) -> None:
        """Connect, check the schema version, create or migrate the tables under a lock."""

    def reading(self) -> AbstractContextManager[Connection]:
        """SQLAlchemy's view, for reports."""

    def catch_up(self) -> None:
        """Wait a moment for what other processes know and have not entered yet."""

    def select(self, sql: str, params: rows.Params) -> list[rows.Row]:
        """Rows of a query with named parameters."""

    def transact(self, work: Callable[[Any], T], *, must_land: bool = True, durable: bool = True) -> T:
        """Run `work` with a `Cursor` as one transaction; it may be run again after a fault that undid it. One that is not `durable` may be
        on the disk only with the next one that is.
        """

    def take_turns(self, cursor: Any, executions: Sequence[str]) -> None:
        """In a transaction: wait until nobody else enters one of these executions, or a call that came before it."""

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


class Over:
    """Something kept in a `Database`, for one team."""

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

    def _write(self, sql: str, params: Mapping[str, Any], *, durable: bool = True) -> int:
        def work(cursor: Cursor) -> int:
            cursor.execute(sql, params)
            return cursor.rowcount

        return self._db.transact(work, durable=durable)
