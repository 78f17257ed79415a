"""What ``%wflo budget`` shows: budgets inside budgets, and who holds their money since when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from wflo_nb.model import BudgetState, CallState, now, usd
from wflo_nb.notebook.tables import Nested, Table
from wflo_nb.notebook.view import duration, money
from wflo_nb.store.holder import is_here, told
from wflo_nb.store.looking import Entry, Lease, Ran

if TYPE_CHECKING:
    from wflo_nb.notebook.session import Session

#: So many budgets of cells are shown unless all are asked for, the newest ones.
_SHOWN = 30
_COLUMNS = ("budget", "cap", "spent", "held", "unconfirmed", "left", "now")
_STATUS = {"RUNNING": "running", "COMPLETED": "done", "FAILED": "failed"}


def budgets(session: Session, *, everything: bool = False) -> Table:
    """The notebook's budget, shared ones around it, and those inside it that run, hold or spent something; or all of the store.

    Raises:
        StoreError: the ledger cannot be read.
    """
    store, mine = session.runtime.store, session.allowance.budget
    mine.open()
    around = {budget.key: budget for budget in (*mine.chain[:-1], *session.allowance.shared())}
    for budget in around.values():
        budget.open()
    own = [] if everything else [*store.budgets([budget.id for budget in around.values()]), *store.budgets(inside=mine.id)]
    states = store.budgets() if everything else own
    runs = store.runs([state.id for state in states])
    held = store.calls(CallState.RESERVED)
    shown, left_out = (states, 0) if everything else _worth_showing(states, runs, _SHOWN)
    outer = next((budget.id for budget in mine.chain[:-1]), None)
    tree = _Tree(shown, runs, held, session.cell_names(), mine.id, outer)
    return tree.table(_note(session, shown, left_out), [*_holds(held, shown, tree), *_leases(store.leases(), shown, tree)])


def one(state: BudgetState, session: Session) -> Table:
    """One budget, with who holds its money."""
    store = session.runtime.store
    held = store.calls(CallState.RESERVED)
    tree = _Tree([state], {}, held, {}, session.allowance.budget.id, None)
    return tree.table("", [*_holds(held, [state], tree), *_leases(store.leases(), [state], tree)])


def _worth_showing(states: Sequence[BudgetState], runs: dict[str, Ran], most: int) -> tuple[list[BudgetState], int]:
    """Without cells that are over and cost nothing, and without the oldest if there are many."""
    always = [s for s in states if s.id not in runs]
    cells = [s for s in states if s.id in runs and (runs[s.id].status == "RUNNING" or s.spent_nano or s.held_nano)]
    cells.sort(key=lambda s: (runs[s.id].status == "RUNNING" or bool(s.held_nano), runs[s.id].started), reverse=True)
    return [*always, *cells[:most]], len(cells[most:])


class _Tree:
    """Budgets in the order of a tree: each below the one that it lies in, oldest first."""

    def __init__(
        self,
        states: Sequence[BudgetState],
        runs: dict[str, Ran],
        held: Sequence[Entry],
        names: dict[str, str],
        mine: str,
        outer: str | None,
    ) -> None:
        self._states = {s.id: s for s in states}
        self._runs = runs
        self._names = names
        self._mine = mine
        self._outer = outer  # the notebook's row may name a period that is over
        self._open = Counter(id for e in held for id in set(e.chain))
        self._inside: dict[str | None, list[BudgetState]] = {}
        for s in sorted(states, key=lambda s: (s.id.startswith("nb:"), runs[s.id].started.timestamp() if s.id in runs else 0.0, s.id)):
            self._inside.setdefault(self._parent(s), []).append(s)

    def table(self, note: str, below: Sequence[Table]) -> Table:
        """All of it."""
        ordered = list(self._walk(None, 0))
        rows = [
            (
                Nested(self.name(s), depth, self.name(self._states[parent]) if parent else ""),
                *(None if n is None else usd(n) for n in _figures(s)),
                self._now(s),
            )
            for s, depth, parent in ordered
        ]
        return Table(_COLUMNS, rows, items=[s for s, _, _ in ordered], note=note, below=below)

    def _parent(self, s: BudgetState) -> str | None:
        parent = self._outer if s.id == self._mine else s.parent_id
        if parent is None and "@" in s.id:
            parent = s.id.rpartition("@")[0]  # a period of a shared budget
        return parent if parent in self._states and parent != s.id else None

    def _walk(self, parent: str | None, depth: int) -> Iterable[tuple[BudgetState, int, str | None]]:
        for s in self._inside.get(parent, ()):
            yield s, depth, parent
            if depth < 32:
                yield from self._walk(s.id, depth + 1)

    def name(self, s: BudgetState) -> str:
        """What the user calls a budget."""
        run = self._runs.get(s.id)
        if run is not None:
            return self._names.get(s.id, run.name)
        if s.id.startswith("nb:") and s.id != self._mine:
            return f"{s.scope} of another kernel ({s.id.removeprefix('nb:')[:8]})"
        per = f", per {s.period}" if s.period and "@" not in s.id else ""
        return f"{s.scope}{per}"

    def named(self, id: str) -> str:
        """The same by id."""
        return self.name(self._states[id])

    def _now(self, s: BudgetState) -> str | None:
        run = self._runs.get(s.id)
        flying = self._open[s.id]
        words = [_STATUS.get(run.status, run.status)] if run else []
        return ", ".join([*words, *([f"{flying} in flight"] if flying else [])]) or None


def _figures(s: BudgetState) -> tuple[int | None, ...]:
    """Cap, spent, held, unconfirmed, left. The defining row of a budget with periods has only a cap: its periods count."""
    if s.period and "@" not in s.id:
        return (s.cap_nano, None, None, None, None)
    return (s.cap_nano, s.spent_nano, s.held_nano, s.unconfirmed_nano, s.left_nano)


def _holds(held: Sequence[Entry], shown: Sequence[BudgetState], tree: _Tree) -> list[Table]:
    ids = {s.id for s in shown}
    entries = [e for e in held if ids.intersection(e.chain) and e.call.reserved_nano]
    if not entries:
        return []
    at = now()

    def row(e: Entry) -> tuple[object, ...]:
        innermost = next((id for id in reversed(e.chain) if id in ids), "")
        c = e.call
        return (
            usd(c.reserved_nano),
            c.model,
            duration((at - c.created_at).total_seconds()),
            tree.named(innermost),
            c.cell,
            told(c.holder),
            c.id,
        )

    columns = ("held", "by a call to", "for", "in budget", "cell", "process", "call")
    return [Table(columns, [row(e) for e in entries], items=[e.call for e in entries], title="Calls in flight")]


def _leases(leases: Sequence[Lease], shown: Sequence[BudgetState], tree: _Tree) -> list[Table]:
    ids = {s.id for s in shown}
    entries = [lease for lease in leases if lease.budget_id in ids]
    if not entries:
        return []
    at = now()
    rows = [
        (
            machine(lease.holder),
            tree.named(lease.budget_id),
            usd(lease.outstanding_nano),
            usd(lease.lost_nano),
            duration((at - lease.since).total_seconds()),
            _end(lease, at),
        )
        for lease in entries
    ]
    note = "Leased money counts as held; lost is what was leased when a machine fell silent, and counts as unconfirmed."
    columns = ("machine", "budget", "leased", "lost", "for", "runs out")
    return [Table(columns, rows, items=entries, title="Leased to machines", note=note)]


def _end(lease: Lease, at: datetime) -> str:
    """When a lease runs out, in words. What a process has set aside does not: it goes back when nobody has needed it for a moment."""
    if _is_purse(lease.holder):
        return "when idle" if lease.outstanding_nano else "lost"
    return f"in {duration((lease.expires_at - at).total_seconds())}" if lease.expires_at > at else "ran out"


def _is_purse(holder: str) -> bool:
    """Whether a lease is a process's on an embedded ledger, and no machine's on a server."""
    return holder.count("|") == 4


def machine(holder: str) -> str:
    """The machine of a lease in words, or the process."""
    if _is_purse(holder):
        return told(holder.rpartition("|")[0])
    return "this machine" if is_here(holder) else holder.partition("|")[0].rpartition("#")[0] or holder


def _note(session: Session, shown: Sequence[BudgetState], left_out: int) -> str:
    said = []
    if session.allowance.budget.cap_nano is None:
        said.append("No cap over the notebook. Set one: %wflo budget 10.")
    doubt = max((s.unconfirmed_nano for s in shown), default=0)
    if doubt:
        said.append(f"{money(doubt)} of what is spent was never confirmed by a provider: %wflo reconcile.")
    if left_out:
        said.append(f"{left_out} older budgets are not shown: %wflo budget --all.")
    return " ".join(said)
