"""The signed description of a snapshot: what it holds, in which chunks, and what it does not hold. Canonical JSON, no values."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from wflo_nb.errors import SignatureError, SnapshotError
from wflo_nb.snapshot.chunks import Cut
from wflo_nb.snapshot.records import SnapshotInfo
from wflo_nb.snapshot.signing import Signer
from wflo_nb.store.records import SnapshotRow

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Component:
    """Variables that were saved in one pickle, and where its bytes are.

    Attributes:
        names: the variables, sorted; the pickle is the list of their values.
        stream: the pickle; `arrays` and `buffers`: the memory beside it.
        code: it holds functions or classes by value, so it belongs to one Python version.
    """

    names: tuple[str, ...]
    stream: Cut
    arrays: tuple[Cut, ...] = ()
    buffers: tuple[Cut, ...] = ()
    code: bool = False

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """All its stretches of bytes: the stream first."""
        return (self.stream, *self.arrays, *self.buffers)

    @property
    def size(self) -> int:
        """Bytes before compression and sharing."""
        return sum(c.size for c in self.cuts)

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for two components exactly when their bytes are equal."""
        return (self.names, self.stream, self.arrays, self.buffers)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "names": list(self.names),
            "stream": self.stream.to_json(),
            "arrays": [c.to_json() for c in self.arrays],
            "buffers": [c.to_json() for c in self.buffers],
            "code": self.code,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Component:
        """From a manifest."""
        return cls(
            tuple(data["names"]),
            Cut.from_json(data["stream"]),
            tuple(Cut.from_json(c) for c in data["arrays"]),
            tuple(Cut.from_json(c) for c in data["buffers"]),
            bool(data["code"]),
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot's description.

    Attributes:
        references: variables that are kept by reference: name → ``{"token", "type", "reason"}``.
        inside: variable → what inside it is kept by reference, in words.
        previews: variable → type and size, no values.
        python: the ``major.minor`` that wrote it.
    """

    id: str
    scope: str
    label: str
    created_at: datetime
    components: tuple[Component, ...] = ()
    references: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    inside: Mapping[str, str] = field(default_factory=dict)
    previews: Mapping[str, str] = field(default_factory=dict)
    parent_id: str | None = None
    execution_id: str | None = None
    automatic: bool = False
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def names(self) -> set[str]:
        """All variables."""
        return {name for c in self.components for name in c.names} | set(self.references)

    @property
    def left_out(self) -> dict[str, str]:
        """Variable → why it, or something in it, is by reference only."""
        return {**{name: r["reason"] for name, r in self.references.items()}, **self.inside}

    @property
    def digests(self) -> tuple[bytes, ...]:
        """Every chunk it needs, each once."""
        return tuple(dict.fromkeys(d for c in self.components for one in c.cuts for d in one.digests))

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same content is always the same bytes."""
        data = {
            "format": FORMAT,
            "id": self.id,
            "scope": self.scope,
            "label": self.label,
            "created_at": self.created_at.isoformat(),
            "parent_id": self.parent_id,
            "execution_id": self.execution_id,
            "automatic": self.automatic,
            "python": self.python,
            "versions": {"python": platform.python_version(), "wflo_nb": _version()},
            "components": [c.to_json() for c in self.components],
            "references": {name: dict(r) for name, r in self.references.items()},
            "inside": dict(self.inside),
            "previews": dict(self.previews),
        }
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Manifest:
        """Read a manifest. Reading is harmless; believing it needs `verified`.

        Raises:
            SnapshotError: it is damaged or was written by a newer version.
        """
        try:
            data = json.loads(raw)
            if data["format"] > FORMAT:
                raise SnapshotError(
                    f"This checkpoint was written by a newer version of wflo_nb (format {data['format']}, this one reads {FORMAT}). "
                    "Upgrade wflo_nb."
                )
            return cls(
                id=data["id"],
                scope=data["scope"],
                label=data["label"],
                created_at=datetime.fromisoformat(data["created_at"]),
                components=tuple(Component.from_json(c) for c in data["components"]),
                references=data["references"],
                inside=data["inside"],
                previews=data["previews"],
                parent_id=data["parent_id"],
                execution_id=data["execution_id"],
                automatic=bool(data["automatic"]),
                python=data["python"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SnapshotError(
                f"The description of a checkpoint is damaged ({type(error).__name__}), so it cannot be restored."
            ) from error

    def info(self, *, new_bytes: int | None = None, trusted: bool = True) -> SnapshotInfo:
        """As users see it."""
        return SnapshotInfo(
            id=self.id,
            label=self.label,
            created_at=self.created_at,
            execution_id=self.execution_id,
            variables=len(self.names),
            bytes_total=sum(c.size for c in self.components),
            left_out=self.left_out,
            scope=self.scope,
            automatic=self.automatic,
            parent_id=self.parent_id,
            new_bytes=new_bytes,
            trusted=trusted,
        )

    def row(self, signer: Signer) -> SnapshotRow:
        """As a store keeps it, signed."""
        raw = self.to_bytes()
        return SnapshotRow(
            id=self.id,
            scope=self.scope,
            step_id=self.label,
            created_at=self.created_at,
            manifest=raw,
            signature=signer.sign(raw),
            digests=self.digests,
            execution_id=self.execution_id,
            variables=len(self.names),
            bytes_total=sum(c.size for c in self.components),
            parent_id=self.parent_id,
        )


@cache
def _version() -> str:
    try:
        return version("wflo_nb")
    except PackageNotFoundError:  # run from a folder, not installed
        return "unknown"


def verified(row: SnapshotRow, signer: Signer) -> Manifest:
    """The manifest of a row, once it is certain that this user wrote it, as this very snapshot.

    Raises:
        SignatureError: it was not signed by a trusted key, or it is the manifest of another snapshot.
    """
    signer.verify(row.manifest, row.signature, f"{row.step_id!r} ({row.id})")
    manifest = Manifest.from_bytes(row.manifest)
    if (manifest.id, manifest.scope, manifest.label) != (row.id, row.scope, row.step_id):
        raise SignatureError(
            f"Checkpoint {row.step_id!r} ({row.id}) carries the signed description of another one, {manifest.label!r} ({manifest.id} of "
            f"{manifest.scope!r}). Somebody moved it there, so none of it was loaded."
        )
    return manifest
