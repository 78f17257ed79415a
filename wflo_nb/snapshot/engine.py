"""Variables of a mapping, saved and brought back. Nothing is ever run again to rebuild a state.

engine = SnapshotEngine(store, namespace)
engine.take("before cleaning")
print(engine.plan("last"))
report = engine.restore("last")
engine.undo()
"""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from wflo_nb.errors import CheckpointNotFoundError, ChunkCorruptedError, ConfigurationError, RestoreError, SnapshotError
from wflo_nb.model import Checkpoint, new_id, now
from wflo_nb.snapshot import references
from wflo_nb.snapshot.chunks import ChangedWhileSavingError, ChunkWriter, read
from wflo_nb.snapshot.manifest import Component, Manifest, verified
from wflo_nb.snapshot.plan import Intent, compare, intend, swap
from wflo_nb.snapshot.records import RestorePlan, RestoreReport, SnapshotDiff, SnapshotInfo, joined
from wflo_nb.snapshot.signing import Signer

if TYPE_CHECKING:
    from wflo_nb.snapshot.image import Image
    from wflo_nb.store.records import SnapshotRow
    from wflo_nb.store.store import Store

#: Objects by reference are kept alive for this many of the newest checkpoints, so that a rollback can give them back.
_HOLDS = 16
_LISTED = 1000
#: The method `list` hides the type inside the class.
_Bytes = list[bytearray]
_Read = list[_Bytes]
_Components = list[Component]
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class SnapshotEngine:
    """Saves and restores the variables of one mapping.

    Variables that share a mutable object are saved and restored together, views over memory included. What cannot be saved is
    kept by reference: the same object comes back in this process, a stub that says what it was in another. Functions defined in
    the namespace see the live namespace after a restore. One thread at a time takes or restores.

    Args:
        store: a `Store`, or what `open_store` takes.
        namespace: whose variables these are, usually ``globals()`` of a notebook.
        scope: the name under which the snapshots are filed (a notebook's id).
        keep_out: tells names that are not the user's; they are neither saved nor deleted. Names such as ``__name__`` never are.
        key: the signing key, instead of ``WFLO_SNAPSHOT_KEY`` or the file in the state folder. At least 16 bytes.
    """

    def __init__(
        self,
        store: Store | str | os.PathLike[str] | None,
        namespace: MutableMapping[str, Any],
        *,
        scope: str = "default",
        keep_out: Callable[[str, object], bool] | None = None,
        key: bytes | None = None,
    ) -> None:
        if store is None or isinstance(store, (str, os.PathLike)):
            from wflo_nb.store import open_store

            store = open_store(store)
        self._store = store
        self._namespace = namespace
        self._scope = scope
        self._keep_out = keep_out
        self._signer = Signer(key)
        self._lock = threading.RLock()
        self._head: str | None = None
        self._undo: str | None = None
        self._holds: OrderedDict[str, references.Hold] = OrderedDict()
        self._same: dict[tuple[object, ...], Component] = {}

    # -- taking -----------------------------------------------------------------------------------------------------------

    def take(self, label: str, *, execution_id: str | None = None, automatic: bool = False) -> SnapshotInfo:
        """Save all variables under `label`. Several checkpoints may have the same label; the newest is found by it.

        Raises:
            StoreError: the store cannot be written; no checkpoint was made.
        """
        with self._lock:
            return self._take(label, execution_id, automatic)[1]

    def _take(self, label: str, execution_id: str | None, automatic: bool) -> tuple[Manifest, SnapshotInfo, Image]:
        text = str(label).encode("utf-8", "replace").decode().replace("\0", " ").strip()
        if not text:
            raise ConfigurationError("A checkpoint needs a name, for example: before-cleaning.")
        for attempt in range(3):
            writer = ChunkWriter(self._store)
            try:
                image = self._picture(writer, frozen=attempt > 0)
                manifest = Manifest(
                    id=new_id("snap"),
                    scope=self._scope,
                    label=text,
                    created_at=now(),
                    components=tuple(image.components),
                    references=image.references,
                    inside=image.inside,
                    previews=image.previews,
                    parent_id=self._head,
                    execution_id=execution_id,
                    automatic=automatic,
                )
                self._store.put_snapshot(manifest.row(self._signer))
            except (ChangedWhileSavingError, ChunkCorruptedError) as error:
                # Memory changed under the hash, or chunks that we counted on were collected meanwhile.
                self._same.clear()
                if attempt == 2:
                    raise SnapshotError(
                        f"Checkpoint {text!r} could not be taken: {error or 'variables keep changing while they are saved'}."
                    ) from error
            else:
                break
        self._head = manifest.id
        self._holds[manifest.id] = image.hold
        while len(self._holds) > _HOLDS:
            self._holds.popitem(last=False)
        return manifest, manifest.info(new_bytes=writer.written), image

    def _variables(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for attempt in range(5):
            try:
                found = dict(self._namespace.items())
                break
            except RuntimeError:  # another thread made a variable
                if attempt == 4:
                    raise
        return {name: value for name, value in found.items() if self._is_users(name, value)}

    def _is_users(self, name: object, value: object) -> bool:
        if type(name) is not str or (name.startswith("__") and name.endswith("__")):
            return False
        return self._keep_out is None or not self._keep_out(name, value)

    def _picture(self, writer: ChunkWriter | None = None, *, frozen: bool = False) -> Image:
        from wflo_nb.snapshot.image import picture  # cloudpickle, at the first checkpoint

        return picture(self._variables(), self._namespace, writer, known=self._known, frozen=frozen)

    def _known(self, component: Component) -> Component:
        """A stored component that is known to be equal, though its bytes differ (see `_remember`)."""
        return self._same.get(component.content, component)

    # -- looking ----------------------------------------------------------------------------------------------------------

    def list(self) -> list[SnapshotInfo]:
        """Every checkpoint of this scope, newest first, automatic ones included."""
        return [self._info(row) for row in self._store.snapshots(self._scope, limit=_LISTED)]

    def stored_bytes(self) -> int:
        """What the checkpoints of this scope take in the store, equal chunks counted once."""
        return self._store.stored_bytes(self._scope)

    def plan(self, which: str | Checkpoint) -> RestorePlan:
        """What `restore` would do now. Changes nothing.

        Raises:
            CheckpointNotFoundError, SignatureError: as `restore`.
        """
        with self._lock:
            manifest = verified(self._find(which), self._signer)
            return self._intend(manifest, self._picture(), frozenset()).plan

    def diff(self, a: str | Checkpoint, b: str | Checkpoint | None = None) -> SnapshotDiff:
        """What changed from checkpoint `a` to checkpoint `b`, or to the variables as they are now."""
        with self._lock:
            old = verified(self._find(a), self._signer)
            if b is None:
                image = self._picture()
                return compare((old.components, old.references), (image.components, image.references))
            new = verified(self._find(b), self._signer)
            return compare((old.components, old.references), (new.components, new.references))

    def _info(self, row: SnapshotRow) -> SnapshotInfo:
        try:
            return Manifest.from_bytes(row.manifest).info(trusted=self._signer.trusts(row.manifest, row.signature))
        except SnapshotError:
            return SnapshotInfo(
                row.id,
                row.step_id,
                row.created_at,
                row.execution_id,
                row.variables,
                row.bytes_total,
                scope=row.scope,
                parent_id=row.parent_id,
                trusted=False,
            )

    def _find(self, which: str | Checkpoint) -> SnapshotRow:
        """The row of an id, a label (the newest wins) or ``"last"`` (the newest that is not automatic)."""
        name = which.id if isinstance(which, Checkpoint) else str(which).strip()
        if name.startswith("snap-"):
            with contextlib.suppress(CheckpointNotFoundError):
                return self._store.snapshot(self._scope, name)
        rows = self._store.snapshots(self._scope, limit=_LISTED)
        if name == "last":
            for row in rows:
                if not self._info(row).automatic:
                    return row
            raise CheckpointNotFoundError("There is no checkpoint yet. Take one first: %wflo checkpoint NAME, or engine.take(NAME).")
        for row in rows:
            if row.step_id == name:
                return row
        labels = list(dict.fromkeys(row.step_id for row in rows))
        near = difflib.get_close_matches(name, [*labels, *(row.id for row in rows)], n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        there = f" There are {len(rows)}: {joined(repr(label) for label in labels)}." if rows else " There is none yet."
        raise CheckpointNotFoundError(f"No checkpoint is called {name!r}.{hint}{there} `%wflo checkpoints` or engine.list() shows all.")

    # -- restoring --------------------------------------------------------------------------------------------------------

    def restore(self, which: str | Checkpoint, *, without: Collection[str] = ()) -> RestoreReport:
        """Bring the variables of a checkpoint back: those that changed are rebuilt, later ones removed, the others not touched.

        Everything is verified and built before the first variable changes; then all names are swapped in one step. The state
        before is saved first, as an automatic checkpoint that `undo` goes back to.

        Args:
            which: an id, a label (the newest wins), ``"last"``, or a checkpoint from `list`.
            without: variables to leave as they are, with those that share objects with them.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            SignatureError: it was not signed with a key of this user; nothing of it was loaded.
            ChunkCorruptedError: stored bytes are damaged; the message names the variables concerned.
            ConfigurationError: `without` names no variable.
            RestoreError: something could not be rebuilt. The variables are as they were.
        """
        with self._lock:
            manifest = verified(self._find(which), self._signer)
            unknown = set(without) - manifest.names - set(self._variables())
            if unknown:
                raise ConfigurationError(
                    f"without={joined(unknown)}: neither checkpoint {manifest.label!r} nor the present has a variable of this name. "
                    "Nothing was restored."
                )
            # An undo of an undo of … would else be named longer each time.
            label = "before undo" if manifest.automatic else f"before restoring {manifest.label}"
            before, undo, image = self._take(label, None, True)
            parent = before.parent_id
            try:
                report = self._restore(manifest, image, undo, frozenset(without))
            except BaseException:
                # Nothing changed, so there is nothing to undo.
                self._head = parent
                self._holds.pop(before.id, None)
                with contextlib.suppress(Exception):
                    self._store.delete_snapshot(self._scope, before.id)
                raise
            self._undo = before.id
            self._head = manifest.id
            return report

    def values(self, which: str | Checkpoint) -> dict[str, Any]:
        """The variables of a checkpoint as fresh objects. The namespace is not touched, and no checkpoint is made.

        Raises:
            CheckpointNotFoundError, SignatureError, ChunkCorruptedError, RestoreError: as `restore`.
        """
        with self._lock:
            manifest = verified(self._find(which), self._signer)
            intent = intend(manifest, {}, [], frozenset(), self._is_users)
            return {**self._built(manifest, intent), **intent.bind}

    def undo(self) -> RestoreReport:
        """Take the last restore back. Another `undo` takes the undo back.

        Raises:
            CheckpointNotFoundError: nothing was restored yet.
        """
        with self._lock:
            which = self._undo
            if which is None:
                which = next((row.id for row in self._store.snapshots(self._scope, limit=_LISTED) if self._info(row).automatic), None)
            if which is None:
                raise CheckpointNotFoundError("There is nothing to undo: no checkpoint was restored yet.")
            return self.restore(which)

    def delete(self, which: str | Checkpoint) -> None:
        """Forget a checkpoint. Chunks that no other one needs are given back by and by."""
        with self._lock:
            row = self._find(which)
            self._store.delete_snapshot(self._scope, row.id)
            self._holds.pop(row.id, None)
            self._same = {
                content: c for content, c in self._same.items() if not set(row.digests) & {d for one in c.cuts for d in one.digests}
            }
            if self._undo == row.id:
                self._undo = None
            self._store.collect()

    def _intend(self, manifest: Manifest, image: Image, without: frozenset[str]) -> Intent:
        return intend(manifest, self._variables(), image.components, without, self._is_users)

    def _restore(self, manifest: Manifest, image: Image, undo: SnapshotInfo, without: frozenset[str]) -> RestoreReport:
        intent = self._intend(manifest, image, without)
        built = self._built(manifest, intent)
        self._remember(intent.rebuild, built)
        fresh = {name: value for name, value in {**built, **intent.bind}.items() if name in intent.plan.fates}
        swap(self._namespace, fresh, intent)
        return RestoreReport(manifest.info(), dict(intent.plan.fates), undo, dict(intent.plan.notes))

    def _built(self, manifest: Manifest, intent: Intent) -> dict[str, Any]:
        for component in intent.rebuild:
            if component.code and manifest.python != _PYTHON:
                raise RestoreError(
                    f"{joined(component.names)} hold code of Python {manifest.python}, and this is Python {_PYTHON}. Restore the "
                    f"others with {_without(manifest, component.names)}, or use a kernel with Python {manifest.python}.",
                    intent.plan,
                )
        raw = self._read(manifest, intent)
        built: dict[str, Any] = {}
        for component, pieces in zip(intent.rebuild, raw, strict=True):
            built.update(self._build(component, pieces, intent.plan))
        return built

    def _read(self, manifest: Manifest, intent: Intent) -> _Read:
        """The bytes of everything to rebuild, all of them proved, before the first is loaded."""
        try:
            flat = iter(read(self._store, [c for component in intent.rebuild for c in component.cuts]))
            return [[next(flat) for _ in component.cuts] for component in intent.rebuild]
        except ChunkCorruptedError as error:
            bad: set[str] = set()
            for component in intent.rebuild:
                try:
                    read(self._store, component.cuts)
                except ChunkCorruptedError:
                    bad.update(component.names)
            if not bad:
                raise
            good = manifest.names - bad
            rest = f" The other {len(good)} can: {_without(manifest, bad)}." if good else ""
            raise ChunkCorruptedError(
                f"{joined(bad)} of checkpoint {manifest.label!r} ({manifest.id}) cannot be restored: {error} Nothing was changed.{rest}"
            ) from error

    def _build(self, component: Component, pieces: _Bytes, plan: RestorePlan) -> dict[str, Any]:
        from wflo_nb.snapshot.rebuild import load

        split = 1 + len(component.arrays)
        try:
            values = load(pieces[0], list(pieces[1:split]), list(pieces[split:]), self._namespace)
        except Exception as error:
            raise RestoreError(
                f"{joined(component.names)} could not be rebuilt: {type(error).__name__}: {error}. All variables are as they were. "
                f"The others can be restored with {_without(plan.checkpoint, component.names)}.",
                plan,
            ) from error
        return dict(zip(component.names, values, strict=True))

    def _remember(self, components: _Components, built: dict[str, Any]) -> None:
        """Loaded objects may pickle to other bytes than they came from (which texts are one object changes), though they are equal.

        So what was just loaded, and nobody has seen yet, is pickled once more, and its bytes are noted as equal to the stored ones:
        the next comparison finds unchanged variables unchanged, and the next checkpoint writes nothing for them.
        """
        from wflo_nb.snapshot.image import picture

        with contextlib.suppress(Exception):  # only a saving: without it the variables count as changed
            again = {c.names: c for c in picture(built, self._namespace).components}
            if len(self._same) > 10_000:
                self._same.clear()
            for component in components:
                live = again.get(component.names)
                if live is not None and live.content != component.content:
                    self._same[live.content] = component


def _without(checkpoint: Manifest | Checkpoint, names: Iterable[str]) -> str:
    """How to restore all but `names`: in a notebook, and by the engine."""
    left = sorted(names)
    return f"`%wflo rollback {checkpoint.id} without={','.join(left)}`, or restore({checkpoint.id!r}, without={left})"
