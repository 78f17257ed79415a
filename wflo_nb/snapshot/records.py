"""What users are shown of snapshots: infos, plans, reports, differences. Plain data that print well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from wflo_nb.model import Checkpoint

#: What happens to a variable in a restore, in the order in which people want to read it.
KEPT, REBUILT, BY_REFERENCE, DELETED, LOST = "kept", "rebuilt", "by reference", "deleted", "lost"
FATES = (REBUILT, DELETED, BY_REFERENCE, LOST, KEPT)

_MEANING = {
    REBUILT: "brought back as they were",
    DELETED: "made later, removed",
    BY_REFERENCE: "cannot be saved, the same objects stay in place and are not rolled back",
    LOST: "lived in another process; a stub says so when used",
    KEPT: "unchanged, not touched",
}


@dataclass(frozen=True, slots=True)
class SnapshotInfo(Checkpoint):
    """A checkpoint, with what the engine knows beyond the list.

    Attributes:
        scope: whose variables these are.
        automatic: made by a restore so that it can be undone.
        parent_id: the snapshot that was taken before it.
        new_bytes: what taking it added to the store (encoded); None when it was read back from a store.
        trusted: signed with a key this process holds.
    """

    scope: str = "default"
    automatic: bool = False
    parent_id: str | None = None
    new_bytes: int | None = None
    trusted: bool = True

    def __str__(self) -> str:
        left = f", {len(self.left_out)} with something by reference" if self.left_out else ""
        return f"{self.label!r} ({self.id}): {_count(self.variables, 'variable')}, {self.bytes_total:,} bytes{left}"


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore would do, variable by variable. Printing it changes nothing.

    Attributes:
        checkpoint: what would be restored.
        fates: variable → ``kept | rebuilt | by reference | deleted | lost``.
        notes: variable → why, where there is something to say.
    """

    checkpoint: Checkpoint
    fates: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)

    def names(self, fate: str) -> tuple[str, ...]:
        """The variables with this fate, sorted."""
        return tuple(sorted(name for name, its in self.fates.items() if its == fate))

    def __str__(self) -> str:
        return _told(f"Restoring {self.checkpoint.label!r} ({self.checkpoint.id}) would do this:", self.fates, self.notes)


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did.

    Attributes:
        checkpoint: what was restored.
        fates: variable → ``kept | rebuilt | by reference | deleted | lost``.
        notes: variable → why, where there is something to say.
        undo: the automatic checkpoint of the moment before; `SnapshotEngine.undo` goes back to it.
    """

    checkpoint: Checkpoint
    fates: Mapping[str, str]
    undo: SnapshotInfo
    notes: Mapping[str, str] = field(default_factory=dict)

    def names(self, fate: str) -> tuple[str, ...]:
        """The variables with this fate, sorted."""
        return tuple(sorted(name for name, its in self.fates.items() if its == fate))

    def __str__(self) -> str:
        return _told(f"Restored {self.checkpoint.label!r} ({self.checkpoint.id}):", self.fates, self.notes)


@dataclass(frozen=True, slots=True)
class SnapshotDiff:
    """Two states compared by content.

    Variables that share an object are compared together: when one of them changed, all of them are listed as changed.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]
    by_reference: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        parts = [
            f"{what}: {', '.join(names)}"
            for what, names in (
                ("added", self.added),
                ("removed", self.removed),
                ("changed", self.changed),
                ("not comparable", self.by_reference),
            )
            if names
        ]
        return "; ".join(parts) or "no difference"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _told(title: str, fates: Mapping[str, str], notes: Mapping[str, str]) -> str:
    lines = [title]
    for fate in FATES:
        names = sorted(name for name, its in fates.items() if its == fate)
        if names:
            lines.append(f"  {fate} ({_MEANING[fate]}): {', '.join(names)}")
    lines += [f"    {name}: {note}" for name, note in sorted(notes.items())]
    if len(lines) == 1:
        lines.append("  nothing: there are no variables")
    return "\n".join(lines)


def joined(names: Iterable[str], shown: int = 6) -> str:
    """Names for a sentence, shortened."""
    known = sorted(names)
    more = f" and {len(known) - shown} more" if len(known) > shown else ""
    return ", ".join(known[:shown]) + more
