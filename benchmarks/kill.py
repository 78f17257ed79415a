"""``kill -9`` at random moments: no acknowledged settle is lost, no hold becomes free money, and all sums are exact.

    python benchmarks/kill.py [--kills N] [--only sqlite|postgres|leased]

Worker after worker reserves and settles on two nested budgets as fast as it can, and says so on a pipe before and after each step; it is
killed at a random microsecond. The next one opens the same store, which settles what its predecessor left. In the end every settle that was
acknowledged is in the ledger with its cost, every call that may have been sent is settled or unconfirmed, nothing is held, the budgets
have spent what the calls cost, and never more than the cap. ``leased`` is PostgreSQL through the spool of a machine, judged by the
server's own tables. 1,000 kills of each by default; exits 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from wflo_nb.config import Settings
from wflo_nb.model import BudgetState, Call, CallState, Execution, ExecutionStatus, new_id, now, now_us
from wflo_nb.store import Shortfall, Store, open_store
from wflo_nb.store.holder import this_holder

CHAIN = ["team:kill", "exec-kill"]
HOLD = 1_000
KINDS = ("sqlite", "postgres", "leased")


def work(where: str, settings: Settings, pipe: int, seed: int) -> None:
    """The life of a worker; it ends by a kill."""
    chance = random.Random(seed)

    def say(word: str, id: str, cost: int = 0) -> None:
        os.write(pipe, f"{word} {id} {cost}\n".encode())

    store = open_store(where, settings=settings)
    say("begun", "-")  # also if there is no money left to say more
    while True:
        call = Call(new_id("call"), "exec-kill", "p", "chat", "m", CallState.RESERVED, now_us(), budget_id=CHAIN[-1], holder=this_holder())
        held = store.reserve(call, CHAIN, lo_nano=HOLD, hi_nano=HOLD)
        if isinstance(held, Shortfall):
            time.sleep(0.001)
            continue
        say("sent", call.id)  # from here on the provider may have been paid
        state, cost = chance.choice([(CallState.SETTLED, chance.randrange(HOLD)), (CallState.UNCONFIRMED, None), (CallState.RELEASED, 0)])
        store.finish(call.changed(state=state, cost_nano=cost, reserved_nano=held, settled_us=now_us()))
        say(state.value, call.id, cost or 0)


def life(where: str, settings: Settings, seed: int, patience: float) -> list[tuple[str, str, int]]:
    """One worker's life; returns what it said."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            work(where, settings, write, seed)
        finally:
            os._exit(3)
    os.close(write)
    said = b""
    with os.fdopen(read, "rb", buffering=0) as pipe:
        said += pipe.read(1) or b""  # it is at work
        time.sleep(random.Random(seed).random() * patience)
        os.kill(pid, signal.SIGKILL)
        while more := pipe.read(1 << 16):
            said += more
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status), "the worker ended by itself"
    lines = said.decode().split("\n")[:-1]
    return [(word, id, int(cost)) for word, id, cost in (line.split() for line in lines) if word != "begun"]


def play(where: str, settings: Settings, kills: int, *, cap: int, patience: float = 0.02) -> dict[str, Any]:
    """That many lives on one store, and the judgement.

    Raises:
        AssertionError: the ledger is not what it must be.
    """
    pid = os.fork()  # this process must not hold connections that its children inherit
    if pid == 0:
        store = open_store(where, settings=settings)
        for id, parent in ((CHAIN[0], None), (CHAIN[1], CHAIN[0])):
            store.open_budget(BudgetState(id, "test", cap, parent_id=parent))
        moment = now()
        store.begin_execution(Execution("exec-kill", "kill", ExecutionStatus.RUNNING, moment, moment), holder="elsewhere|1|1|x")
        store.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, "the store could not be opened"
    sent: set[str] = set()
    ended: dict[str, tuple[str, int]] = {}
    for n in range(kills):
        for word, id, cost in life(where, settings, n, patience):
            if word == "sent":
                sent.add(id)
            else:
                ended[id] = (word, cost)
    store = open_store(where, settings=settings)
    try:
        return judge(store, cap, sent, ended)
    finally:
        store.close()


def judge(store: Store, cap: int, sent: set[str], ended: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """Compare what was said with what is kept."""
    courier = getattr(store, "_courier", None)
    if courier is not None:
        courier.give_back()
    table = store.read("calls")
    kept = dict(zip(table["id"], zip(table["state"], table["cost_nano"], strict=True), strict=True))
    for id, (state, cost) in ended.items():
        assert kept[id] == (state, HOLD if state == "UNCONFIRMED" else cost), f"{id} was {state} at {cost}, and is kept as {kept[id]}"
    for id in sent:
        assert kept[id][0] in ("SETTLED", "UNCONFIRMED", "RELEASED"), f"{id} is {kept[id][0]}"
        assert id in ended or kept[id][0] != "RELEASED" or kept[id][1] == 0, id
    total = sum(cost or 0 for _, cost in kept.values())
    doubt = sum(cost for state, cost in kept.values() if state == "UNCONFIRMED")
    for id in CHAIN:
        # Through a lease, what the server has, and not how it looks from this machine.
        found = store.budget(id) if courier is None else courier._lessor.levels([id])[id]
        sums = (found.spent_nano, found.held_nano, found.unconfirmed_nano)
        assert sums == (total, 0, doubt), f"{id}: {sums} in the budget, {total} spent and {doubt} in doubt by the calls"
        assert total <= cap
    return {
        "calls": len(kept),
        "acknowledged": len(ended),
        "found_unfinished": sum(1 for id in kept if id not in ended),
        "spent_nano": total,
        "cap_nano": cap,
    }


@contextmanager
def server() -> Iterator[str]:
    """A PostgreSQL server of our own."""
    from tests.postgres import Server, _binaries

    binaries = _binaries()
    assert binaries is not None, "no PostgreSQL server on this machine"
    started = Server(binaries)
    try:
        yield started.url
    finally:
        started.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--only", choices=KINDS)
    chosen = parser.parse_args()
    for kind in KINDS if chosen.only is None else (chosen.only,):
        with tempfile.TemporaryDirectory() as home:
            settings = Settings(state_dir=Path(home), offline="lease" if kind == "leased" else "refuse")
            started = time.monotonic()
            if kind == "sqlite":
                found = play(str(Path(home) / "kill.db"), settings, chosen.kills, cap=10**12)
            else:
                with server() as url:
                    found = play(url, settings, chosen.kills, cap=10**12)
        found |= {"benchmark": "kill", "kind": kind, "kills": chosen.kills, "seconds": round(time.monotonic() - started, 1)}
        kept, unfinished = found["acknowledged"], found["found_unfinished"]
        print(f"{kind:<9}{chosen.kills} kills: {kept} acknowledged ends kept, {unfinished} found unfinished, sums exact")
        print(json.dumps(found))


if __name__ == "__main__":
    main()
