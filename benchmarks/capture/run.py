"""A row, from the start of its worker to the worker's end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.capture.cells import FORMS, Absent, Row
from benchmarks.capture.counters import Counter
from benchmarks.capture.environments import variables
from benchmarks.capture.judge import (
    AGAIN,
    CALLS,
    HANGS,
    REFUSED,
    TOKENS,
    Cell,
    Phase,
    judge_leftovers,
    judge_midway,
    judge_paid,
    judge_refused,
)

#: The phases of `phases.py`, which the parent does not import: it has no use for an SDK's environment.
BARE, PAID, ONCE, TWICE, MIDWAY = "bare", "paid", "refused", "swallowed", "midway"
#: How many seconds threads and tasks have to end after a scope, and a process after its last.
PATIENCE = 10.0
END_SECONDS = 20.0
START_SECONDS = 180.0


class Lost(Exception):
    """A worker that ended, or was ended, in the middle of its work."""


class Worker:
    """The process of one row. `versions`: of the packages it uses."""

    def __init__(self, python: Path, table: str, row: Row, home: str) -> None:
        self._row = row
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the worker
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.capture.worker", table, row.name, str(PATIENCE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=home,
            env=variables(row, home),
        )
        self.versions: dict[str, str] = self._answer(START_SECONDS)["versions"]

    def ask(self, form: str, phase: str, counter: Counter) -> dict[str, Any]:
        """What the worker saw in one phase of a form.

        Raises:
            Lost: it ended, or did not answer in time.
        """
        assert self._process.stdin is not None
        order = {"form": form, "phase": phase, "url": counter.url, "local": counter.local, "cap": counter.cap}
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise Lost(f"the process had ended: {self._last_words()}") from None
        answer: dict[str, Any] = self._answer(self._row.seconds)
        return answer

    def _answer(self, seconds: float) -> Any:
        assert self._process.stdout is not None
        # Reading a pipe knows no time-out, so a watchdog ends the process, which ends the read.
        late = threading.Event()
        watchdog = threading.Timer(seconds, lambda: (late.set(), self._process.kill()))
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if line:
            return json.loads(line)
        self._process.wait()
        raise Lost(f"it did not end within {seconds:.0f} s" if late.is_set() else f"the process ended: {self._last_words()}")

    def _last_words(self) -> str:
        self._log.seek(0)
        return (self._log.read().strip().splitlines() or ["without a word"])[-1][:300]

    @property
    def ended(self) -> bool:
        """Whether it has ended already."""
        return self._process.poll() is not None

    def end(self) -> str | None:
        """Ask the worker to end; why it did not end well by itself, or None."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            code = self._process.wait(END_SECONDS)
            said = f"the process ended with {code}: {self._last_words()}" if code else None
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            said = f"the process did not end within {END_SECONDS:.0f} s"
        self._process.stdout.close()
        self._log.close()
        return said


@dataclass
class Result:
    """A row, judged.

    Attributes:
        local: the small model's name, if it answered; `not_local`: why it is never asked.
        failure: why the row could not be run at all.
    """

    name: str
    environment: str
    local: str | None = None
    not_local: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failure: str | None = None

    @property
    def whole(self) -> bool:
        """Whether there is no hole in it."""
        return self.failure is None and not any(cell.holes for cell in self.cells.values())


def measure(python: Path, table: str, row: Row, counter: Counter, environment: str = "") -> Result:
    """Run all forms of a row against a counter, and judge them."""
    result = Result(row.name, environment, counter.local, None if row.local else row.not_local)
    result.absent = {form: row.forms[form].why for form in FORMS if isinstance(row.forms[form], Absent)}  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="wflo-matrix-", ignore_cleanup_errors=True) as home:
        try:
            _measure_forms(
                result, counter, row, [form for form in FORMS if form not in result.absent], lambda: Worker(python, table, row, home)
            )
        except Lost as lost:
            result.failure = str(lost)
    return result


def _measure_forms(result: Result, counter: Counter, row: Row, forms: list[str], start: Callable[[], Worker]) -> None:
    """These forms in one process; those that come after one that is lost with it, in another."""
    worker = start()
    result.versions, cells = worker.versions, []
    for form in forms:
        cells.append(_measure_form(worker, row, form, counter))
        if worker.ended:
            break
    sent, ended = counter.requests, worker.ended
    said = worker.end()
    if counter.requests != sent:
        said = f"{counter.requests - sent} requests were sent after all scopes had ended"
    for cell in cells:
        if said is not None and not ended:
            cell.hole(HANGS, said)
        result.cells[cell.form] = cell
    if len(cells) < len(forms):
        _measure_forms(result, counter, row, forms[len(cells) :], start)


def _measure_form(worker: Worker, row: Row, form: str, counter: Counter) -> Cell:
    cell, phases = Cell(form), {}
    counter.prepare(row, form)
    for phase in (BARE, PAID, ONCE, TWICE, MIDWAY):
        if phase == MIDWAY and len(phases[PAID].counted) < 2:
            continue  # there is no middle
        calls, requests = len(counter.calls()), counter.requests
        try:
            seen = worker.ask(form, phase, counter)
        except Lost as lost:
            cell.hole(HANGS, f"{phase}: {lost}")
            for check in (CALLS, REFUSED, AGAIN):  # whatever was not come to is not proven
                cell.hole(check, f"{phase}: {lost}")
            return cell
        phases[phase] = Phase(seen, counter.calls()[calls:], counter.requests - requests)
    if failed := phases[BARE].seen["tries"][0]:
        cell.hole(CALLS, f"without us it fails: {failed}")
    judge_paid(row, cell, phases[BARE], phases[PAID], counter.local is not None)
    judge_refused(cell, REFUSED, phases[ONCE])
    judge_refused(cell, AGAIN, phases[TWICE])
    if MIDWAY in phases:
        judge_midway(cell, phases[MIDWAY])
    judge_leftovers(cell, phases)
    if doubt := counter.doubt():
        cell.hole(TOKENS, doubt)
    return cell
