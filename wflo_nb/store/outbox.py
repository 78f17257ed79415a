"""The rows of a spool that are to be sent in, and are forgotten when the server has them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from wflo_nb.model import Call, Execution
from wflo_nb.store import rows
from wflo_nb.store.database import Cursor
from wflo_nb.store.sqlite import SQLite

_AS_JSON = ", ".join(f"'{c}', {f'json({c})' if c in ('meta', 'chain') else c}" for c in rows.CALL_COLUMNS)
#: Final calls, oldest first, so that those of one execution arrive in their order.
_FINALS = (
    f"SELECT id, state, json_object({_AS_JSON}) FROM llm_calls WHERE team_id = :team_id AND state <> 'RESERVED'"
    " ORDER BY created_at LIMIT :most"
)
_DROP = "DELETE FROM llm_calls WHERE team_id = :team_id AND id = :id AND state = :state"
_DROP_EXECUTION = (
    "DELETE FROM workflow_executions WHERE team_id = :team_id AND id = :id AND status <> 'RUNNING'"
    " AND NOT EXISTS (SELECT 1 FROM llm_calls c WHERE c.team_id = :team_id AND c.execution_id = :id)"
)


class Outbox:
    """See the module. Thread-safe. What it forgets need not be on the disk: sent in again, it changes nothing."""

    def __init__(self, db: SQLite, team: str) -> None:
        self._db = db
        self._team = team

    def finals(self, most: int) -> list[tuple[str, str, str]]:
        """The oldest calls that are over: id, state, and the row as a JSON object, made where the row is: this runs for every call."""
        return [(r[0], r[1], r[2]) for r in self._db.select(_FINALS, {"team_id": self._team, "most": most})]

    def calls(self, ids: Sequence[str]) -> list[Call]:
        """Calls by their ids."""
        found = (self._db.select(f"{rows.SELECT_CALL} AND id = :id", {"team_id": self._team, "id": id}) for id in ids)
        return [rows.call_from(r, self._db)[0] for one in found for r in one]

    def executions(self) -> list[tuple[Execution, str]]:
        """All executions that are here, each with the process that runs it."""
        columns, _, _ = rows.SELECT_EXECUTION.partition(" WHERE ")
        found = self._db.select(
            f"{columns.replace(' FROM', ', holder FROM')} WHERE team_id = :team_id ORDER BY rowid", {"team_id": self._team}
        )
        return [(rows.execution_from(r[:-1], self._db), r[-1]) for r in found]

    def drop(self, calls: Sequence[tuple[str, str]]) -> None:
        """Forget calls that the server has, each in the state that it was sent in."""

        def work(cursor: Cursor) -> None:
            for id, state in calls:
                cursor.execute(_DROP, {"team_id": self._team, "id": id, "state": state})

        if calls:
            self._db.transact(work, durable=False)

    def drop_executions(self, ids: Collection[str]) -> set[str]:
        """Forget executions that are over and that the server has; returns those of which a call is still here."""

        def work(cursor: Cursor) -> set[str]:
            for id in ids:
                cursor.execute(_DROP_EXECUTION, {"team_id": self._team, "id": id})
            here = "SELECT 1 FROM workflow_executions WHERE team_id = :team_id AND id = :id"
            return {id for id in ids if cursor.execute(here, {"team_id": self._team, "id": id}).fetchone()}

        return self._db.transact(work, durable=False)
