"""The tables, declared once for both databases.

`team_id` leads every key; ids are text made by clients; there are no sequences, triggers or foreign keys, so that the same
tables live on SQLite, PostgreSQL and its distributed relatives.

Importing this module imports SQLAlchemy (most of a second): only code that creates or reads tables does, at first use.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Moment(sa.TypeDecorator[datetime]):
    """A UTC time: ``timestamptz`` on PostgreSQL, integer microseconds since 1970 on SQLite, which has no time type."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """The column type per database."""
        return dialect.type_descriptor(sa.BigInteger() if dialect.name == "sqlite" else sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """A datetime on its way in."""
        if value is None or dialect.name != "sqlite":
            return value
        return (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """A datetime on its way out."""
        if value is None:
            return None
        return EPOCH + timedelta(microseconds=value) if dialect.name == "sqlite" else value.astimezone(UTC)


class Names(sa.TypeDecorator[list[str]]):
    """An ordered list of ids: ``text[]`` on PostgreSQL, a JSON array as text on SQLite."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """The column type per database."""
        return dialect.type_descriptor(sa.Text() if dialect.name == "sqlite" else pg.ARRAY(sa.Text()))

    def process_bind_param(self, value: list[str] | None, dialect: Dialect) -> Any:
        """A list on its way in."""
        return json.dumps(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> list[str] | None:
        """A list on its way out."""
        return None if value is None else list(json.loads(value) if dialect.name == "sqlite" else value)


class Json(sa.TypeDecorator[Any]):
    """A JSON document: ``jsonb`` on PostgreSQL, text on SQLite (whose JSON columns turn the document ``"1"`` into a number)."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """The column type per database."""
        return dialect.type_descriptor(sa.Text() if dialect.name == "sqlite" else pg.JSONB(none_as_null=True))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """A document on its way out."""
        return json.loads(value) if value is not None and dialect.name == "sqlite" else value


class Dollars(sa.TypeDecorator[Decimal]):
    """Exact USD for people and SQL: ``numeric(20, 9)`` on PostgreSQL, decimal text on SQLite, whose NUMERIC is a float."""

    impl = sa.Numeric(20, 9)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """The column type per database."""
        return dialect.type_descriptor(sa.Text() if dialect.name == "sqlite" else sa.Numeric(20, 9))

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:  # noqa: ARG002 - given by the base class
        """USD on their way out."""
        return None if value is None else Decimal(value)


class InDollars(sa.ColumnElement[Decimal]):
    """A column of nano-USD presented as USD, without a float on the way."""

    inherit_cache = True

    def __init__(self, column: str) -> None:
        self.column = column


@compiles(InDollars, "sqlite")
def _dollars_sqlite(element: InDollars, _compiler: Any, **_: Any) -> str:
    c = element.column
    return f"printf('%d.%09d', {c} / 1000000000, {c} % 1000000000)"


@compiles(InDollars)
def _dollars(element: InDollars, _compiler: Any, **_: Any) -> str:
    # Multiplied, not divided: numeric division rounds to a scale of its own choice.
    return f"{element.column} * 0.000000001::numeric"


class DayNumber(sa.ColumnElement[int]):
    """Days since 1970 (UTC) of a `Moment` column."""

    inherit_cache = True

    def __init__(self, column: sa.ColumnElement[Any]) -> None:
        self.column = column
        self.type = sa.BigInteger()


@compiles(DayNumber, "sqlite")
def _day_sqlite(element: DayNumber, compiler: Any, **kw: Any) -> str:
    return f"({compiler.process(element.column, **kw)} / 86400000000)"


@compiles(DayNumber)
def _day(element: DayNumber, compiler: Any, **kw: Any) -> str:
    return f"floor(extract(epoch FROM {compiler.process(element.column, **kw)}) / 86400)::bigint"


class Label(sa.ColumnElement[str]):
    """A text that stands under a name in a `Json` column; NULL where there is none."""

    inherit_cache = False  # the name is part of the statement

    def __init__(self, column: sa.ColumnElement[Any], name: str) -> None:
        self.column = column
        self.name = name
        self.type = sa.Text()


@compiles(Label, "sqlite")
def _label_sqlite(element: Label, compiler: Any, **kw: Any) -> str:
    return f"json_extract({compiler.process(element.column, **kw)}, '$.{element.name}')"


@compiles(Label)
def _label(element: Label, compiler: Any, **kw: Any) -> str:
    return f"({compiler.process(element.column, **kw)} ->> '{element.name}')"


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _key(name: str, kind: sa.types.TypeEngine[Any] | None = None) -> tuple[sa.Column[Any], sa.Column[Any]]:
    return sa.Column("team_id", sa.Text, primary_key=True), sa.Column(name, kind or sa.Text(), primary_key=True)


def _text(name: str, required: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, nullable=not required)


def _count(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger)


def _money(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _moment(name: str, required: bool = True) -> sa.Column[Any]:
    return sa.Column(name, Moment, nullable=not required)


meta = sa.Table("wflo_meta", metadata, sa.Column("key", sa.Text, primary_key=True), _text("value", required=True))

executions = sa.Table(
    "workflow_executions",
    metadata,
    *_key("id"),
    _text("workflow_definition_id", required=True),
    _text("status", required=True),
    sa.Column("inputs", Json),
    sa.Column("outputs", Json),
    _money("cost_nano"),
    sa.Column("cost_total_usd", Dollars, sa.Computed(InDollars("cost_nano"), persisted=True)),
    _count("budget_nano"),
    _text("parent_id"),
    _text("notebook_id"),
    _text("kernel_id"),
    _text("cell"),
    _text("cell_id"),
    _text("holder"),
    sa.Column("error", Json),
    _moment("created_at"),
    _moment("updated_at"),
    sa.CheckConstraint("status IN ('RUNNING', 'COMPLETED', 'FAILED')", name="status"),
    sa.CheckConstraint("cost_nano >= 0", name="cost"),
)
sa.Index(None, executions.c.team_id, executions.c.created_at)
sa.Index(
    "ix_workflow_executions_running",
    executions.c.team_id,
    executions.c.holder,
    sqlite_where=executions.c.status == "RUNNING",
    postgresql_where=executions.c.status == "RUNNING",
)

calls = sa.Table(
    "llm_calls",
    metadata,
    *_key("id"),
    _text("execution_id", required=True),
    _text("budget_id"),
    _text("provider", required=True),
    _text("api", required=True),
    _text("model", required=True),
    _text("answered_model"),
    _text("state", required=True),
    sa.Column("stream", sa.Boolean, nullable=False),
    # The tokens are NULL together when the provider never sent a usage.
    _count("input_tokens"),
    _count("output_tokens"),
    _count("cache_read_tokens"),
    _count("cache_write_tokens"),
    _count("cache_write_1h_tokens"),
    _count("reasoning_tokens"),
    _money("reserved_nano"),
    _count("cost_nano"),  # NULL when no price is known, and while the call is under way
    _text("price_source"),
    _text("price_date"),
    _count("cap_written"),
    sa.Column("latency_ms", sa.Double),
    sa.Column("ttft_ms", sa.Double),
    sa.Column("http_status", sa.Integer),
    _text("reason"),
    _text("cell"),
    _text("cell_id"),
    _text("step"),
    _text("holder"),
    _moment("created_at"),
    _moment("settled_at", required=False),
    sa.Column("meta", Json),
    # The budgets that this call is charged to, root first: whoever finishes it, in whatever process, credits the same ones.
    sa.Column("chain", Names),
    sa.CheckConstraint("state IN ('RESERVED', 'SETTLED', 'RELEASED', 'UNCONFIRMED', 'REFUSED')", name="state"),
    sa.CheckConstraint("reserved_nano >= 0 AND (cost_nano IS NULL OR cost_nano >= 0)", name="money"),
)
sa.Index(None, calls.c.team_id, calls.c.execution_id)
sa.Index(None, calls.c.team_id, calls.c.created_at)
sa.Index(
    "ix_llm_calls_open",
    calls.c.team_id,
    calls.c.holder,
    sqlite_where=calls.c.state == "RESERVED",
    postgresql_where=calls.c.state == "RESERVED",
)

budgets = sa.Table(
    "budgets",
    metadata,
    *_key("id"),
    _text("parent_id"),
    _text("scope", required=True),
    _count("cap_nano"),  # NULL: no cap, the row only counts
    _money("spent_nano"),
    _money("held_nano"),
    _money("unconfirmed_nano"),
    # Of a spool only: how much of the cap was leased to this machine in all; NULL where the cap itself is what counts.
    _count("lease_nano"),
    # Of a shared budget only: its own name, and its period (day, week, month, year) in a time zone (IANA name).
    _text("name"),
    _text("period"),
    _text("zone"),
    _moment("updated_at"),
    # Never a check against the cap: money that was spent is recorded even when a price bound was wrong.
    sa.CheckConstraint("spent_nano >= 0 AND held_nano >= 0 AND unconfirmed_nano >= 0", name="counters"),
    # Room on each page for the next version of a row that changes with every call.
    postgresql_with={"fillfactor": 50},
)

# Money that a machine may spend without asking again: held in its budgets, and told apart from other holds here.
leases = sa.Table(
    "budget_leases",
    metadata,
    *_key("budget_id"),
    sa.Column("holder", sa.Text, primary_key=True),  # the spool of a machine
    _money("outstanding_nano"),  # leased, and neither spent nor given back yet: a part of the budget's held_nano
    _money("lost_nano"),  # was outstanding when the lease ran out: a part of the budget's unconfirmed_nano
    _moment("since"),
    _moment("expires_at"),
    sa.CheckConstraint("outstanding_nano >= 0 AND lost_nano >= 0", name="counters"),
)

# On a server: what a spool asked for, and what it got, so that a question whose answer was lost can be asked again. On a spool:
# what it has asked for and has no answer to yet.
spool_ops = sa.Table(
    "spool_ops",
    metadata,
    *_key("op_id"),
    _text("holder", required=True),
    _text("kind", required=True),
    sa.Column("amounts", sa.Text),  # JSON: budget id → nano-USD
    _moment("at"),
)

snapshots = sa.Table(
    "state_snapshots",
    metadata,
    *_key("id"),
    _text("scope", required=True),
    _text("execution_id"),
    _text("step_id", required=True),
    _text("variables", required=True),  # the manifest: text, not a JSON type, because its bytes are signed
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("digests", sa.LargeBinary, nullable=False),  # 32-byte digests, concatenated
    sa.Column("variable_count", sa.Integer, nullable=False),
    sa.Column("bytes_total", sa.BigInteger, nullable=False),
    _text("parent_id"),
    _moment("created_at"),
    sa.UniqueConstraint("team_id", "scope", "step_id", "version"),
)
sa.Index(None, snapshots.c.team_id, snapshots.c.scope, snapshots.c.created_at)

chunks = sa.Table(
    "chunks",
    metadata,
    *_key("digest", sa.LargeBinary()),
    sa.Column("raw_bytes", sa.BigInteger, nullable=False),
    sa.Column("stored_bytes", sa.BigInteger, nullable=False),
    _text("codec", required=True),
    _text("pack_id"),
    _count("pack_offset"),
    sa.Column("data", sa.LargeBinary),  # NULL when the bytes are in a pack
    _moment("last_used_at"),
)
# Chunks are already compressed: PostgreSQL would spend time on trying again.
_storage = sa.DDL("ALTER TABLE chunks ALTER COLUMN data SET STORAGE EXTERNAL")  # type: ignore[no-untyped-call]
_storage = sa.DDL("ALTER TABLE chunks ALTER COLUMN data SET STORAGE EXTERNAL")  # type: ignore[no-untyped-call]
sa.event.listen(chunks, "after_create", _storage.execute_if(dialect="postgresql"))
