"""The notebook's variables, saved and brought back. Saving never breaks a cell; restoring never happens under a running one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from wflo_nb import events
from wflo_nb.notebook.live import count, warn
from wflo_nb.notebook.transformer import BEGIN

if TYPE_CHECKING:
    from wflo_nb.snapshot.engine import SnapshotEngine
    from wflo_nb.snapshot.records import RestoreReport, SnapshotInfo

#: So many checkpoints are remembered for cards and completion.
_RECENT = 50

#: The shell's own names: history (``_i3``, ``_``), what Python puts into every module (``__name__``), and ours.
_SHELLS_OWN = re.compile(r"_+|_i+|_i?\d+|_[iod]h|__\w+__|In|Out|exit|quit|get_ipython|_exit_code")


def shells_own(shell: Any) -> Callable[[str, object], bool]:
    """Tells the shell's names from the user's. A user's own value under a name such as ``exit`` is the user's."""

    def keep_out(name: str, value: object) -> bool:
        if name == BEGIN:
            return True
        hidden = shell.user_ns_hidden
        return (name in hidden and (hidden[name] is value or name.startswith("_"))) or _SHELLS_OWN.fullmatch(name) is not None

    return keep_out


class Checkpoints:
    """Checkpoints of one notebook in one store."""

    def __init__(self, shell: Any, scope: str, store: Callable[[], Any]) -> None:
        self._shell = shell
        self._scope = scope
        self._store = store
        self._engine: SnapshotEngine | None = None
        self._recent: list[SnapshotInfo] | None = None
        self._given: list[str] = []
        self._warned: set[str] = set()

    @property
    def engine(self) -> SnapshotEngine:
        """The engine over the user's namespace, made at first use."""
        if self._engine is None:
            from wflo_nb.snapshot.engine import SnapshotEngine

            self._engine = SnapshotEngine(self._store(), self._shell.user_ns, scope=self._scope, keep_out=shells_own(self._shell))
        return self._engine

    def reconnect(self) -> None:
        """The store was switched: the next use asks for the new one."""
        self._engine = None
        self._recent = None
        self._given = []

    def take(self, label: str, *, execution_id: str | None = None) -> SnapshotInfo:
        """Save all variables under `label`."""
        taken: SnapshotInfo = self.engine.take(label, execution_id=execution_id)
        if self._recent is not None:
            self._recent = [taken, *self._recent][:_RECENT]
        if execution_id is None:
            self._given = [taken.label, *self._given][:_RECENT]
        events.emit(events.CheckpointTaken(taken))
        return taken

    def try_take(self, label: str, *, execution_id: str | None = None) -> SnapshotInfo | None:
        """As `take`, for the checkpoints around a cell: a failure is told once and harms nothing."""
        try:
            return self.take(label, execution_id=execution_id)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if reason not in self._warned:
                self._warned.add(reason)
                said = f"No checkpoint {label!r} was taken, so this cell cannot be rolled back ({reason}). The cell is not affected."
                warn(said)
            return None

    def names(self) -> list[str]:
        """Names that users gave, known by now, for completion: no question to the store."""
        listed = (c.label for c in self._recent or () if c.execution_id is None and not c.automatic)
        return list(dict.fromkeys([*self._given, *listed]))

    def recent(self) -> list[SnapshotInfo]:
        """The newest checkpoints. The store is asked once; after that, what is taken here is known here."""
        return self.listed()[:_RECENT] if self._recent is None else self._recent

    def listed(self) -> list[SnapshotInfo]:
        """Every checkpoint of this notebook, newest first, as the store has them."""
        found: list[SnapshotInfo] = list(self.engine.list())
        self._recent = found[:_RECENT]
        return found

    def rollback(self, which: str, *, without: Sequence[str] = ()) -> RestoreReport:
        """Bring the variables of a checkpoint back, but for those named in `without`. Returns the engine's report.

        Raises:
            CheckpointNotFoundError: no checkpoint has this id or name.
        """
        report: RestoreReport = self.engine.restore(which, without=without)
        events.emit(events.RolledBack(report.checkpoint, report.undo))
        return report

    def undo(self) -> RestoreReport:
        """Take the last rollback back. Returns the engine's report."""
        report: RestoreReport = self.engine.undo()
        events.emit(events.RolledBack(report.checkpoint, report.undo))
        return report


#: What comes next after a rollback, and after an undo.
BACK = " `%wflo undo` brings back what was there."
BACK_AGAIN = " `%wflo undo` once more goes forward again."

_SAID = {"rebuilt": "restored", "by reference": "kept by reference", "deleted": "deleted", "lost": "could not bring back"}


def told(report: RestoreReport, what: str) -> str:
    """What a restore did, in one sentence."""
    parts = [f"{said} {_some(report.names(fate))}" for fate, said in _SAID.items() if report.names(fate)]
    kept = len(report.names("kept"))
    if kept:
        parts.append(f"{count(kept)} had not changed")
    lost = report.names("lost")
    again = f" Run the code again that makes {_some(lost)}: what cannot be saved does not outlive its kernel." if lost else ""
    return f"{what}: {'; '.join(parts) or 'nothing had changed'}.{again}"


def _some(names: Sequence[str], shown: int = 6) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
