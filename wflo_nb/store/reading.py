"""Reading whole tables and sums, for reports. The one reader that goes through SQLAlchemy; imported at first use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from wflo_nb.errors import ConfigurationError
from wflo_nb.store import schema
from wflo_nb.store.records import Columns

if TYPE_CHECKING:
    from wflo_nb.store.database import Database

_calls, _executions = schema.calls, schema.executions

#: What each table is called by readers, and what they do not see of it: keys of ours, and bytes that only the snapshot room reads.
_TABLES: dict[str, tuple[sa.Table, frozenset[str]]] = {
    "executions": (schema.executions, frozenset({"team_id"})),
    "calls": (schema.calls, frozenset({"team_id", "chain"})),
    "checkpoints": (schema.snapshots, frozenset({"team_id", "variables", "signature", "digests"})),
    "budgets": (schema.budgets, frozenset({"team_id"})),
}
_TOKENS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
)

#: The states of calls that a provider has been, or may have been, paid for.
_PAID = ("SETTLED", "UNCONFIRMED")

#: What frameworks and steps call the place of a call, by kind.
_AGENT, _TASK, _TOOL = (schema.Label(_calls.c.meta, kind) for kind in ("agent", "task", "tool"))

#: How costs can be grouped: the name of a report → its key columns.
GROUPS: dict[str, dict[str, sa.ColumnElement[Any]]] = {
    "model": {"provider": _calls.c.provider, "model": _calls.c.model},
    "provider": {"provider": _calls.c.provider},
    "cell": {"cell": _calls.c.cell, "cell_id": _calls.c.cell_id},
    "step": {"step": _calls.c.step},
    "node": {"node": _calls.c.step},
    # Where nothing else tells an agent's name, a step bears it that is no task and no tool.
    "agent": {"agent": sa.func.coalesce(_AGENT, sa.func.nullif(sa.func.nullif(_calls.c.step, _TOOL), _TASK))},
    "task": {"task": _TASK},
    "tool": {"tool": _TOOL},
    "workflow": {"workflow": _executions.c.workflow_definition_id},
    "day": {"day": schema.DayNumber(_calls.c.created_at)},
    "status": {"status": _calls.c.state},
}


def choose(name: str, what: str, allowed: Iterable[str]) -> str:
    """`name` if it is one of `allowed`.

    Raises:
        ConfigurationError: it is not; the message names the nearest.
    """
    known = list(allowed)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(f"{what}={name!r} is not known.{hint} Use one of: {', '.join(known)}.")


def read(database: Database, table: str, where: Mapping[str, Any] | None = None) -> Columns:
    """A whole table of the team as columns, oldest first.

    Executions also tell how many of their calls have no known price (``unpriced``; the cost of one with no others is None, not 0) and
    what part of their cost was never confirmed (``unconfirmed_nano``).

    Args:
        database: of an open store.
        table: ``executions``, ``calls``, ``checkpoints`` or ``budgets``.
        where: column → the value it must have, or a list of values; None means unknown.

    Raises:
        ConfigurationError: no such table or column.
    """
    source, hidden = _TABLES[choose(table, "table", _TABLES)]
    shown = [c for c in source.c if c.name not in hidden]
    order = [source.c.created_at, source.c.id] if "created_at" in source.c else [source.c.id]
    query = _with_unpriced(shown, database.team) if source is _executions else sa.select(*shown)
    query = query.where(source.c.team_id == database.team).order_by(*order)
    for name, value in (where or {}).items():
        column = source.c[choose(name, "where", [c.name for c in shown])]
        query = query.where(column.in_(list(value)) if isinstance(value, (list, tuple, set, frozenset)) else column == value)
    return _columns(database, query)


def _with_unpriced(shown: list[sa.Column[Any]], team: str) -> sa.Select[Any]:
    c = _calls.c
    mine = (
        sa.select(
            c.execution_id,
            sa.func.count().label("paid"),
            sa.func.count(c.cost_nano).label("priced"),
            sa.cast(sa.func.sum(sa.case((c.state == "UNCONFIRMED", c.cost_nano), else_=0)), sa.BigInteger).label("doubt"),
        )
        .where(c.team_id == team, c.state.in_(_PAID))
        .group_by(c.execution_id)
        .subquery()
    )
    unpriced = sa.func.coalesce(mine.c.paid - mine.c.priced, 0)
    cost = sa.case((sa.and_(unpriced > 0, mine.c.priced == 0), None), else_=_executions.c.cost_nano)
    columns = [cost.label(one.name) if one is _executions.c.cost_nano else one for one in shown]
    source = _executions.outerjoin(mine, mine.c.execution_id == _executions.c.id)
    doubt = sa.func.coalesce(mine.c.doubt, 0)
    return sa.select(*columns, unpriced.label("unpriced"), doubt.label("unconfirmed_nano")).select_from(source)


def aggregate(database: Database, by: str) -> Columns:
    """Costs of the team summed in the database: one row per group, the dearest first.

    Besides the key columns of the group: ``calls`` (rows of the ledger that reached a provider or may yet), ``refused`` (never sent),
    ``unpriced`` (over, and no price known: in no sum), tokens of each class, ``cost_nano`` (None when every call of the
    group is unpriced) and ``unconfirmed_nano``, the part of it that was never confirmed by a usage. ``day`` is a UTC date.

    Raises:
        ConfigurationError: no such grouping.
    """
    keys = GROUPS[choose(by, "by", GROUPS)]
    c = _calls.c
    source: sa.FromClause = _calls
    if by == "workflow":
        same = sa.and_(_executions.c.team_id == c.team_id, _executions.c.id == c.execution_id)
        source = _calls.outerjoin(_executions, same)

    def count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        # Without FILTER and casts of booleans: the same text counts on both databases.
        return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)

    def total(value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        # A sum of bigint is numeric on PostgreSQL; as bigint it stays an exact int on the way to Python.
        return sa.cast(sa.func.sum(value), sa.BigInteger)

    unpriced = sa.and_(c.cost_nano.is_(None), c.state.in_(_PAID))
    query = (
        sa.select(
            *[k.label(name) for name, k in keys.items()],
            count(c.state != "REFUSED").label("calls"),
            count(c.state == "REFUSED").label("refused"),
            count(unpriced).label("unpriced"),
            *[total(c[t]).label(t) for t in _TOKENS],
            total(c.cost_nano).label("cost_nano"),
            total(sa.case((c.state == "UNCONFIRMED", c.cost_nano), else_=0)).label("unconfirmed_nano"),
        )
        .select_from(source)
        .where(c.team_id == database.team)
        .group_by(*keys.values())
        .order_by(sa.func.coalesce(sa.func.sum(c.cost_nano), 0).desc(), *keys.values())
    )
    if by == "day":
        query = query.order_by(None).order_by(*keys.values())
    found = _columns(database, query)
    if by == "day":
        found["day"] = [schema.EPOCH + timedelta(days=n) for n in found["day"]]
    return found


def _columns(database: Database, query: sa.Select[Any]) -> Columns:
    with database.reading() as connection:
        result = connection.execute(query)
        names = list(result.keys())
        listed = result.all()
    values = zip(*listed, strict=True) if listed else ([] for _ in names)
    return {name: list(column) for name, column in zip(names, values, strict=True)}
