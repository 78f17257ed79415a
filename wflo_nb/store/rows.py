"""Records of the model as rows and back, and the SQL that both databases understand, written once.

Parameters are named (``:name``); the PostgreSQL side rewrites them for its driver. Values that the two databases keep in
different types (times, lists of ids, JSON) go through a `Codec`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Protocol

from wflo_nb.errors import StoreError
from wflo_nb.model import MAX_NANO, BudgetState, Call, CallState, Execution, ExecutionStatus, Usage, microseconds
from wflo_nb.store.records import Shortfall, SnapshotRow

Params = Mapping[str, Any]
Row = Sequence[Any]

#: A broken answer may claim any number of tokens. Beyond this it is no count, and sums of it would leave 64 bits.
_MOST_TOKENS = 10**15
#: Characters of JSON beyond which a document is kept as its beginning: SQLite writes the whole row again when a cost is added to it.
_LONGEST_DOCUMENT = 64_000


class Codec(Protocol):
    """How one database keeps the types that differ."""

    def time(self, moment: datetime) -> Any:
        """A UTC time on its way in."""
        ...

    def clock(self, us: int) -> Any:
        """A UTC time in microseconds since 1970 on its way in."""
        ...

    def names(self, ids: Sequence[str]) -> Any:
        """An ordered list of ids on its way in."""
        ...

    def moment(self, value: Any) -> datetime:
        """A UTC time on its way out."""
        ...

    def ids(self, value: Any) -> list[str]:
        """An ordered list of ids on its way out."""
        ...

    def document(self, value: Any) -> Any:
        """A JSON document on its way out (on its way in it is text everywhere)."""
        ...


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CALL_COLUMNS = _names(
    "team_id id execution_id budget_id provider api model answered_model state stream input_tokens output_tokens cache_read_tokens "
    "cache_write_tokens cache_write_1h_tokens reasoning_tokens reserved_nano cost_nano price_source price_date cap_written latency_ms "
    "ttft_ms http_status reason cell cell_id step holder created_at settled_at meta chain"
)
#: What a finished call may say that a reserved one could not.
FINISH_COLUMNS = _names(
    "answered_model state stream input_tokens output_tokens cache_read_tokens cache_write_tokens cache_write_1h_tokens reasoning_tokens "
    "price_source price_date cap_written latency_ms ttft_ms http_status reason settled_at meta"
)
_EXECUTION_COLUMNS = _names(
    "team_id id workflow_definition_id status inputs outputs cost_nano budget_nano parent_id notebook_id kernel_id cell cell_id holder "
    "error created_at updated_at"
)
_BUDGET_COLUMNS = _names("id scope cap_nano spent_nano held_nano unconfirmed_nano parent_id name period zone")
_SNAPSHOT_COLUMNS = _names(
    "id scope execution_id step_id version variables signature digests variable_count bytes_total created_at parent_id"
)


def _insert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(':' + c for c in columns)})"


INSERT_CALL = _insert("llm_calls", CALL_COLUMNS)
SELECT_CALL = f"SELECT {', '.join(CALL_COLUMNS)} FROM llm_calls WHERE team_id = :team_id"
FINISH_SET = ", ".join(f"{c} = :{c}" for c in FINISH_COLUMNS)

#: Calls may be there before their execution: it could not be entered in time, or they come from another machine.
_COST_OF_CALLS = "CAST((SELECT coalesce(sum(cost_nano), 0) FROM llm_calls WHERE team_id = :team_id AND execution_id = :id) AS bigint)"
INSERT_EXECUTION = (
    _insert("workflow_executions", _EXECUTION_COLUMNS).replace(":cost_nano", f":cost_nano + {_COST_OF_CALLS}")
    + " ON CONFLICT (team_id, id) DO NOTHING"
)
SELECT_EXECUTION = f"SELECT {', '.join(_EXECUTION_COLUMNS)} FROM workflow_executions WHERE team_id = :team_id AND id = :id"
END_EXECUTION = (
    "UPDATE workflow_executions SET status = :status, outputs = :outputs, error = :error, updated_at = :updated_at"
    " WHERE team_id = :team_id AND id = :id"
)
ABANDON_EXECUTIONS = (
    "UPDATE workflow_executions SET status = 'FAILED', error = :error, updated_at = :updated_at"
    " WHERE team_id = :team_id AND holder = :holder AND status = 'RUNNING'"
)
HOLDERS = (
    "SELECT holder FROM llm_calls WHERE team_id = :team_id AND state = 'RESERVED' AND holder IS NOT NULL"
    " UNION SELECT holder FROM workflow_executions WHERE team_id = :team_id AND status = 'RUNNING' AND holder IS NOT NULL"
)

SELECT_BUDGET = f"SELECT {', '.join(_BUDGET_COLUMNS)} FROM budgets WHERE team_id = :team_id AND id = :id"
OPEN_BUDGET = _insert("budgets", ("team_id", *_BUDGET_COLUMNS, "updated_at")) + " ON CONFLICT (team_id, id) DO NOTHING"
SET_CAP = "UPDATE budgets SET cap_nano = :cap_nano, updated_at = :updated_at WHERE team_id = :team_id AND id = :id"
#: A budget and its ancestors, root first. The depth bound ends a circle of parents, which only a hand-edited table can hold.
ANCESTORS = (
    "WITH RECURSIVE up (id, depth) AS (SELECT CAST(:id AS text), 0 UNION ALL SELECT b.parent_id, up.depth + 1 FROM up JOIN budgets b"
    " ON b.team_id = :team_id AND b.id = up.id WHERE b.parent_id IS NOT NULL AND up.depth < 32) SELECT id FROM up ORDER BY depth DESC"
)

#: Calls of an execution, and of those inside it, that other processes made. An execution begins after the one around it, which
#: keeps the search to the newest rows.
_KIN = (
    "WITH RECURSIVE kin (id) AS (SELECT CAST(:id AS text) UNION SELECT x.id FROM workflow_executions x JOIN kin ON x.parent_id = kin.id"
    " WHERE x.team_id = :team_id AND x.created_at >= :since)"
)
_THEIRS = " FROM llm_calls c JOIN kin ON c.execution_id = kin.id WHERE c.team_id = :team_id AND c.holder <> :holder"
ELSEWHERE = (
    f"{_KIN} SELECT c.state, count(*), count(c.cost_nano), coalesce(sum(c.cost_nano), 0), coalesce(sum(c.reserved_nano), 0),"
    f" coalesce(sum(c.input_tokens), 0), coalesce(sum(c.output_tokens), 0){_THEIRS} GROUP BY c.state"
)
REFUSED_ELSEWHERE = f"{_KIN} SELECT c.reason, c.meta{_THEIRS} AND c.state = 'REFUSED' ORDER BY c.created_at LIMIT 500"

INSERT_SNAPSHOT = (
    f"INSERT INTO state_snapshots (team_id, {', '.join(_SNAPSHOT_COLUMNS)}) SELECT :team_id, "
    + ", ".join("coalesce(max(version), 0) + 1" if c == "version" else f":{c}" for c in _SNAPSHOT_COLUMNS)
    + " FROM state_snapshots WHERE team_id = :team_id AND scope = :scope AND step_id = :step_id"
)
SELECT_SNAPSHOTS = f"SELECT {', '.join(_SNAPSHOT_COLUMNS)} FROM state_snapshots WHERE team_id = :team_id"
NEWEST_FIRST = " ORDER BY created_at DESC, version DESC, id DESC LIMIT :most"
DELETE_SNAPSHOT = "DELETE FROM state_snapshots WHERE team_id = :team_id AND scope = :scope AND id = :id"


#: What is needed of the row of a call.
_BARE = frozenset(
    ["team_id", "id", "execution_id", "budget_id", "state", "stream", "reserved_nano", "cost_nano", "created_at", "settled_at", "chain"]
)


def bare(call: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The row of a call with little in it but what it cost, where the rest of it cannot be entered."""
    kept = {column: value if column in _BARE else None for column, value in call.items()}
    return {**kept, "provider": "", "api": "", "model": "", "reason": reason}


def bare_end(call: Call, reason: str) -> Call:
    """The end of a call whose row is there, with little in it but what it cost, where the rest of it cannot be entered."""
    said = {f.name: getattr(call, f.name) for f in fields(Call) if f.name in _BARE or f.name in ("created_us", "settled_us")}
    return Call(provider="", api="", model="", reason=reason, **said)


def clean(text: str | None) -> str | None:
    """Text that every database can keep: no NUL, no half of a surrogate pair."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def to_json(value: Any) -> str | None:
    """Any value as a JSON document; None stays NULL. What JSON cannot say is said by its repr: a record is never lost for its shape."""
    if value is None:
        return None
    try:
        text = json.dumps(value, allow_nan=False, default=repr, ensure_ascii=True)
    except Exception:
        text = json.dumps({"repr": _repr(value)})
    if len(text) > _LONGEST_DOCUMENT:
        text = json.dumps({"shortened": True, "length": len(text), "start": text[:1000]})
    return text if "\\u" not in text else _scrubbed(text)


def _repr(value: Any) -> str:
    try:
        return repr(value)[:10_000]
    except Exception as error:
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


def _scrubbed(text: str) -> str:
    """Without NUL and lone surrogates, which JSON can say and PostgreSQL's jsonb cannot keep."""

    def scrub(value: Any) -> Any:
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, list):
            return [scrub(v) for v in value]
        if isinstance(value, dict):
            return {clean(k): scrub(v) for k, v in value.items()}
        return value

    return json.dumps(scrub(json.loads(text)))


def utc(moment: datetime) -> datetime:
    """A time in UTC; one without a zone is taken to be UTC already."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def call_params(call: Call, team: str, chain: Sequence[str] | None, codec: Codec) -> dict[str, Any]:
    """The row of a call, by column."""
    return dict(zip(CALL_COLUMNS, call_values(call, team, chain, codec, call.reserved_nano, call.cost_nano), strict=True))


def call_values(
    c: Call, team: str, chain: Sequence[str] | None, codec: Codec, reserved_nano: int, cost_nano: int | None
) -> tuple[Any, ...]:
    """The row of a call, in the order of `CALL_COLUMNS`."""
    u, most = c.usage, _MOST_TOKENS
    tokens = _NO_TOKENS if u is None else (
        min(u.input_tokens, most), min(u.output_tokens, most), min(u.cache_read_tokens, most), min(u.cache_write_tokens, most),
        min(u.cache_write_1h_tokens, most), min(u.reasoning_tokens, most),
    )  # fmt: skip
    return (
        team, c.id, c.execution_id, c.budget_id, _name(c.provider), _name(c.api), _name(c.model), _name(c.answered_model),
        c.state._value_, c.stream, *tokens, reserved_nano, cost_nano, c.price_source, c.price_date, c.cap_written, c.latency_ms,
        c.ttft_ms, c.http_status, None if c.reason is None else clean(c.reason), _name(c.cell), _name(c.cell_id), _name(c.step),
        c.holder, codec.clock(c.created_us), None if c.settled_us is None else codec.clock(c.settled_us),
        to_json(c.meta) if c.meta else None, codec.names(chain) if chain else None,
    )  # fmt: skip


_NO_TOKENS = (None,) * 6
_name = functools.lru_cache(1024)(clean)  # the same few, again and again


def call_from(row: Row, codec: Codec) -> tuple[Call, list[str]]:
    """A call and its chain from a row of `SELECT_CALL`."""
    r = dict(zip(CALL_COLUMNS, row, strict=True))
    del r["team_id"]
    chain = r.pop("chain")
    tokens = [r.pop(c) for c in CALL_COLUMNS[10:16]]
    created, settled = r.pop("created_at"), r.pop("settled_at")
    call = Call(
        **{
            **r,
            "state": CallState(r["state"]),
            "stream": bool(r["stream"]),
            "usage": None if tokens[0] is None else Usage(*tokens),
            "created_us": microseconds(codec.moment(created)),
            "settled_us": None if settled is None else microseconds(codec.moment(settled)),
            "meta": {} if r["meta"] is None else codec.document(r["meta"]),
        }
    )
    return call, [] if chain is None else codec.ids(chain)


def execution_params(e: Execution, team: str, holder: str, codec: Codec) -> dict[str, Any]:
    """The row of an execution."""
    return {
        "team_id": team,
        "id": e.id,
        "workflow_definition_id": clean(e.workflow),
        "status": e.status.value,
        "inputs": to_json(e.inputs),
        "outputs": to_json(e.outputs),
        "cost_nano": e.cost_nano,
        "budget_nano": e.budget_nano,
        "parent_id": e.parent_id,
        "notebook_id": clean(e.notebook_id),
        "kernel_id": e.kernel_id,
        "cell": clean(e.cell),
        "cell_id": clean(e.cell_id),
        "holder": holder,
        "error": to_json(e.error),
        "created_at": codec.time(e.created_at),
        "updated_at": codec.time(e.updated_at),
    }


def execution_from(row: Row, codec: Codec) -> Execution:
    """An execution from a row of `SELECT_EXECUTION`."""
    r = dict(zip(_EXECUTION_COLUMNS, row, strict=True))
    for dropped in ("team_id", "holder"):
        del r[dropped]
    for name in ("inputs", "outputs", "error"):
        r[name] = None if r[name] is None else codec.document(r[name])
    for name in ("created_at", "updated_at"):
        r[name] = codec.moment(r[name])
    return Execution(workflow=r.pop("workflow_definition_id"), **{**r, "status": ExecutionStatus(r["status"])})


def budget_from(row: Row) -> BudgetState:
    """A budget from a row of `SELECT_BUDGET`."""
    return BudgetState(**dict(zip(_BUDGET_COLUMNS, row, strict=True)))


def budget_params(b: BudgetState) -> dict[str, Any]:
    """The row of a budget, without its team and time."""
    return {c: clean(v) if isinstance(v := getattr(b, c), str) else v for c in _BUDGET_COLUMNS}


def snapshot_params(s: SnapshotRow, team: str, codec: Codec) -> dict[str, Any]:
    """The row of a snapshot, without its version, which the database counts."""
    return {
        "team_id": team,
        "id": s.id,
        "scope": s.scope,
        "execution_id": s.execution_id,
        "step_id": s.step_id,
        "variables": s.manifest.decode(),
        "signature": s.signature,
        "digests": b"".join(s.digests),
        "variable_count": s.variables,
        "bytes_total": s.bytes_total,
        "created_at": codec.time(s.created_at),
        "parent_id": s.parent_id,
    }


def snapshot_from(row: Row, codec: Codec) -> SnapshotRow:
    """A snapshot from a row of `SELECT_SNAPSHOTS`."""
    r = dict(zip(_SNAPSHOT_COLUMNS, row, strict=True))
    manifest, count = r.pop("variables"), r.pop("variable_count")
    return SnapshotRow(
        **{
            **r,
            "manifest": manifest.encode(),
            "variables": count,
            "signature": bytes(r["signature"]),
            "digests": split_digests(bytes(r["digests"])),
            "created_at": codec.moment(r["created_at"]),
        }
    )


def split_digests(joined: bytes) -> tuple[bytes, ...]:
    """Concatenated 32-byte digests, apart again."""
    return tuple(joined[i : i + 32] for i in range(0, len(joined), 32))


def grant(levels: Sequence[BudgetState], lo: int, hi: int, share: int) -> int | Shortfall:
    """How much a reserve may hold: the one rule of admission, which the PostgreSQL statement says in SQL.

    What is left of a chain is the least that any of its capped budgets has left; the grant is a fair share of it, at least
    `lo` and at most `hi`. A call that costs nothing fits even into an overdrawn budget.
    """
    capped = [b for b in levels if b.cap_nano is not None]
    if not capped:
        return hi
    left, _, tightest = min(((b.left_nano or 0), -depth, b) for depth, b in enumerate(capped))
    amount = min(hi, max(lo, left // max(1, share)))
    return amount if amount <= left else Shortfall(tightest, lo)


def cost_of(call: Call, reserved: int) -> int | None:
    """What a finished call adds to the sums: nothing if it was not sent, at least the whole hold if its outcome is unknown."""
    match call.state:
        case CallState.SETTLED:
            return None if call.cost_nano is None else min(call.cost_nano, MAX_NANO)
        case CallState.UNCONFIRMED:
            # None only when no price is known and nothing was held: then no number would be true.
            return None if call.cost_nano is None and reserved == 0 else max(call.cost_nano or 0, reserved)
        case CallState.RELEASED | CallState.REFUSED:
            return 0
        case CallState.RESERVED:
            raise StoreError(f"Call {call.id} is not over: it is still {call.state.value}. Finish it as SETTLED, RELEASED or UNCONFIRMED.")


def missing_budget(ids: Sequence[str]) -> StoreError:
    """The error for a chain that names a budget nobody opened."""
    return StoreError(f"Budget {', '.join(ids)} is not in the store, so nothing can be held in it. Open it first with open_budget().")
