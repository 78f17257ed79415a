"""The server's side of leases: money lent to a machine, and the rows that it sends in afterwards. For PostgreSQL.

A lease is a hold on each budget of a chain that belongs to a machine and not to a call (``budget_leases``). What the machine
spends moves from the lease to ``spent``; what it gives back is free again; what it still had when it fell silent counts as
spent and unconfirmed, never as free. Whatever order these reach the server in, and however often:

    held  = holds of calls + outstanding leases        spent + held <= cap (unless a price bound was wrong)

Each of these is one statement, and carries the id of an operation, so that it may be asked again when its answer was lost.
Rows are locked budgets first, root before leaf, then leases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wflo_nb.model import MAX_NANO, BudgetState, Execution, now
from wflo_nb.store import rows
from wflo_nb.store.records import Shortfall

if TYPE_CHECKING:
    from wflo_nb.store.postgres import Postgres

#: What a budget without a cap has left.
_BOUNDLESS = 2**62

_LEASE = f"""
WITH w AS (SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:rooms AS bigint[])) WITH ORDINALITY AS w (id, room, depth)),
     l AS (SELECT b.id, CASE WHEN b.cap_nano IS NULL THEN {_BOUNDLESS} ELSE b.cap_nano - b.spent_nano - b.held_nano END AS space
           FROM budgets b JOIN w ON b.id = w.id WHERE b.team_id = :team_id ORDER BY w.depth FOR UPDATE OF b),
     f AS (SELECT count(*) = cardinality(CAST(:ids AS text[])) AS complete, min(l.space + w.room) AS available,
                  min(l.space) AS untouched FROM l JOIN w USING (id)),
     k AS (SELECT coalesce(max(n), 0) AS others FROM (SELECT count(*) AS n FROM budget_leases s
           WHERE s.team_id = :team_id AND s.budget_id = ANY(CAST(:ids AS text[])) AND s.holder <> :holder AND s.expires_at > now()
           GROUP BY s.budget_id) AS live),
     g AS (SELECT least(CAST(:hi AS bigint), greatest(CAST(:lo AS bigint), f.available / CAST(:share AS bigint))) AS amount, f.*, k.others
           FROM f, k),
     o AS (SELECT g.amount + greatest(0, least(CAST(:ahead AS bigint), (g.untouched - g.amount) / (2 * (g.others + 1)))) AS wanted
           FROM g WHERE g.complete AND g.amount <= g.available),
     a AS (SELECT l.id, greatest(0, o.wanted - w.room) AS more FROM l JOIN w USING (id), o),
     u AS (UPDATE budgets b SET held_nano = b.held_nano + a.more, updated_at = now() FROM a
           WHERE b.team_id = :team_id AND b.id = a.id AND a.more > 0 RETURNING 1),
     s AS (INSERT INTO budget_leases AS s (team_id, budget_id, holder, outstanding_nano, lost_nano, since, expires_at)
           SELECT :team_id, a.id, :holder, a.more, 0, now(), now() + make_interval(secs => CAST(:ttl AS double precision))
           FROM a WHERE a.more > 0
           ON CONFLICT (team_id, budget_id, holder) DO UPDATE
           SET outstanding_nano = s.outstanding_nano + excluded.outstanding_nano, expires_at = excluded.expires_at RETURNING 1),
     p AS (INSERT INTO spool_ops (team_id, op_id, holder, kind, amounts, at)
           SELECT :team_id, :op_id, :holder, 'lease', coalesce(jsonb_object_agg(a.id, a.more), '{{}}')::text, now() FROM a
           HAVING count(*) > 0 RETURNING amounts)
SELECT p.amounts, g.amount FROM p, g"""

# A given-back amount is taken from what is outstanding, then from what was written off when the lease ran out.
_GIVE = """
WITH o AS (INSERT INTO spool_ops (team_id, op_id, holder, kind, amounts, at)
           VALUES (:team_id, :op_id, :holder, 'give', :amounts, now()) ON CONFLICT (team_id, op_id) DO NOTHING RETURNING 1),
     w AS (SELECT key AS id, value::bigint AS amount FROM o, jsonb_each_text(CAST(:amounts AS jsonb))),
     l AS (SELECT b.id, w.amount FROM budgets b JOIN w ON b.id = w.id
           WHERE b.team_id = :team_id ORDER BY array_position(CAST(:order AS text[]), b.id) FOR UPDATE OF b),
     s AS (SELECT s.budget_id AS id, least(l.amount, s.outstanding_nano) AS held,
                  least(l.amount - least(l.amount, s.outstanding_nano), s.lost_nano) AS lost
           FROM budget_leases s JOIN l ON s.budget_id = l.id WHERE s.team_id = :team_id AND s.holder = :holder FOR UPDATE OF s),
     u AS (UPDATE budgets b SET held_nano = b.held_nano - s.held, spent_nano = b.spent_nano - s.lost,
                  unconfirmed_nano = b.unconfirmed_nano - s.lost, updated_at = now()
           FROM s WHERE b.team_id = :team_id AND b.id = s.id RETURNING 1),
     d AS (UPDATE budget_leases t SET outstanding_nano = t.outstanding_nano - s.held, lost_nano = t.lost_nano - s.lost
           FROM s WHERE t.team_id = :team_id AND t.budget_id = s.id AND t.holder = :holder RETURNING 1)
SELECT count(*) FROM d"""

# Holds that were made before their budget had a cap, so that nobody was asked: they are there, whatever the cap says.
_COVER = """
WITH o AS (INSERT INTO spool_ops (team_id, op_id, holder, kind, amounts, at)
           VALUES (:team_id, :op_id, :holder, 'cover', :amounts, now()) ON CONFLICT (team_id, op_id) DO NOTHING RETURNING 1),
     w AS (SELECT key AS id, value::bigint AS amount FROM o, jsonb_each_text(CAST(:amounts AS jsonb))),
     u AS (UPDATE budgets b SET held_nano = b.held_nano + w.amount, updated_at = now() FROM w
           WHERE b.team_id = :team_id AND b.id = w.id RETURNING b.id),
     s AS (INSERT INTO budget_leases AS s (team_id, budget_id, holder, outstanding_nano, lost_nano, since, expires_at)
           SELECT :team_id, w.id, :holder, w.amount, 0, now(), now() + make_interval(secs => CAST(:ttl AS double precision))
           FROM w JOIN u USING (id)
           ON CONFLICT (team_id, budget_id, holder) DO UPDATE
           SET outstanding_nano = s.outstanding_nano + excluded.outstanding_nano, expires_at = excluded.expires_at RETURNING 1)
SELECT count(*) FROM s"""

# An operation whose answer was lost: either it happened, or from now on it never will.
_VOID = """
WITH o AS (INSERT INTO spool_ops (team_id, op_id, holder, kind, amounts, at) VALUES (:team_id, :op_id, :holder, 'void', '{}', now())
           ON CONFLICT (team_id, op_id) DO NOTHING RETURNING 1)
SELECT amounts FROM spool_ops WHERE team_id = :team_id AND op_id = :op_id"""

_TYPES = {
    "stream": "boolean",
    **dict.fromkeys(("latency_ms", "ttft_ms"), "double precision"),
    "http_status": "integer",
    "meta": "jsonb",
    "chain": "text[]",
    **dict.fromkeys((c for c in rows.CALL_COLUMNS if c.endswith(("_tokens", "_nano", "_at")) or c == "cap_written"), "bigint"),
}
_VALUES = ", ".join(f"timestamptz 'epoch' + {c} * interval '1 microsecond'" if c.endswith("_at") else c for c in rows.CALL_COLUMNS)
_RECORD = ", ".join(f"{c} {_TYPES.get(c, 'text')}" for c in rows.CALL_COLUMNS)
# Unless it is their turn (`early`), calls whose execution is not there yet are named and left alone.
_SHIP = f"""
WITH r AS (SELECT r.*, CAST(:early AS boolean) OR EXISTS (SELECT 1 FROM workflow_executions e WHERE e.team_id = :team_id
                  AND e.id = r.execution_id) AS due FROM jsonb_to_recordset(CAST(:calls AS jsonb)) AS r ({_RECORD})),
     m AS (INSERT INTO llm_calls ({", ".join(rows.CALL_COLUMNS)}) SELECT {_VALUES} FROM r WHERE due
           ON CONFLICT (team_id, id) DO NOTHING
           RETURNING id, execution_id, chain, state, coalesce(cost_nano, 0) AS cost, reserved_nano),
     c AS (SELECT t.id, min(t.depth) AS depth, sum(m.cost)::bigint AS cost, sum(least(m.cost, m.reserved_nano))::bigint AS covered,
                  coalesce(sum(m.cost) FILTER (WHERE m.state = 'UNCONFIRMED'), 0)::bigint AS doubt
           FROM m, unnest(m.chain) WITH ORDINALITY AS t (id, depth) WHERE m.cost > 0 GROUP BY t.id),
     l AS (SELECT b.id, c.cost, c.covered, c.doubt FROM budgets b JOIN c ON b.id = c.id WHERE b.team_id = :team_id
           ORDER BY c.depth, b.id FOR UPDATE OF b),
     s AS (SELECT s.budget_id AS id, s.outstanding_nano, s.lost_nano FROM budget_leases s JOIN l ON s.budget_id = l.id
           WHERE s.team_id = :team_id AND s.holder = :holder ORDER BY s.budget_id FOR UPDATE OF s),
     d AS (SELECT l.id, l.cost, l.doubt, least(l.covered, coalesce(s.outstanding_nano, 0)) AS held,
                  least(l.covered - least(l.covered, coalesce(s.outstanding_nano, 0)), coalesce(s.lost_nano, 0)) AS lost
           FROM l LEFT JOIN s ON s.id = l.id),
     u AS (UPDATE budgets b SET held_nano = b.held_nano - d.held, spent_nano = b.spent_nano + d.cost - d.lost,
                  unconfirmed_nano = b.unconfirmed_nano + d.doubt - d.lost, updated_at = now()
           FROM d WHERE b.team_id = :team_id AND b.id = d.id RETURNING 1),
     t AS (UPDATE budget_leases t SET outstanding_nano = t.outstanding_nano - d.held, lost_nano = t.lost_nano - d.lost
           FROM d WHERE t.team_id = :team_id AND t.budget_id = d.id AND t.holder = :holder RETURNING 1),
     x AS (SELECT execution_id AS id, sum(cost)::bigint AS cost FROM m WHERE cost > 0 GROUP BY execution_id),
     e AS (UPDATE workflow_executions e SET cost_nano = e.cost_nano + x.cost, updated_at = greatest(e.updated_at, now())
           FROM x, (SELECT count(*) AS n FROM u) AS after_budgets
           WHERE after_budgets.n >= 0 AND e.team_id = :team_id AND e.id = x.id RETURNING 1)
SELECT id, NULL FROM m UNION ALL SELECT id, execution_id FROM r WHERE NOT due"""

_SHIP_EXECUTION = (
    rows.INSERT_EXECUTION.replace(" DO NOTHING", "")
    + " DO UPDATE SET status = excluded.status, outputs = excluded.outputs, error = excluded.error, updated_at = excluded.updated_at"
    " WHERE workflow_executions.status = 'RUNNING'"
)

_RENEW = """
WITH u AS (UPDATE budget_leases SET expires_at = now() + make_interval(secs => CAST(:ttl AS double precision))
           WHERE team_id = :team_id AND holder = :holder AND outstanding_nano > 0 RETURNING 1),
     d AS (DELETE FROM budget_leases WHERE team_id = :team_id AND holder = :holder AND outstanding_nano = 0 AND lost_nano = 0
           RETURNING 1)
SELECT budget_id FROM budget_leases WHERE team_id = :team_id AND holder = :holder AND lost_nano > 0"""

_EXPIRE = """
WITH o AS (SELECT DISTINCT budget_id FROM budget_leases WHERE team_id = :team_id AND outstanding_nano > 0 AND expires_at <= now()),
     b AS (SELECT b.id FROM budgets b JOIN o ON b.id = o.budget_id WHERE b.team_id = :team_id
           ORDER BY b.parent_id NULLS FIRST, b.id FOR UPDATE OF b),
     s AS (SELECT s.budget_id AS id, s.holder, s.outstanding_nano AS amount FROM budget_leases s JOIN b ON s.budget_id = b.id
           WHERE s.team_id = :team_id AND s.outstanding_nano > 0 AND s.expires_at <= now() FOR UPDATE OF s),
     t AS (SELECT id, sum(amount)::bigint AS amount FROM s GROUP BY id),
     u AS (UPDATE budgets b SET held_nano = b.held_nano - t.amount, spent_nano = b.spent_nano + t.amount,
                  unconfirmed_nano = b.unconfirmed_nano + t.amount, updated_at = now()
           FROM t WHERE b.team_id = :team_id AND b.id = t.id RETURNING 1),
     d AS (UPDATE budget_leases l SET lost_nano = l.lost_nano + s.amount, outstanding_nano = l.outstanding_nano - s.amount
           FROM s WHERE l.team_id = :team_id AND l.budget_id = s.id AND l.holder = s.holder RETURNING 1)
SELECT count(*) FROM d"""

# Whatever a machine may still ask about stays, however old: to it the answer matters.
_FORGET_OPS = (
    "DELETE FROM spool_ops WHERE team_id = :team_id AND holder = :holder AND at < now() - interval '1 hour'"
    " AND op_id <> ALL(CAST(:waiting AS text[]))"
)


@dataclass(frozen=True, slots=True)
class Want:
    """What a machine asks for.

    Attributes:
        rooms: the leased budgets of a chain, root first, each with what the machine has left of its lease there, in nano-USD.
        lo_nano, hi_nano, share: as for `Store.reserve`.
        ahead_nano: what it would like on top for its next calls; given only while there is plenty.
    """

    rooms: Mapping[str, int]
    lo_nano: int
    hi_nano: int
    share: int
    ahead_nano: int = 0


class Lessor:
    """The server as one machine (`holder`) sees it. Errors are those of `Store`; everything may be asked again."""

    def __init__(self, database: Postgres, holder: str, ttl: float) -> None:
        self._db = database
        self._holder = holder
        self._ttl = ttl

    def _ask(self, sql: str, **params: Any) -> list[rows.Row]:
        return self._db.select(sql, {"team_id": self._db.team, "holder": self._holder, **params})

    def lease(self, op_id: str, want: Want) -> tuple[dict[str, int], int] | Shortfall:
        """Lend money for a call.

        Returns:
            what was added to the lease of each budget, and the amount that the call may hold; or what is short, as it is for this
            machine: what it has left of its own leases is not counted as held.

        Raises:
            StoreError: a budget is not on the server.
        """
        ids = list(want.rooms)
        params = {
            "op_id": op_id,
            "ids": ids,
            "rooms": list(want.rooms.values()),
            "lo": want.lo_nano,
            "hi": want.hi_nano,
            "share": max(1, want.share),
            "ahead": min(want.ahead_nano, MAX_NANO),
            "ttl": self._ttl,
        }
        for _ in range(3):
            got = self._db.once(_LEASE, {"team_id": self._db.team, "holder": self._holder, **params})
            if got is None:  # asked before, and that answer was lost: to refuse now what it lent would keep it from everybody
                amounts = self.void(op_id)
                if not amounts:
                    break
                there = min(amounts.get(b, 0) + want.rooms[b] for b in ids)
                return amounts, max(want.lo_nano, min(want.hi_nano, there))
            if got:
                return json.loads(got[0][0]), int(got[0][1])
            short = self._short(want)
            if short is not None:
                return short
        return Shortfall(self._tightest(want), want.lo_nano)

    def _tightest(self, want: Want) -> BudgetState:
        levels = self.levels(list(want.rooms))
        if missing := [b for b in want.rooms if b not in levels]:
            raise rows.missing_budget(missing)
        own = [replace(levels[b], held_nano=max(0, levels[b].held_nano - room)) for b, room in want.rooms.items()]
        return min(reversed(own), key=lambda b: _BOUNDLESS if b.left_nano is None else b.left_nano)

    def _short(self, want: Want) -> Shortfall | None:
        tightest = self._tightest(want)
        # Money may have come in between the two looks; then the question is asked again.
        return None if tightest.left_nano is None or tightest.left_nano >= want.lo_nano else Shortfall(tightest, want.lo_nano)

    def levels(self, ids: Sequence[str]) -> dict[str, BudgetState]:
        """Budgets as they are on the server, by id."""
        found = self._ask(rows.SELECT_BUDGET.replace("id = :id", "id = ANY(:ids)"), ids=list(ids))
        return {state.id: state for state in map(rows.budget_from, found)}

    def give(self, op_id: str, amounts: Mapping[str, int]) -> None:
        """Take back what a machine does not need, by budget."""
        self._ask(_GIVE, op_id=op_id, amounts=json.dumps(dict(amounts)), order=list(amounts))

    def cover(self, op_id: str, amounts: Mapping[str, int]) -> None:
        """Enter holds that exist already, whether or not they fit."""
        self._ask(_COVER, op_id=op_id, amounts=json.dumps(dict(amounts)), ttl=self._ttl)

    def void(self, op_id: str) -> dict[str, int]:
        """What an operation gave, if it happened; if not, it never will."""
        # Twice: the first time it may have waited for the very statement that it is about, and not see what that one did.
        found = self._ask(_VOID, op_id=op_id) or self._ask(_VOID, op_id=op_id)
        return dict(json.loads(found[0][0]))

    def ship(self, calls: Sequence[str]) -> set[str]:
        """Enter finished calls that were paid from this machine's leases, each a row as JSON with times in microseconds since 1970;
        returns the ids of those that were not there yet.
        """
        params = {"team_id": self._db.team, "holder": self._holder, "calls": f"[{','.join(calls)}]", "early": False}
        found = self._db.select(_SHIP, params)
        early = {str(r[1]) for r in found if r[1] is not None}
        fresh = {str(r[0]) for r in found if r[1] is None}

        def work(cursor: Any) -> set[str]:
            self._db.take_turns(cursor, [*early])
            return {str(r[0]) for r in cursor.execute(_SHIP, {**params, "early": True}).fetchall()}

        return fresh | self._db.transact(work) if early else fresh

    def ship_executions(self, executions: Sequence[tuple[Execution, str]]) -> None:
        """Enter executions, each with the process that runs it, or say how they ended. What they cost comes with their calls."""
        fresh = [rows.execution_params(replace(e, cost_nano=0), self._db.team, holder, self._db) for e, holder in executions]

        def work(cursor: Any) -> None:
            self._db.take_turns(cursor, [e.id for e, _ in executions])
            for row in fresh:
                cursor.execute(_SHIP_EXECUTION, row)

        self._db.transact(work)

    def open_budgets(self, states: Sequence[BudgetState]) -> None:
        """Make sure that budgets are there."""

        def work(cursor: Any) -> None:
            for b in states:
                cursor.execute(rows.OPEN_BUDGET, {"team_id": self._db.team, "updated_at": now(), **rows.budget_params(b)})

        self._db.transact(work)

    def renew(self) -> list[str]:
        """Prolong this machine's leases; returns the budgets where some of it was written off meanwhile."""
        return [str(r[0]) for r in self._ask(_RENEW, ttl=self._ttl)]

    def expire(self) -> int:
        """Write off, as spent and unconfirmed, what silent machines still had; returns how many leases."""
        return int(self._ask(_EXPIRE)[0][0])

    def tidy(self, waiting: Sequence[str]) -> None:
        """Forget old operations of this machine, but not those that it is `waiting` for."""

        def work(cursor: Any) -> None:
            cursor.execute(_FORGET_OPS, {"team_id": self._db.team, "holder": self._holder, "waiting": list(waiting)})

        self._db.transact(work)
