"""A hundred thousand tiny calls: nothing drifts, memory stays flat, the file grows by the same for each call, reports stay fast.

    python benchmarks/many.py [--calls N] [--sdk N]

Calls are made by four threads under one budget of the embedded store, most of them as the gate makes them (``reserve`` and ``finish`` of
the account, each with a cost of its own), some through the real OpenAI SDK over loopback (`_lean.py`). After 20, 60 and 100 % of each
kind everybody pauses, and it is noted: what Python's allocator has given out (tracemalloc), the memory of the process, the size of the
file and its log, and, in a process of its own, how long each report takes.

Exits 1 if the sum of the calls, the budget, the execution, the account's own figures and the arithmetic are not one integer; if memory
or the file grows by more than `BOUNDS` say; or if a report is slower than there.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import _lean
from wflo_nb.budget import endings
from wflo_nb.budget.account import Account
from wflo_nb.model import CallState, now_us, usd
from wflo_nb.store import Store, open_store

THREADS = 4
HOLD = 50_000
#: Bytes that are no growth: of a file, which grows by whole pages, and of a process, whose allocator takes some at a time.
_PAGES, _TAKEN = 1 << 18, 4 << 20
#: What a call to the stand-in costs, in nano-USD: 20 tokens in at 150, 20 out at 600.
SDK_COST = 20 * 150 + 20 * 600
PARTS = (0.2, 0.6, 1.0)
#: Fewer calls than this tell no growth from the noise of an allocator: then only drift is judged.
ENOUGH = 5_000
BOUNDS = {
    "python_bytes_per_call": 16,  # between 20 and 100 %
    "rss_bytes_per_call": 150,
    "file_growth": 1.15,  # bytes per call of the last 40 %, over those of the 40 % before
    # Per 100,000 calls: ten times what plain SQL and pandas.read_sql took for so many (store.md: 0.15 s and 1.1 s).
    "sum_s": 1.5,
    "table_s": 11.0,
    "tree_s": 0.5,  # whatever the number of calls
}


def cost_of(number: int) -> int:
    """What a call costs: all different, so that one that is lost, doubled or rounded shows in the sum."""
    return 1 + number * 7919 % HOLD


def by_account(account: Account) -> Callable[[int], None]:
    """How the gate makes a call, without HTTP."""

    def one(number: int) -> None:
        call = account.reserve(account.new_call("openai", "chat", "gpt-4o-mini", stream=False), HOLD, HOLD)
        assert call is not None
        endings.finish(account, call.changed(state=CallState.SETTLED, cost_nano=cost_of(number), settled_us=now_us()))

    return one


def by_sdk(url: str) -> Callable[[int], None]:
    """A call of the real SDK."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none", max_retries=0)

    def one(number: int) -> None:
        question: Any = [{"role": "user", "content": f"question {number}"}]
        client.chat.completions.create(model="gpt-4o-mini", messages=question, max_completion_tokens=20)

    return one


def make(one: Callable[[int], None], numbers: range, account: Account) -> None:
    """Make the calls of these numbers in threads that are charged to the account."""
    from wflo_nb import _context

    waiting = iter(numbers)
    lock = threading.Lock()
    faults: list[BaseException] = []

    def worker() -> None:
        while not faults:
            with lock:
                mine = list(itertools.islice(waiting, 50))
            if not mine:
                return
            try:
                for number in mine:
                    one(number)
            except BaseException as fault:
                faults.append(fault)

    assert _context.around() is account
    threads = [threading.Thread(target=worker) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    account.ledger.drain()


def look(path: Path) -> dict[str, int]:
    """The size of things now."""
    gc.collect()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(PASSIVE)")  # what is in the log by chance counts where it will be
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "python_bytes": tracemalloc.get_traced_memory()[0],
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "file_bytes": path.stat().st_size,
        "log_bytes": path.with_name(path.name + "-wal").stat().st_size,
    }


def reports(path: str) -> dict[str, float]:
    """How long a fresh reader waits for each report, in seconds; imports are not counted."""
    from wflo_nb import report

    store = open_store(path)
    report.checkpoints(store)  # imports, and the same way for an empty table

    def tree() -> None:  # what `%wflo budget` reads
        budgets = store.budgets()
        store.runs([b.id for b in budgets])
        store.calls(CallState.RESERVED)
        store.leases()

    asked: dict[str, Callable[[], object]] = {
        "costs by model": lambda: report.costs("model", store),
        "costs by cell": lambda: report.costs("cell", store),
        "costs by day": lambda: report.costs("day", store),
        "executions": lambda: report.executions(store),
        "calls": lambda: report.calls(store),
        "budget tree": tree,
    }
    found = {}
    for name, ask in asked.items():
        started = time.perf_counter()
        ask()
        found[name] = round(time.perf_counter() - started, 4)
    store.close()
    return found


def in_another_process(path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--reports", str(path)]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))


def agree(store: Store, account: Account, expected: int, calls: int) -> list[str]:
    """What differs among all who know what was spent."""
    rows = store.read("calls", where={"execution_id": account.id})
    budget = store.budget(account.id)
    known = {
        "the calls": sum(rows["cost_nano"]),
        "the budget": budget.spent_nano,
        "the execution": store.execution(account.id).cost_nano,
        "the account": account.figures.spent_nano,
    }
    wrong = [f"{who} say {nano} nano-USD, and it is {expected}" for who, nano in known.items() if nano != expected]
    if len(set(rows["id"])) != calls:
        wrong.append(f"{len(rows['id'])} rows of {calls} calls")
    if budget.held_nano or budget.unconfirmed_nano or account.figures.held_nano:
        wrong.append(f"money is still held: {budget}")
    return wrong


def play(kind: str, calls: int, store: Store, path: Path, url: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """All calls of one kind; what was seen at each stop, and what is wrong."""
    import wflo_nb

    expected = calls * SDK_COST if url else sum(cost_of(n) for n in range(calls))
    seen: list[dict[str, Any]] = []
    taken, done = 0.0, 0
    with wflo_nb.execution(kind, budget_usd=usd(expected + THREADS * 10**9), store=store) as run:
        one = by_sdk(url) if url else by_account(run.account)
        for part in (0.05, *PARTS):  # the first part fills pools and caches
            started, upto = time.monotonic(), int(calls * part)
            make(one, range(done, upto), run.account)
            done = upto
            taken += time.monotonic() - started
            if part in PARTS:
                looks = {"kind": kind, "calls": done, "calls_per_s": round(done / taken), **look(path)}
                seen.append(looks | {"reports": in_another_process(path) if calls >= ENOUGH else {}})
    return seen, agree(store, run.account, expected, calls)


def judge(seen: list[dict[str, Any]], whole: int) -> tuple[dict[str, float], list[str]]:
    """Growth per call, and what is beyond its bound."""
    first, middle, last = seen
    calls = last["calls"] - middle["calls"]  # the last stretch: what a library fills once, it has filled by then
    more = {what: last[what] - middle[what] for what in ("python_bytes", "rss_bytes")}
    grown = {f"{what}_per_call": bytes / calls if what == "python_bytes" or bytes > _TAKEN else 0.0 for what, bytes in more.items()}
    grown["file_bytes_per_call"] = (last["file_bytes"] - first["file_bytes"]) / (last["calls"] - first["calls"])
    early, late = ((b["file_bytes"] - a["file_bytes"]) / (b["calls"] - a["calls"]) for a, b in ((first, middle), (middle, last)))
    grown["file_growth"] = late / early if (late - early) * calls > _PAGES else 1.0
    reports = last["reports"]
    size = max(1.0, whole / 100_000)
    grown["sum_s"] = max(v for k, v in reports.items() if k.startswith("costs") or k == "executions") / size
    grown["table_s"] = reports["calls"] / size
    grown["tree_s"] = reports["budget tree"]
    wrong = [f"{last['kind']}: {name} is {grown[name]:.3g}, more than {most}" for name, most in BOUNDS.items() if grown[name] > most]
    return grown, wrong


def show(seen: list[dict[str, Any]]) -> None:
    names = list(seen[0]["reports"])
    head = f"\n{seen[0]['kind']:<12}{'calls/s':>9}{'Python MB':>11}{'RSS MB':>9}{'file MB':>9}{'log MB':>8}"
    print(head + "".join(f"{n + ', s':>19}" for n in names))
    for one in seen:
        sizes = [one[f"{what}_bytes"] / 1e6 for what in ("python", "rss", "file", "log")]
        print(
            f"{one['calls']:>11,} {one['calls_per_s']:>9}{sizes[0]:>11.2f}{sizes[1]:>9.1f}{sizes[2]:>9.2f}{sizes[3]:>8.2f}"
            + "".join(f"{one['reports'][n]:>19.3f}" for n in names)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--sdk", type=int, default=40_000, help="calls through the real SDK; 0 leaves them out")
    parser.add_argument("--reports", metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reports:
        print(json.dumps(reports(options.reports)))
        return
    wrong: list[str] = []
    lines = []
    with tempfile.TemporaryDirectory() as home, _lean.provider() as url:
        os.environ["WFLO_STATE_DIR"] = home
        os.environ.pop("WFLO_STORE", None)
        path = Path(home) / "many.db"
        store = open_store(path)
        if max(options.calls, options.sdk) >= ENOUGH:
            tracemalloc.start()
        whole = 0
        for kind, calls, provider in (("account", options.calls, None), ("SDK", options.sdk, url)):
            if not calls:
                continue
            whole += calls
            seen, drifted = play(kind, calls, store, path, provider)
            grown, beyond = judge(seen, whole) if calls >= ENOUGH else ({}, [])
            show(seen)
            print("  " + ", ".join(f"{name} {value:.3g}" for name, value in grown.items()))
            wrong += drifted + beyond
            lines.append({"benchmark": "many", "kind": kind, "calls": calls, "drift": len(drifted), **grown, "seen": seen})
        store.close()
    print("", *map(json.dumps, lines), sep="\n")
    for fault in wrong:
        print(fault, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
