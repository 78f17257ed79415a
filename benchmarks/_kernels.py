"""Many kernels on one budget, in a few processes: what `ledger.py` measures with.

A simulated kernel is what one kernel is to the ledger: an execution and a notebook of its own inside a team's budget, so that every
call is charged to three rows, and one call at a time. Its model is a pause. What is real: the public `Store` (SQLite, PostgreSQL call by
call, or PostgreSQL through the spool and lease of a machine), the disk, the server and the sockets. What is not: kernels share a few
processes, at most `CALLERS` of each process are inside the ledger at once, and all machines share this one's cores and disk.

A simulated machine is a `Store` with a state folder of its own, so with a spool, a lease and a courier of its own.

The life of each kernel: it opens its budgets and makes a first call, all at once (with a lease, that call has to ask the server whether
there is money for this execution); it makes calls for so many seconds, of which each costs a random part of its hold; its calls are sent
in; the team's cap is then lowered to what is out plus some last calls, and all go on until the ledger says that no money is left and none
can come back. So each measurement also ends as a budget ends, and is judged.
"""

from __future__ import annotations

import heapq
import multiprocessing
import random
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from wflo_nb.config import Offline, Settings
from wflo_nb.model import BudgetState, Call, CallState, Execution, ExecutionStatus, new_id, now, now_us
from wflo_nb.store import Shortfall, Store, open_store
from wflo_nb.store.holder import this_holder

#: Kernels of one process that are inside the ledger at once.
CALLERS = 16
#: What a call holds, in nano-USD.
HOLD = 2_000_000
#: More than anybody spends here: 1,000 USD.
AMPLE = 10**12
#: Calls that may still be made when the cap is lowered, by all together.
LAST_CALLS = 100
#: Seconds between two tries of a kernel that was told to wait for money; and after how many it no longer believes in it.
RETRY, PATIENCE = 0.1, 20.0
TEAM = "team:bench"


@dataclass(frozen=True)
class Load:
    """Who calls.

    Attributes:
        where: what `open_store` takes.
        offline: ``"lease"`` or ``"refuse"`` (every call asks the server); without a meaning for SQLite.
        kernels: how many there are; they are spread evenly over the `machines`, and these over the `processes`.
        seconds: how long they call; `pause`: how long a model takes to answer.
        name: the ``team_id`` of everything that this load writes.
        home: folder for the machines' state.
    """

    where: str
    offline: Offline
    kernels: int
    machines: int
    processes: int
    seconds: float
    pause: float
    name: str
    home: Path

    def settings(self, machine: int) -> Settings:
        """What one machine is told."""
        return Settings(team=self.name, offline=self.offline, state_dir=self.home / f"{self.name}-machine-{machine}")


@dataclass
class Kernel:
    """One simulated kernel, and what it went through, in seconds."""

    store: Store
    number: int
    chance: random.Random
    held: Call | None = None
    spent: int = 0
    pairs: int = 0
    first: float = 0.0
    waits: list[float] = field(default_factory=list)
    finishes: list[float] = field(default_factory=list)
    refused_since: float | None = None

    def begin(self) -> None:
        """Enter its execution and its budgets, and make a first call."""
        at = now()
        name = f"bench{self.number}"
        self.chain = [TEAM, f"nb:{name}", f"exec-{name}"]
        self.store.open_budget(BudgetState(self.chain[1], "notebook", None, parent_id=TEAM))
        self.store.open_budget(BudgetState(self.chain[2], "cell", AMPLE, parent_id=self.chain[1]))
        self.store.begin_execution(Execution(self.chain[-1], name, ExecutionStatus.RUNNING, at, at), holder=this_holder())
        started = monotonic()
        assert self.reserve(started) is None, "no money, while there is plenty"
        self.finish(whole=False)
        self.first = self.waits.pop()
        self.pairs, self.finishes = 0, []

    def reserve(self, due: float) -> Shortfall | None:
        """Ask for a call that it wanted to make at `due`."""
        id, execution = new_id("call"), self.chain[-1]
        call = Call(id, execution, "openai", "chat", "gpt-4o-mini", CallState.RESERVED, now_us(), budget_id=execution, holder=this_holder())
        held = self.store.reserve(call, self.chain, lo_nano=HOLD, hi_nano=HOLD)
        if isinstance(held, Shortfall):
            return held
        self.waits.append(monotonic() - due)
        self.held = call.changed(reserved_nano=held)
        return None

    def finish(self, *, whole: bool) -> None:
        """Its call is answered."""
        assert self.held is not None
        cost = HOLD if whole else self.chance.randrange(HOLD // 4, HOLD)
        started = monotonic()
        self.store.finish(self.held.changed(state=CallState.SETTLED, cost_nano=cost, settled_us=now_us()))
        self.finishes.append(monotonic() - started)
        self.spent += cost
        self.pairs += 1
        self.held = None


def _drive(kernels: list[Kernel], step: Callable[[Kernel, float], float | None]) -> None:
    """Let kernels work, by their times: a step gets a kernel and when it was due, and says when it is due again, None for never."""
    lock = threading.Lock()
    start = monotonic()
    waiting = [(start, kernel.number, kernel) for kernel in kernels]
    faults: list[BaseException] = []

    def caller() -> None:
        while not faults:
            with lock:
                if not waiting:
                    return  # fewer kernels are left than callers
                due, _, kernel = heapq.heappop(waiting)
            if (early := due - monotonic()) > 0:
                sleep(early)
            try:
                again = step(kernel, due)
            except BaseException as fault:
                faults.append(fault)
                return
            if again is not None:
                with lock:
                    heapq.heappush(waiting, (again, kernel.number, kernel))

    _together(min(CALLERS, len(kernels)), caller)
    if faults:
        raise faults[0]


def _together(number: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _work(kernels: list[Kernel], seconds: float, pause: float) -> None:
    """Calls until the time is over; what is under way then is finished. With a pause they do not start all at once."""
    began = monotonic()
    until = began + seconds
    late = {kernel.number: kernel.chance.random() * pause for kernel in kernels}

    def step(kernel: Kernel, due: float) -> float | None:
        if kernel.number in late:
            due += late.pop(kernel.number)
            if pause:
                return due
        if kernel.held is None:
            if due >= until or monotonic() >= until:
                return None
            assert kernel.reserve(due) is None, "no money, while there is plenty"
            if pause:
                return monotonic() + pause
        kernel.finish(whole=False)
        return monotonic()

    _drive(kernels, step)


def _exhaust(kernels: list[Kernel]) -> int:
    """Calls until no money is left and none can come back; returns how many kernels gave up although some was there."""
    gave_up = []

    def step(kernel: Kernel, due: float) -> float | None:
        short = kernel.reserve(due)
        if short is None:
            kernel.refused_since = None
            kernel.finish(whole=True)
            return monotonic()
        if (short.budget.cap_nano or 0) - short.budget.spent_nano < HOLD:  # as an account decides whether to wait
            return None
        kernel.refused_since = kernel.refused_since or monotonic()
        if monotonic() - kernel.refused_since > PATIENCE:
            gave_up.append(kernel.number)
            return None
        return monotonic() + RETRY

    _drive(kernels, step)
    return len(gave_up)


def _process(load: Load, mine: int, pipe: Connection) -> None:
    """The life of one process; it says a word at each stop and waits for leave to go on."""
    try:
        stores = {m: open_store(load.where, settings=load.settings(m)) for m in range(load.machines) if m % load.processes == mine}
        numbers = [k for k in range(load.kernels) if k % load.machines in stores]
        for store in stores.values():
            store.open_budget(BudgetState(TEAM, "team", AMPLE))
        kernels = [Kernel(stores[k % load.machines], k, random.Random(k)) for k in numbers]
        _drive(kernels, lambda kernel, _: kernel.begin())
        pipe.send("ready")
        pipe.recv()
        started = monotonic()
        _work(kernels, load.seconds, load.pause)
        worked = monotonic() - started
        for store in stores.values():
            store.budget(TEAM)  # whoever looks sends in first
        found: dict[str, Any] = {
            "worked": worked,
            "sent_in": monotonic() - started,
            "pairs": [k.pairs for k in kernels],
            "first": [k.first for k in kernels],
        }
        found |= {"waits": [w for k in kernels for w in k.waits], "finishes": [w for k in kernels for w in k.finishes]}
        pipe.send(found)
        pipe.recv()
        gave_up = _exhaust(kernels)
        for kernel in kernels:
            kernel.store.end_execution(kernel.chain[-1], ExecutionStatus.COMPLETED)
        for store in stores.values():
            store.close()
        pipe.send({"gave_up": gave_up, "spent": {k.number: (k.pairs + 1, k.spent) for k in kernels}})
    except BaseException:
        pipe.send(traceback.format_exc())


def _hear(pipes: list[Connection]) -> list[Any]:
    heard = [pipe.recv() for pipe in pipes]
    for word in heard:
        if isinstance(word, str) and word != "ready":
            raise RuntimeError(f"A process of the benchmark failed.\n{word}")
    return heard


def play(load: Load) -> dict[str, Any]:
    """Let them call; returns the figures.

    Raises:
        AssertionError: the ledger is not what it must be.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["psycopg", "wflo_nb.store.leased", "wflo_nb.store.reading", "wflo_nb.store.sqlite"])
    looker = open_store(load.where, settings=Settings(team=load.name, offline="refuse"))
    opening = monotonic()
    pairs = [context.Pipe() for _ in range(load.processes)]
    processes = [context.Process(target=_process, args=(load, n, there)) for n, (_, there) in enumerate(pairs)]
    pipes = [here for here, _ in pairs]
    try:
        for process in processes:
            process.start()
        _hear(pipes)
        opening = monotonic() - opening
        asked = _transactions(load)
        for pipe in pipes:
            pipe.send("work")
        worked = _hear(pipes)
        asked = _transactions(load) - asked
        out = looker.budget(TEAM)
        cap = out.spent_nano + out.held_nano + LAST_CALLS * HOLD
        looker.set_cap(TEAM, cap)
        for pipe in pipes:
            pipe.send("end")
        ended = _hear(pipes)
        figures = _figures(load, worked)
        trips = {"trips_per_call": asked / max(1, figures["pairs"]), "opening_s": opening}
        return figures | trips | _judged(looker, cap, ended)
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
        looker.close()


def _transactions(load: Load) -> int:
    """How many transactions a server has committed; not asked in a short run, because the counters of its sessions are a second late."""
    if "://" not in load.where or load.seconds < 1:
        return 0
    import psycopg

    sleep(1.1)
    with psycopg.connect(load.where, autocommit=True) as connection:
        row = connection.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])


def _figures(load: Load, worked: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = [n for one in worked for n in one["pairs"]]
    waits, finishes = (sorted(w for one in worked for w in one[kind]) for kind in ("waits", "finishes"))
    first = sorted(w for one in worked for w in one["first"])
    # Until the last row is on the server, since what lies on a machine unsent is not done; without the last wait for a model.
    taken = max(max(one["worked"] - load.pause, load.seconds) + one["sent_in"] - one["worked"] for one in worked)
    by_process = [sum(one["pairs"]) for one in worked]
    return {
        "pairs": sum(pairs),
        "pairs_per_s": sum(pairs) / taken,
        "sent_in_after_s": max(one["sent_in"] - one["worked"] for one in worked),
        "wait_p50_ms": 1000 * waits[len(waits) // 2],
        "wait_p99_ms": 1000 * waits[int(len(waits) * 0.99)],
        "worst_ms": 1000 * max(waits[-1], finishes[-1]),
        "finish_p50_ms": 1000 * finishes[len(finishes) // 2],
        "first_p50_ms": 1000 * first[len(first) // 2],
        "first_worst_ms": 1000 * first[-1],
        "fewest": min(by_process if len(worked) > 1 else pairs),
        "most": max(by_process if len(worked) > 1 else pairs),
    }


def _judged(looker: Store, cap: int, ended: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare what the kernels did with what is kept, when everything is given back."""
    spent = {number: one for process in ended for number, one in process["spent"].items()}
    total = sum(cost for _, cost in spent.values())
    status = looker.aggregate("status")
    assert status["status"] == ["SETTLED"], status
    assert status["calls"] == [sum(pairs for pairs, _ in spent.values())], "calls were lost, or counted twice"
    assert status["cost_nano"] == [total], f"calls cost {total}, and {status['cost_nano']} is kept"
    budgets = {b.id: b for b in looker.budgets()}
    team = budgets.pop(TEAM)
    assert team.spent_nano == total, f"calls cost {total}, and the team's budget has {team.spent_nano}"
    for number, (_, cost) in spent.items():
        for id in (f"nb:bench{number}", f"exec-bench{number}"):
            assert budgets[id].spent_nano == cost, f"{id}: {budgets[id].spent_nano} is kept, {cost} was spent"
    left = cap - team.spent_nano
    held = team.held_nano + sum(b.held_nano for b in budgets.values()) + team.unconfirmed_nano
    leased = sum(lease.outstanding_nano + lease.lost_nano for lease in looker.leases())
    gave_up = sum(one["gave_up"] for one in ended)
    figures = {"overspent_nano": max(0, -left), "stranded_nano": max(held, leased) + (left if left >= HOLD else 0), "gave_up": gave_up}
    assert not any(figures.values()), f"{figures}: must all be 0"
    return figures
