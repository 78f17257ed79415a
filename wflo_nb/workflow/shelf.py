"""The checkpoints of one workflow: any state that can be pickled, under a name, each with its version."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from wflo_nb import events
from wflo_nb.errors import CheckpointNotFoundError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wflo_nb.snapshot.engine import SnapshotEngine
    from wflo_nb.store import SnapshotRow, Store

#: How many of the newest checkpoints are looked through.
_LISTED = 10_000
_STATE, _FACTS = "state", "facts"
_SHOWN = frozenset({"name", "version", "id", "created_at", "execution_id", "bytes_total"})


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint of a workflow.

    Attributes:
        version: 1, 2, … per name.
        id: ``snap-…``.
        bytes_total: stored size before equal parts are shared.
        facts: what took it, and in which place; empty in a list, as `state` is.
    """

    name: str
    version: int
    id: str
    created_at: datetime
    execution_id: str | None
    bytes_total: int
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    state: Any = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """``state`` (saved by hand), ``step`` (by `@checkpoint`), ``node``, ``task`` or ``message`` (by a framework's adapter)."""
        return str(self.facts.get("kind", ""))

    def __getitem__(self, field: str) -> Any:
        """What is also an attribute, for code that takes a checkpoint for a dict: ``one["name"]``."""
        if field not in _SHOWN:
            raise KeyError(field)
        return getattr(self, field)

    def __str__(self) -> str:
        return f"{self.name!r}, version {self.version} ({self.id})"


class Shelf:
    """Where the checkpoints of a workflow are kept: the snapshots of one scope of a store. May be used from many threads at once.

    Each checkpoint has a snapshot engine of its own, so that nobody waits for anybody; the store counts the versions.
    """

    def __init__(self, store: Callable[[], Store], workflow: str, *, within: str = "") -> None:
        self._store = store
        # What cannot be saved is kept by reference for as long as the engine lives that took it.
        self._held: deque[SnapshotEngine] = deque(maxlen=16)
        self.workflow = workflow
        self.scope = f"workflow:{workflow}{within}"

    def _engine(self, namespace: dict[str, Any]) -> SnapshotEngine:
        from wflo_nb.snapshot.engine import SnapshotEngine

        return SnapshotEngine(self._store(), namespace, scope=self.scope)

    def put(self, name: str, state: Any, *, execution_id: str | None, **facts: Any) -> Saved:
        """Keep a state.

        Raises:
            StoreError, SnapshotError: it could not be kept.
        """
        namespace = {_STATE: state, _FACTS: facts}
        engine = self._engine(namespace)
        taken = engine.take(name, execution_id=execution_id)
        namespace.clear()
        if taken.left_out:
            self._held.append(engine)
        events.emit(events.CheckpointTaken(taken))
        row = self._store().snapshot(self.scope, taken.id)
        return replace(_listed(row), facts=facts)

    def listed(self, execution_id: str | None = None) -> list[Saved]:
        """Without their states, oldest first; of one execution, or of all."""
        rows = reversed(self._store().snapshots(self.scope, limit=_LISTED))
        return [_listed(row) for row in rows if execution_id is None or row.execution_id == execution_id]

    def find(self, name: str | None, version: int | None = None, *, prefer: str | None = None) -> Saved:
        """The newest checkpoint, by `name` if that is given; those of execution `prefer` first.

        Raises:
            CheckpointNotFoundError: there is none.
            ConfigurationError: a version without a name.
        """
        if version is not None and name is None:
            raise ConfigurationError("A version belongs to a name: rollback_to_checkpoint(name, version=…).")
        found = self.listed()
        fitting = [one for one in found if name in (None, one.name) and version in (None, one.version)]
        if version is None:
            fitting = [one for one in fitting if one.execution_id == prefer] or fitting
        if fitting:
            return fitting[-1]
        raise CheckpointNotFoundError(self._missing(found, name, version))

    def _missing(self, found: list[Saved], name: str | None, version: int | None) -> str:
        if not found:
            return f"Workflow {self.workflow!r} has no checkpoint. Take one with `await workflow.checkpoint(name, state)` or @checkpoint."
        names = ", ".join(dict.fromkeys(repr(one.name) for one in found))
        versions = [one.version for one in found if one.name == name]
        if versions:
            return f"Checkpoint {name!r} of workflow {self.workflow!r} has no version {version}, only {min(versions)} to {max(versions)}."
        return f"Workflow {self.workflow!r} has no checkpoint {name!r}. There are: {names}."

    def load(self, saved: Saved) -> Saved:
        """The same checkpoint with its state, as fresh objects.

        Raises:
            SignatureError, ChunkCorruptedError, RestoreError: its bytes are not this user's, damaged, or cannot be rebuilt.
        """
        values = self._engine({}).values(saved.id)
        return replace(saved, facts=values[_FACTS], state=values[_STATE])


def _listed(row: SnapshotRow) -> Saved:
    return Saved(row.step_id, row.version, row.id, row.created_at, row.execution_id, row.bytes_total)
