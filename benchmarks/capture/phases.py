"""One form of a row, once: bare, or under a budget, and what is left behind. This runs in the worker, where the SDK is.

What is looked at here is only what nobody else can see: the error at the scope's edge, threads and tasks. The calls are counted by
the provider and read from the ledger's file, both in the parent.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import thread as pool_of_threads
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import wflo_nb
from benchmarks.capture.cells import LOCAL_RATES, Absent, Place, Row, Work
from wflo_nb.events import CallChanged
from wflo_nb.model import CallState
from wflo_nb.store import current

BARE, PAID, REFUSED, SWALLOWED, MIDWAY = "bare", "paid", "refused", "swallowed", "midway"

#: What a call of another thread or task may take to be refused, after the first refusal has ended the form.
_BETWEEN = 0.1
#: Threads that keep the ledger, and those of the loop's own pool. The process must end in spite of them.
_BY_DESIGN = ("wflo-", "wflo_nb-", "asyncio_")
_BUDGET = {PAID: "1", REFUSED: "0.00015", SWALLOWED: "0.00015", MIDWAY: "1"}


@dataclass
class Seen:
    """What a phase showed.

    Attributes:
        edge: the class of the error that came out of the scope, and whether it is a `BudgetExceededError`.
        tries: what each try of the form itself ended in.
        refusals: how many calls had been refused after each try, as the run counts them.
        threads, tasks: what was still there when the scope had ended, and was not there after the bare form.
        spent_at: when the budget was spent by the first call, in microseconds since 1970.
        execution, store: the id of the run, and the file of the ledger that it is in.
    """

    edge: str | None = None
    exceeded: bool = False
    tries: list[str | None] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    spent_at: int | None = None
    execution: str | None = None
    store: str | None = None


Script = Generator[None, "BaseException | None", None]


def _script(phase: str, row: Row, place: Place, seen: Seen) -> Script:
    """A phase; it yields where the form is to be run, and is sent the error that came of it. One text for forms with and without a loop."""
    if phase == BARE:
        _told(seen, (yield))
        return
    prices: Any = {model: {"input": rates[0], "output": rates[1]} for model, rates in row.rates.items()}
    if place.local:
        prices[place.local] = LOCAL_RATES
    try:
        with ExitStack() as stack, wflo_nb.execution(f"matrix {phase}", budget_usd=_BUDGET[phase], prices=prices or None) as run:
            seen.execution = run.id
            if phase in (REFUSED, SWALLOWED):
                _spend_all()
            elif phase == MIDWAY:
                stack.callback(_spent_by_the_first(run, seen))
            error = _told(seen, (yield), run)
            if phase == SWALLOWED:
                _told(seen, (yield), run)
            elif error is not None:
                raise error  # noqa: TRY301 - into the scope, as if the form stood here
    except Exception as error:
        seen.edge, seen.exceeded = _name(error), isinstance(error, wflo_nb.BudgetExceededError)


def _spent_by_the_first(run: Any, seen: Seen) -> Callable[[], None]:
    """Let the budget be spent as soon as one call is paid. Returns what ends the listening for it."""

    def listen(event: Any) -> None:
        if isinstance(event, CallChanged) and event.call.state == CallState.SETTLED and seen.spent_at is None:
            seen.spent_at = 0
            run.set_budget(0)
            seen.spent_at = time.time_ns() // 1000

    return wflo_nb.subscribe(listen)


@wflo_nb.track_llm_call(model="gpt-4o-mini", provider="openai", usage=lambda usage: usage)
def _spend_all() -> wflo_nb.Usage:
    """A call that no transport sees, which costs all that the budget of the refused phases has."""
    return wflo_nb.Usage(input_tokens=1000, output_tokens=0)


def _told(seen: Seen, error: BaseException | None, run: Any = None) -> BaseException | None:
    if run is not None:
        seen.refusals.append(run.figures().refused)
    seen.tries.append(None if error is None else _name(error))
    return error


def _name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}: {' '.join(str(error).split())[:200]}"


# -- the two ways of running a form --------------------------------------------------------------------------------------------


def perform(row: Row, form: str, phase: str, place: Place, allowed: Leftovers, loop: asyncio.Runner) -> Seen:
    """Run one phase of a form. `allowed` is what the bare form leaves behind: told by that phase, and compared with in the others.

    All forms with a loop share one, as the cells of a notebook do: some frameworks keep a client for it.
    """
    seen, before, work = Seen(), set(threading.enumerate()), row.forms[form]
    assert not isinstance(work, Absent)
    script = _script(phase, row, place, seen)
    if inspect.iscoroutinefunction(work):
        loop.run(_in_loop(script, work, place, seen, allowed, phase))
    else:
        _plain(script, work, place)
    left = _wait(lambda: _threads(before, allowed.pools), allowed, phase)
    if phase == BARE:
        allowed.pools |= {_kind(thread.name) for thread in threading.enumerate() if _idle(thread)}
    seen.threads = _settle(left, allowed.threads, phase)
    if phase != BARE:
        store = current()
        store.write_out()
        seen.store = str(store.location)
    return seen


def _plain(script: Script, work: Work, place: Place) -> None:
    try:
        next(script)
        while True:
            try:
                work(place)
                error = None
            except Exception as raised:
                error = raised
            time.sleep(_BETWEEN)
            script.send(error)
    except StopIteration:
        return


async def _in_loop(script: Script, work: Work, place: Place, seen: Seen, allowed: Leftovers, phase: str) -> None:
    before = asyncio.all_tasks()
    try:
        next(script)
        while True:
            try:
                await work(place)
                error = None
            except Exception as raised:
                error = raised
            await asyncio.sleep(_BETWEEN)
            script.send(error)
    except StopIteration:
        pass
    until = time.monotonic() + allowed.patience
    while (left := _tasks(before)) - allowed.tasks and phase != BARE and time.monotonic() < until:
        await asyncio.sleep(0.05)
    seen.tasks = _settle(left, allowed.tasks, phase)


# -- what is left behind -------------------------------------------------------------------------------------------------------


@dataclass
class Leftovers:
    """Threads and tasks that a library keeps by itself, by kind and number.

    Attributes:
        pools: kinds of its threads that wait for work.
        patience: how many seconds others have to end after a scope.
    """

    pools: set[str]
    patience: float
    threads: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)


def _threads(before: set[threading.Thread], pools: set[str]) -> Counter[str]:
    """Threads begun since, by the kind of their names, but for those that live as long as the process, or as the loop, by design."""
    gc.collect()
    begun = [thread for thread in set(threading.enumerate()) - before if not thread.name.startswith(_BY_DESIGN)]
    return Counter(_kind(thread.name) for thread in begun if _kind(thread.name) not in pools or not _idle(thread))


def _idle(thread: threading.Thread) -> bool:
    """Whether it belongs to a pool and waits for work. A pool grows when it likes, so their number says nothing."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is pool_of_threads._worker.__code__  # type: ignore[attr-defined]


def _tasks(before: set[asyncio.Task[Any]]) -> Counter[str]:
    """Tasks begun since, by the names of their coroutines."""
    return Counter(getattr(task.get_coro(), "__qualname__", "task") for task in asyncio.all_tasks() - before)


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _wait(look: Any, allowed: Leftovers, phase: str) -> Counter[str]:
    """Which threads stay, when what goes by itself has had the time to go."""
    until = time.monotonic() + (1.0 if phase == BARE else allowed.patience)
    while (left := look()) - allowed.threads and time.monotonic() < until:
        time.sleep(0.05)
    return left  # type: ignore[no-any-return]


def _settle(left: Counter[str], allowed: Counter[str], phase: str) -> list[str]:
    """Remember what the bare form leaves; else what is left beyond that."""
    if phase == BARE:
        allowed.update(left)
        return []
    return sorted((left - allowed).elements())
