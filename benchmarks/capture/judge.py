"""Whether a form of a row keeps its promises: what the counter, the ledger's file and the worker say about it, set side by side."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any

from benchmarks.capture.cells import TOOLS, Row
from benchmarks.capture.counters import Counted

CALLS, TOKENS, COST, REFUSED, AGAIN, HANGS = CHECKS = (
    "calls counted = calls recorded",
    "tokens equal",
    "cost equal",
    "refused under a spent budget",
    "refused again after a swallow",
    "nothing hangs",
)


@dataclass
class Cell:
    """One form of a row, judged.

    Attributes:
        calls: how many calls the form makes.
        holes: which checks failed, and why.
    """

    form: str
    calls: int = 0
    holes: dict[str, str] = field(default_factory=dict)

    def hole(self, check: str, why: str) -> None:
        """A check that failed. The first reason is the one that is kept."""
        self.holes.setdefault(check, why)


@dataclass
class Phase:
    """What is known of one phase: the worker's word, the calls that were counted meanwhile, and how many requests arrived."""

    seen: dict[str, Any]
    counted: list[Counted]
    requests: int

    def recorded(self) -> list[dict[str, Any]]:
        """The ledger's rows of its run, read from the file itself."""
        database = sqlite3.connect(self.seen["store"])
        try:
            database.row_factory = sqlite3.Row
            query = "SELECT * FROM llm_calls WHERE execution_id = ? ORDER BY created_at"
            return [dict(row) for row in database.execute(query, (self.seen["execution"],))]
        finally:
            database.close()


def judge_paid(row: Row, cell: Cell, bare: Phase, paid: Phase, local: bool) -> None:
    """Calls, tokens and money of a form that could pay."""
    if ended := paid.seen["edge"]:
        cell.hole(CALLS, f"it ended in {ended}")
    recorded, counted = paid.recorded(), paid.counted
    states = sorted({str(line["state"]) for line in recorded})
    cell.calls = len(counted)
    if not counted or len(recorded) != len(counted) or paid.requests != len(counted) or states != ["SETTLED"]:
        cell.hole(CALLS, f"{paid.requests} requests came, {len(counted)} were counted, {len(recorded)} are recorded: {', '.join(states)}")
    if not local and len(bare.counted) != len(counted):
        cell.hole(CALLS, f"without us it makes {len(bare.counted)} calls, and {len(counted)} under a budget")
    if cell.form == TOOLS and row.tools and not local and len(counted) <= len(row.tools):
        cell.hole(CALLS, f"{len(counted)} calls: the tool was not called, or its result not sent")
    ours = sorted(_of_ledger(line) for line in recorded)
    theirs = sorted(counted)
    if [_tokens(one) for one in ours] != [_tokens(one) for one in theirs]:
        cell.hole(TOKENS, f"the ledger has {[_tokens(one) for one in ours]}, counted were {[_tokens(one) for one in theirs]}")
    if [one.nano for one in ours] != [one.nano for one in theirs] or not sum(one.nano for one in theirs):
        cell.hole(COST, f"the ledger has {[one.nano for one in ours]} nano-USD, counted were {[one.nano for one in theirs]}")


def _of_ledger(line: dict[str, Any]) -> Counted:
    tokens = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
    return Counted(*(int(line[name] or 0) for name in tokens), nano=-1 if line["cost_nano"] is None else int(line["cost_nano"]))


def _tokens(call: Counted) -> tuple[int, ...]:
    return (call.input, call.output, call.cache_read, call.cache_write, call.reasoning)


def judge_refused(cell: Cell, check: str, phase: Phase) -> None:
    """A form under a spent budget, once or twice."""
    seen = phase.seen
    if phase.requests:
        cell.hole(check, f"{phase.requests} requests were sent")
    if not seen["exceeded"]:
        cell.hole(check, f"the scope ended in {seen['edge'] or 'no error'}")
    before = 0
    for number, refused in enumerate(seen["refusals"], 1):
        if refused <= before:
            cell.hole(check, f"try {number} was not refused; it ended in {seen['tries'][number - 1] or 'no error'}")
        before = refused
    recorded = [line for line in phase.recorded() if line["state"] == "REFUSED"]
    if len(recorded) < before or any(line["cost_nano"] for line in recorded):
        cell.hole(check, f"{before} calls were refused, {len(recorded)} refusals are recorded")


def judge_midway(cell: Cell, phase: Phase) -> None:
    """A form of several calls whose budget is spent by the first: those that are under way by then are paid, and no other is sent."""
    recorded, spent_at = phase.recorded(), phase.seen["spent_at"] or 0
    paid = [line for line in recorded if line["state"] == "SETTLED"]
    refused = [line for line in recorded if line["state"] == "REFUSED"]
    if not paid or len(paid) + len(refused) != len(recorded) or phase.requests != len(paid):
        cell.hole(REFUSED, f"the first call spends the budget: {phase.requests} requests, {len(paid)} calls paid of {len(recorded)}")
    if late := [line for line in paid if line["created_at"] > spent_at]:
        cell.hole(REFUSED, f"the first call spends the budget, and {len(late)} begun afterwards were sent")
    if not refused and len(paid) < cell.calls:
        cell.hole(REFUSED, f"the first call spends the budget: {len(paid)} calls of {cell.calls} were sent, and none refused")
    if refused and not phase.seen["exceeded"]:
        cell.hole(REFUSED, f"the first call spends the budget: the scope ended in {phase.seen['edge'] or 'no error'}")


def judge_leftovers(cell: Cell, phases: dict[str, Phase]) -> None:
    """Threads and tasks that were there when a scope had ended."""
    for name, phase in phases.items():
        for kind in ("threads", "tasks"):
            if left := phase.seen[kind]:
                cell.hole(HANGS, f"{name}: {kind} are left: {', '.join(left)}")
