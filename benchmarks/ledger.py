"""How many calls a second the ledger admits and settles, how long they wait, and what growth from 1 to 1,000 kernels does to that.

    python benchmarks/ledger.py [--only WORD] [--seconds S] [--pause S] [--kernels N,N] [--figure docs/images/growth.png] [--quick]

Three parts. **sqlite**: one file, a settle is on the disk when it returns; one process, four, and sixteen threads of one. **clients**: 64
kernels on PostgreSQL as fast as they can, through leases (on four machines of 16 kernels, and each on a machine of its own), and asking
call by call. **growth**: 1 to 1,000 kernels on PostgreSQL, 16 on a machine, whose models answer after half a second, so that N kernels want
to make about 2 N calls a second; through leases and call by call. What a kernel and a machine are here: `_kernels.py`. Call by call, 64
connections are shared by all, as a pooler would have it.

A call's wait is from the moment it is wanted until it is admitted. Calls a second count until the last row is on the server. Each line also
ends as a budget ends, and then no money may be overspent or stranded, no call lost, and every sum exact.

Everything runs on this one machine: clients, server, and the disk of all simulated machines. Exits 1 if a target is missed (1,500 calls a
second with four processes on SQLite, and with 64 kernels on four machines through leases) or the ledger is wrong. ``--quick`` judges the
ledger only, in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks._kernels import Load, play
from wflo_nb.config import Offline

PARTS = ("sqlite", "clients", "growth")
#: Calls a second.
TARGET = 1500
PER_MACHINE = 16
#: Processes that play kernels, and pools of eight connections that calls asked one by one share.
PROCESSES, POOLS = 4, 8
LEASED, ASKED = "through leases", "call by call"
COLUMNS = {
    "calls/s": ("pairs_per_s", ".0f"),
    "wait p50": ("wait_p50_ms", ".2f"),
    "p99": ("wait_p99_ms", ".1f"),
    "worst": ("worst_ms", ".0f"),
    "settle p50": ("finish_p50_ms", ".2f"),
    "first call p50": ("first_p50_ms", ".1f"),
    "trips/call": ("trips_per_call", ".2f"),
    "fewest": ("fewest", "d"),
    "most": ("most", "d"),
}


class Bench:
    """The loads of one run, and what came of them."""

    def __init__(self, home: Path, server: str, options: argparse.Namespace) -> None:
        self._home = home
        self._server = server
        self._options = options
        self.lines: list[dict[str, Any]] = []
        self.wrong: list[str] = []

    def _play(self, part: str, title: str, *, target: int | None = None, **load: Any) -> dict[str, Any]:
        name = f"bench-{os.getpid()}-{len(self.lines)}"
        given = Load(**{"seconds": self._options.seconds, "pause": 0.0, "name": name, "home": self._home, **load})
        began = monotonic()
        try:
            found = play(given)
        except AssertionError as fault:
            self.wrong.append(f"{title}: {fault}")
            found = {}
        line = {"benchmark": "ledger", "part": part, "way": title, "kernels": given.kernels, "machines": given.machines, **found}
        line["took_s"] = monotonic() - began
        self.lines.append(line)
        print(
            f"{title:<38}" + "".join(f"{line.get(key, 0):>{max(len(head) + 3, 9)}{form}}" for head, (key, form) in COLUMNS.items()),
            flush=True,
        )
        if target and not self._options.quick and found and found["pairs_per_s"] < target:
            self.wrong.append(f"{title}: {found['pairs_per_s']:.0f} calls/s, wanted {target}")
        return line

    def _head(self, title: str) -> None:
        print(f"\n{title:<38}" + "".join(f"{head:>{max(len(head) + 3, 9)}}" for head in COLUMNS))

    def sqlite(self) -> None:
        """One file, shared by processes or by threads."""
        self._head(f"SQLite (this disk: {disk(self._home):.0f} syncs/s)")
        for title, kernels, processes in (("1 process", 1, 1), ("4 processes", 4, 4), ("16 threads of a process", 16, 1)):
            if self._options.quick and processes == 1:
                continue
            where = str(self._home / f"{kernels}.db")
            target = TARGET if processes == 4 else None
            self._play(
                "sqlite", title, target=target, where=where, offline="refuse", kernels=kernels, machines=processes, processes=processes
            )

    def clients(self) -> None:
        """Kernels without a pause on PostgreSQL."""
        self._head("PostgreSQL, 64 kernels without a pause")
        leased = self._on_server("clients", f"{LEASED}, 4 machines", "lease", 64, 4, target=TARGET)
        self._on_server("clients", f"{LEASED}, 64 machines", "lease", 64, 64)
        asked = self._on_server("clients", ASKED, "refuse", 64, POOLS)
        if asked.get("pairs") and leased.get("pairs"):
            print(f"a lease makes {leased['pairs_per_s'] / asked['pairs_per_s']:.1f} times as many calls")

    def growth(self) -> None:
        """More and more kernels on PostgreSQL, each with a model that takes its time."""
        pause = self._options.pause
        self._head(f"PostgreSQL, models answer in {pause:g} s")
        for kernels in self._options.kernels:
            who = f"{kernels} kernel{'s' * (kernels > 1)}"
            self._on_server("growth", f"{who}, {LEASED}", "lease", kernels, -(-kernels // PER_MACHINE), pause=pause)
            self._on_server("growth", f"{who}, {ASKED}", "refuse", kernels, min(kernels, POOLS), pause=pause)

    def _on_server(self, part: str, title: str, offline: Offline, kernels: int, machines: int, **more: Any) -> dict[str, Any]:
        processes = min(PROCESSES, machines)
        return self._play(part, title, where=self._server, offline=offline, kernels=kernels, machines=machines, processes=processes, **more)


def disk(folder: Path) -> float:
    """How often a second something can be written so that it survives a power cut: no ledger on this disk is faster alone."""
    fd = os.open(folder / "probe", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(fd, bytes(1 << 20))
        os.fsync(fd)
        began, times = monotonic(), 0
        while monotonic() - began < 0.3:
            os.pwrite(fd, os.urandom(4096), 4096 * (times % 256))  # over what is there, as a database's log does
            os.fdatasync(fd)
            times += 1
        return times / (monotonic() - began)
    finally:
        os.close(fd)


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """A server that is given, or one of our own."""
    if url:
        yield url
        return
    from benchmarks.kill import server as own

    with own() as started:
        yield started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--pause", type=float, default=0.5)
    parser.add_argument("--kernels", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16, 64, 256, 1000])
    parser.add_argument("--postgres", metavar="URL", help="an empty database of your own")
    parser.add_argument("--figure", type=Path, help="draw the growth; a dark twin is written beside it")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.pause, options.kernels = 0.2, 0.05, [20]
    if options.figure:
        from benchmarks import _growth

        _growth.require()
    with tempfile.TemporaryDirectory() as home, server(options.postgres) as url:
        bench = Bench(Path(home), url, options)
        for part in PARTS if options.only is None else (options.only,):
            if part != "clients" or not options.quick:
                getattr(bench, part)()
    print("", *(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}) for line in bench.lines), sep="\n")
    if options.figure:
        _growth.draw([line for line in bench.lines if line["part"] == "growth"], options.figure, options.pause)
    for fault in bench.wrong:
        print(fault, file=sys.stderr)
    sys.exit(bool(bench.wrong))


if __name__ == "__main__":
    main()
