"""What budgets and tracing tools of other makers add to an LLM call, beside wflo_nb, in one run.

    python benchmarks/overhead_peers.py [--only wflo,langfuse] [--calls N] [--rounds N] [--starts N] [--minutes N]

Each tool runs in an environment of its own (made below ``.cache/bench`` on first use, pinned in ``benchmarks/peers/requirements``) and is
used as its documentation says (``benchmarks/peers/<name>_peer.py``). Short blocks of calls on the bare SDK of that environment and with the
tool take turns, in another order each round, and so do the tools, so that a busy moment of the machine hits all of them. Both ways run in
one process; where a tool cannot be taken out again ("apart") in two, in turns. CPU is that of the client's process, all its threads, until
what was recorded is where it is meant to be. Four kinds of calls (``benchmarks/peers/asked.py``): the smallest, with a whole answer; one as
an agent makes it, with tools and some conversation; a stream of 20 chunks and one of 200, between which the slope is the cost of a chunk.

added   CPU that the tool adds, µs: the median of the rounds' differences, ± half of its 95 % interval
×       the median of the rounds' ratios to the bare SDK
kept    of three calls, those that the record still holds after the process was killed (SIGKILL) as soon as the last was answered: whole
        answers / streams; "-" where nothing is recorded outside of the process's memory; where only a sum is kept, the
        calls that it pays for

"bare SDK again" is the noise: figures smaller than its interval say nothing, and a comparison wants a quiet machine.

Telemetry goes to a sink on loopback (``benchmarks/peers/sink.py``) that takes all; a tool of which it gets fewer calls than were made is
reported as failed. No tool can reach another host.

The run is a test of wflo_nb, and its exit code is 1 if wflo_nb with a budget and its durable ledger adds more CPU to a call, to an agent's
step or to a chunk than the cheapest budget of another maker that keeps a record of such a call. Chunks are compared with those that follow
a stream: where the user's own loop finds the usage and hands it over, a chunk costs the tool nothing. How we stand to the cheapest
tracing tool is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS.parents[1]))
sys.path.append(str(PEERS))

from environments import NotInstalled, pins, python  # noqa: E402
from rows import BARE, CALL, KINDS, LONG_STREAM, ROWS, STEP, STREAM, WAYS, WITH, Kind, Row, middle  # noqa: E402
from teams import Place, Team, outlive, sdk, sink  # noqa: E402

from benchmarks import _lean  # noqa: E402


def prepare(row: Row, place: Place, first: bool) -> Team | None:
    """The processes of a tool; at the first time also what its record holds after a kill."""
    team = None
    try:
        folders = outlive(row, place) if first and not row.records.startswith(("memory", "nothing")) else {}
        team = Team(row, place)
        for kind, folder in folders.items():
            found = team.workers[WITH].ask(recorded=folder)
            row.kept[kind] = place.arrived(f"{row.key}-{kind.name}") if found is None and row.sends else found
    except (RuntimeError, OSError) as error:
        fail(row, error)
        if team is not None:
            team.close()
        return None
    return team


def start(rows: list[Row], place: Place, first: bool) -> dict[str, Team]:
    """The processes of all tools, in environments that are made if they are not there."""
    for row in rows:
        try:
            python(row.environment)
        except NotInstalled as error:
            fail(row, error)
    able = [row for row in rows if not row.failure]
    with ThreadPoolExecutor(4) as pool:
        teams = dict(zip((row.key for row in able), pool.map(lambda row: prepare(row, place, first), able), strict=True))
    return {key: team for key, team in teams.items() if team is not None}


def fail(row: Row, error: Exception | str) -> None:
    row.failure = str(error)
    print(f"{row.name}: failed: {row.failure}", file=sys.stderr, flush=True)


def measure(rows: list[Row], teams: dict[str, Team], calls: int, rounds: range, until: float) -> None:
    """All kinds of all tools, in turns: so many rounds, or as many as are begun before a moment."""
    for number in rounds:
        if time.monotonic() > until:
            return
        chance = random.Random(number)
        for kind in KINDS:
            for row in chance.sample(rows, len(rows)):
                for way in chance.sample(WAYS, 2):
                    if row.key not in teams or not teams[row.key].can(kind):
                        continue
                    try:
                        row.cpu[kind, way].append(teams[row.key].block(way, kind, max(int(calls * kind.part), 2)))
                    except (RuntimeError, OSError) as error:
                        fail(row, error)
                        teams.pop(row.key).close()


def report(rows: list[Row]) -> None:
    """The table, and the same as lines of JSON."""
    print("\n| | openai | recorded | kept | a call, µs | × | an agent's step, µs | × | a stream of 20, µs | × | a chunk, µs | × |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    lines = []
    for row in rows:
        version, cells = sdk(row), []
        kept = {kind.name: number for kind, number in row.kept.items()}
        line: dict[str, Any] = {"benchmark": "overhead_peers", "tool": row.key, "openai": version, "kept": kept, "apart": row.apart}
        chunk = statistics.median(row.slopes(WITH)) / statistics.median(row.slopes(BARE))
        whole = [(kind.name, row.added(kind), row.ratio(kind) if row.added(kind) else 0.0) for kind in (CALL, STEP, STREAM)]
        for what, added, ratio in (*whole, ("chunk", row.added_chunk(), chunk)):
            if not added:
                cells += ["-", "-"]
                continue
            us, half = middle(added)
            digits = 1 if what == "chunk" else 0
            cells += [f"{us:.{digits}f} ± {half:.{digits}f}", f"{ratio:.2f}"]
            line |= {f"{what}_us": round(us, 2), f"{what}_half": round(half, 2), f"{what}_ratio": round(ratio, 3)}
        name = f"{row.name}, apart" if row.apart and row.group != "other" else row.name
        print(f"| {name} | {version} | {row.records} | {row.kept_text} | {' | '.join(cells)} |")
        bare = {kind: row.cpu[kind, BARE] for kind in KINDS if row.cpu[kind, BARE]}
        line["bare_us"] = {kind.name: round(1e6 * statistics.median(seconds), 1) for kind, seconds in bare.items()}
        lines.append(json.dumps(line))
    print("", *lines, sep="\n")


def compare(rows: list[Row]) -> bool:
    """Set ours beside the cheapest of the others; whether ours is as cheap as every budget that keeps a record of such calls."""
    good = True
    print()
    for own in (row for row in rows if row.group == "ours"):
        for what, kind in (("a call", CALL), ("an agent's step", STEP), ("a chunk", LONG_STREAM)):
            recorded = CALL if kind is not LONG_STREAM else STREAM

            def cost(row: Row, kind: Kind = kind) -> float:
                return middle(row.added_chunk() if kind is LONG_STREAM else row.added(kind))[0]

            if not own.survives(recorded):
                print(f"{own.name}: WRONG: its record of {what} did not outlive the process")
                good = False
            able = [row for row in rows if row.added(kind) and (row.follows or kind is not LONG_STREAM)]
            durable = [row for row in able if row.group == "budget" and row.survives(recorded)]
            for group, others in (("durable budget", durable), ("tracing tool", [row for row in able if row.group == "tracing"])):
                if not others:
                    continue
                best = min(others, key=cost)
                holds = cost(own) <= cost(best)
                good = good and (holds or group == "tracing tool")
                word = "less" if holds else "MORE"
                print(f"{own.name}, {what}: {cost(own):+.1f} µs, {word} than the cheapest {group}, {best.name} ({cost(best):+.1f} µs)")
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
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no round later than that")
    options = parser.parse_args()
    rows, began = chosen(options.only), time.monotonic()
    until = began + 60 * options.minutes

    with _lean.provider() as url, sink() as address, tempfile.TemporaryDirectory(prefix="wflo-bench-") as folder:
        place = Place(url, address, folder)
        for number in range(options.starts):
            if time.monotonic() > until:
                break
            teams = start(rows, place, number == 0)
            if number == 0:
                print(f"all ready after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            each = math.ceil(options.rounds / options.starts)
            measure(rows, teams, options.calls, range(number * each, (number + 1) * each), until)
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
    for row in (row for row in done if row.key.startswith("none")):
        calls, chunks = middle(row.added(CALL)), middle(row.added_chunk())
        print(f"noise, {row.name}: {calls[0]:+.0f} ± {calls[1]:.0f} µs a call, {chunks[0]:+.1f} ± {chunks[1]:.1f} µs a chunk")
    rounds = min((len(row.cpu[LONG_STREAM, WITH]) for row in done), default=0)
    print("", ", ".join(sorted(versions)), sep="\n")
    seconds = time.monotonic() - began
    print(f"{rounds} rounds, blocks of {options.calls} calls, Python {sys.version.split()[0]}, {os.cpu_count()} cores, {seconds:.0f} s")
    sys.exit(0 if good and not any(row.failure and row.group == "ours" for row in rows) else 1)


if __name__ == "__main__":
    main()
