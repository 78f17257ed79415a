"""What budgets and tracing tools of other makers add to an LLM call, beside wflo_nb, in one run.

    python benchmarks/overhead_peers.py [--only wflo,langfuse] [--calls N] [--rounds N] [--starts N]

Each tool runs in an environment of its own (made below ``.cache/bench`` on first use, pinned in ``benchmarks/peers/requirements``) and is
used as its documentation says (``benchmarks/peers/<name>_peer.py``). Short blocks of calls on the bare SDK of that environment and with the
tool take turns, in another order each round, and so do the tools, so that a busy moment of the machine hits all of them. Both ways run in
one process; where a tool cannot be taken out again ("apart") in two, in turns. CPU is that of the client's process, all its threads, until
what was recorded is where it is meant to be. Three kinds of calls: a whole answer, a stream of 20 chunks and one of 200; the slope
between these is the cost of a chunk.

added   CPU that the tool adds, µs: the median of the rounds' differences, ± half of its 95 % interval
×       the median of the rounds' ratios to the bare SDK
kept    of three calls, those that the record still holds after the process was killed (SIGKILL) as soon as the last was answered: whole
        answers / streams; "-" where nothing is recorded outside of the process's memory

Telemetry goes to a sink on loopback (``benchmarks/peers/sink.py``) that takes all; a tool of which it gets fewer calls than were made is
reported as failed. No tool can reach another host.

The run is a test of wflo_nb, and its exit code is 1 if wflo_nb with a budget and its durable ledger adds more CPU, for a call or for a
chunk, than the cheapest budget of another maker that keeps a record of such a call. How it stands to the cheapest tracing tool is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
ROOT = PEERS.parents[1]
sys.path.insert(0, str(PEERS))
sys.path.insert(1, str(ROOT))

from blocks import WARM  # noqa: E402
from environments import NotInstalled, environment, pins, python  # noqa: E402

from benchmarks import _lean  # noqa: E402

BARE, WITH = WAYS = "bare", "with"
SHORT, LONG = 20, 200
#: Kinds of calls: the chunks of the answer, and which part of ``--calls`` makes a block of them.
KINDS = {0: 1.0, SHORT: 0.5, LONG: 0.125}
#: Calls of the test whether a record outlives its process.
LAST = 3
#: No way to any host but this one.
SHUT = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "all")}
SHUT |= {name.upper(): value for name, value in SHUT.items()} | {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}


@dataclass
class Row:
    """A tool and what was measured of it.

    Attributes:
        group: ``"ours"``, ``"budget"``, ``"tracing"`` or ``"other"``.
        records: what it keeps of a call, and where.
        adapter: the adapter's name, if it is not the row's.
        environment: whose environment it runs in, if not the adapter's.
        sends: whether it sends to the sink.
        cpu: CPU seconds of a call, by kind and way, one for each round.
        kept: calls that outlived their process, by kind.
        calls: those made with the tool in processes that were not killed.
    """

    key: str
    name: str
    group: str
    records: str
    adapter: str = ""
    environment: str = ""
    sends: bool = False
    cpu: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    kept: dict[int, int | None] = field(default_factory=dict)
    apart: bool = False
    calls: int = 0
    failure: str = ""

    def __post_init__(self) -> None:
        self.adapter = self.adapter or self.key
        self.environment = self.environment or self.adapter
        self.cpu = {(chunks, way): [] for chunks in KINDS for way in WAYS}

    def sdk(self) -> str:
        """The version of the SDK in its environment."""
        program = "import importlib.metadata as m; print(m.version('openai'))"
        return subprocess.run([python(self.environment), "-c", program], capture_output=True, text=True, check=True).stdout.strip()

    def added(self, chunks: int) -> list[float]:
        """CPU seconds added to a call of a kind, by round."""
        return [w - b for b, w in zip(self.cpu[chunks, BARE], self.cpu[chunks, WITH], strict=True)]

    def ratio(self, chunks: int) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(w / b for b, w in zip(self.cpu[chunks, BARE], self.cpu[chunks, WITH], strict=True))

    def slopes(self, way: str) -> list[float]:
        """CPU seconds of a chunk, by round."""
        return [(b - a) / (LONG - SHORT) for a, b in zip(self.cpu[SHORT, way], self.cpu[LONG, way], strict=True)]

    def added_chunk(self) -> list[float]:
        """CPU seconds added to a chunk, by round."""
        return [w - b for b, w in zip(self.slopes(BARE), self.slopes(WITH), strict=True)]


ROWS = [
    Row("wflo", "wflo_nb, budget, SQLite", "ours", "hold, then usage and cost of each call: SQLite"),
    Row("wflo_openai2", "the same, openai 2", "ours", "hold, then usage and cost of each call: SQLite", "wflo", "wflo_openai2"),
    Row("ai_cost_guard", "ai-cost-guard", "budget", "tokens and cost of each call: JSON file, written anew each time"),
    Row("agentcap_guard", "agentcap-guard", "budget", "tokens and cost of each call: lines of a file, sums in SQLite"),
    Row("agentguard47", "agentguard47", "budget", "trace of each call: lines of a file; spend: memory"),
    Row("agentguard47_file", "agentguard47, file store", "budget", "hold and spend: JSON file, synced; traces: lines of a file"),
    Row("litellm_manager", "litellm BudgetManager", "budget", "sums of cost by user and model: JSON file, by a thread"),
    Row("agentkavach", "agentkavach", "budget", "sums: memory; events: sent in batches, to a file if that fails", sends=True),
    Row("agentbudget", "agentbudget", "budget", "memory"),
    Row("shekel", "shekel", "budget", "memory"),
    Row("agent_budget_guard", "agent-budget-guard", "budget", "memory"),
    Row("agent_cost_guardrails", "agent-cost-guardrails", "budget", "memory"),
    Row("pydantic_ai", "pydantic-ai UsageLimits", "budget", "memory", "pydantic_ai_kept"),
    Row("langfuse", "Langfuse", "tracing", "span of each call with content: sent in batches", sends=True),
    Row("mlflow", "MLflow autolog", "tracing", "trace of each call with content: SQLite, by threads"),
    Row("openllmetry", "OpenLLMetry", "tracing", "span of each call with content: sent in batches", sends=True),
    Row("openinference", "OpenInference", "tracing", "span of each call with content: sent in batches", sends=True),
    Row("logfire", "Logfire", "tracing", "span of each call with content: sent in batches", sends=True),
    Row("litellm_completion", "litellm.completion", "other", "nothing"),
    Row("none", "bare SDK again", "other", "nothing: the noise"),
    Row("none_apart", "bare SDK again, apart", "other", "nothing: the noise of two processes", "none_apart", "none"),
]


class Worker:
    """A process that makes blocks of calls in a tool's environment.

    Raises:
        RuntimeError: from all methods, when the process ended; with the last line of what it said.
    """

    def __init__(self, row: Row, folder: str, url: str, sink: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the worker
        ours = {"PYTHONPATH": str(ROOT)} if row.group == "ours" else {}
        self._process = subprocess.Popen(
            [python(row.environment), str(PEERS / "blocks.py"), row.adapter, folder, url, sink],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**environment(row.environment), **SHUT, **ours},
        )
        self.leaves = self._answer()["leaves"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError((self._log.read().strip().splitlines() or ["ended without a word"])[-1])
        return json.loads(line)

    def ask(self, **what: Any) -> Any:
        """Its answer."""
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return self._answer()

    def die(self, chunks: int) -> None:
        """Let it make calls with the tool and be killed at the end of the last."""
        with contextlib.suppress(RuntimeError):
            self.ask(die=LAST, chunks=chunks)
        code = self._process.wait(30)
        if code != -9:
            self._log.seek(0)
            raise RuntimeError((self._log.read().strip().splitlines() or [f"ended with {code}"])[-1])

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Place:
    """Where the tools run: the provider, the sink, and a folder of their own."""

    def __init__(self, url: str, sink: str, folder: str) -> None:
        self.url, self.folder, self._sink = url, Path(folder), sink

    def new(self) -> str:
        """An empty folder."""
        return tempfile.mkdtemp(dir=self.folder)

    def sink(self, name: str) -> str:
        """A sink of that name."""
        return f"{self._sink}/{name}"

    def arrived(self, name: str) -> int:
        """How many calls that sink heard of."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.sink(name), timeout=10) as answer:
            return int(answer.read())


class Team:
    """The one or two processes of a tool."""

    def __init__(self, row: Row, place: Place) -> None:
        self._row = row
        self._folder = place.new()
        first = Worker(row, self._folder, place.url, place.sink(row.key))
        row.apart = first.leaves
        second = Worker(row, place.new(), place.url, place.sink(row.key)) if first.leaves else first
        self.workers = {BARE: second, WITH: first}

    def block(self, way: str, chunks: int, calls: int) -> float:
        """CPU seconds of a call."""
        if way == WITH:
            self._row.calls += calls + WARM
        return float(self.workers[way].ask(way=way, chunks=chunks, calls=calls))

    def close(self) -> None:
        """End them."""
        for worker in set(self.workers.values()):
            worker.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def outlive(row: Row, place: Place) -> dict[int, str]:
    """Make calls in processes that are killed, in a folder for each kind."""
    folders = {}
    for chunks in (0, SHORT):
        folders[chunks] = place.new()
        Worker(row, folders[chunks], place.url, place.sink(f"{row.key}-{chunks}")).die(chunks)
    return folders


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """The sink's address, while it runs."""
    process = subprocess.Popen([sys.executable, str(PEERS / "sink.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(10)


def start(rows: list[Row], place: Place, first: bool) -> dict[str, Team]:
    """The processes of all tools; at the first time also what their records hold after a kill."""
    teams = {}
    for row in rows:
        if row.failure:
            continue
        try:
            folders = outlive(row, place) if first and not row.records.startswith(("memory", "nothing")) else {}
            teams[row.key] = Team(row, place)
            for chunks, folder in folders.items():
                found = teams[row.key].workers[WITH].ask(recorded=folder)
                row.kept[chunks] = place.arrived(f"{row.key}-{chunks}") if found is None and row.sends else found
        except (NotInstalled, RuntimeError, OSError) as error:
            fail(row, error)
            if row.key in teams:
                teams.pop(row.key).close()
    return teams


def fail(row: Row, error: Exception | str) -> None:
    row.failure = str(error)
    print(f"{row.name}: failed: {row.failure}", file=sys.stderr, flush=True)


def measure(rows: list[Row], teams: dict[str, Team], calls: int, rounds: range) -> None:
    """All kinds of all tools, in turns."""
    for number in rounds:
        chance = random.Random(number)
        for chunks, part in KINDS.items():
            for row in chance.sample(rows, len(rows)):
                for way in chance.sample(WAYS, 2):
                    if row.key not in teams:
                        continue
                    try:
                        row.cpu[chunks, way].append(teams[row.key].block(way, chunks, max(int(calls * part), 2)))
                    except (RuntimeError, OSError) as error:
                        fail(row, error)
                        teams.pop(row.key).close()


def middle(values: list[float]) -> tuple[float, float]:
    """The median of some seconds and half of its 95 % interval, by order, in µs."""
    ordered = sorted(values)
    low = max(math.floor((len(ordered) - 1.96 * math.sqrt(len(ordered))) / 2), 0)
    return 1e6 * statistics.median(ordered), 1e6 * (ordered[-1 - low] - ordered[low]) / 2


def keeps(row: Row, chunks: int) -> bool:
    """Whether the record of a call outlived the process."""
    return (row.kept.get(chunks) or 0) >= LAST


def kept(row: Row) -> str:
    """The same, for people."""
    return " / ".join("-" if row.kept.get(c) is None else str(min(row.kept[c] or 0, LAST)) for c in (0, SHORT)) if row.kept else "-"


def report(rows: list[Row]) -> None:
    """The table, and the same as lines of JSON."""
    print("\n| | openai | recorded | kept | a call, added µs | × | a stream of 20, added µs | × | a chunk, added µs | × |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    lines = []
    for row in rows:
        sdk, cells = row.sdk(), []
        line: dict[str, Any] = {"benchmark": "overhead_peers", "tool": row.key, "openai": sdk, "kept": row.kept, "apart": row.apart}
        chunk = statistics.median(row.slopes(WITH)) / statistics.median(row.slopes(BARE))
        for what, added, ratio in (
            ("call", row.added(0), row.ratio(0)),
            (f"stream_of_{SHORT}", row.added(SHORT), row.ratio(SHORT)),
            ("chunk", row.added_chunk(), chunk),
        ):
            us, half = middle(added)
            digits = 1 if what == "chunk" else 0
            cells += [f"{us:.{digits}f} ± {half:.{digits}f}", f"{ratio:.2f}"]
            line |= {f"{what}_us": round(us, 2), f"{what}_half": round(half, 2), f"{what}_ratio": round(ratio, 3)}
        name = f"{row.name}, apart" if row.apart and row.group != "other" else row.name
        print(f"| {name} | {sdk} | {row.records} | {kept(row)} | {' | '.join(cells)} |")
        line["bare_us"] = {chunks: round(1e6 * statistics.median(row.cpu[chunks, BARE]), 1) for chunks in KINDS}
        lines.append(json.dumps(line))
    print("", *lines, sep="\n")


def compare(rows: list[Row]) -> bool:
    """Set ours beside the cheapest of the others; whether ours is as cheap as every budget that keeps a record of such calls."""
    good = True
    budgets = [r for r in rows if r.group == "budget"]
    tracing = [r for r in rows if r.group == "tracing"]
    print()
    for own in (r for r in rows if r.group == "ours"):
        for what, chunks in (("a call", 0), ("a chunk", SHORT)):

            def cost(row: Row, chunks: int = chunks) -> float:
                return middle(row.added_chunk() if chunks else row.added(0))[0]

            if not keeps(own, chunks):
                print(f"{own.name}: WRONG: its record of {what} did not outlive the process")
                good = False
            for kind, others in (("durable budget", [r for r in budgets if keeps(r, chunks)]), ("tracing tool", tracing)):
                if not others:
                    continue
                best = min(others, key=cost)
                holds = cost(own) <= cost(best)
                good = good and (holds or kind == "tracing tool")
                word = "less" if holds else "MORE"
                print(f"{own.name}, {what}: {cost(own):+.1f} µs, {word} than the cheapest {kind}, {best.name} ({cost(best):+.1f} µs)")
    return good


def chosen(words: str) -> list[Row]:
    """The rows named, or all; leaves the program if there is no such row."""
    names = [word for word in words.split(",") if word]
    if unknown := set(names) - {row.key for row in ROWS}:
        sys.exit(f"No such tool: {', '.join(sorted(unknown))}. There are: {', '.join(row.key for row in ROWS)}.")
    return [row for row in ROWS if not names or row.key in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of tools, with commas between")
    parser.add_argument("--calls", type=int, default=24, help="calls of a block (streams: fewer)")
    parser.add_argument("--rounds", type=int, default=16, help="rounds, over all starts")
    parser.add_argument("--starts", type=int, default=2, help="how often the processes are started anew: no two are quite alike")
    options = parser.parse_args()
    rows, began = chosen(options.only), time.monotonic()

    with _lean.provider() as url, sink() as address, tempfile.TemporaryDirectory(prefix="wflo-bench-") as folder:
        place = Place(url, address, folder)
        for number in range(options.starts):
            teams = start(rows, place, number == 0)
            if number == 0:
                print(f"all ready after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            each = math.ceil(options.rounds / options.starts)
            measure(rows, teams, options.calls, range(number * each, (number + 1) * each))
            for team in teams.values():
                team.close()
        for row in rows:
            if row.sends and not row.failure and (got := place.arrived(row.key)) < row.calls:
                fail(row, f"of {row.calls} calls the sink got {got}")
    done = [row for row in rows if not row.failure]
    report(done)
    good = compare(done)
    for row in rows:
        if row.failure:
            print(f"{row.name} could not be measured: {row.failure}")
    versions = {pin for row in done if row.environment != "wflo" for pin in pins(row.environment) if not pin.startswith("anthropic")}
    print(f"\n{', '.join(sorted(versions))}\nPython {sys.version.split()[0]}, {os.cpu_count()} cores, {time.monotonic() - began:.0f} s")
    sys.exit(0 if good and not any(row.failure and row.group == "ours" for row in rows) else 1)


if __name__ == "__main__":
    main()
