"""What tracking and budgeting add to an LLM call, as ratios to the bare SDK, in one run.

    python benchmarks/overhead.py [--calls N] [--rounds N] [--postgres URL | --no-postgres] [--only WORDS]

Short blocks of calls without wflo_nb, tracked, and under a budget (SQLite, then PostgreSQL) take turns in one process, in another order
each round, so that a busy moment of the machine hits all of them. The provider is a process of its own (`_lean.py`). CPU is that of
the whole process, all threads, so the ledger's thread counts; a ratio is the median of the rounds' ratios. "bare again" is the bare SDK
a second time: how far it is from 1 is the noise. "chat" is the smallest call there is, a "step of an agent" one with tools and some
conversation (`benchmarks/peers/asked.py`). The cost of one streamed chunk is the slope between streams of 20 and of 200 chunks, which
come in blocks of as many calls: else a part of what a block costs would count as the chunks'.

Without ``--postgres`` a server is started from the binaries of this machine, as in the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import _lean
from benchmarks.peers import asked

MESSAGES: list[Any] = [{"role": "user", "content": "a question of a few words"}]
BARE = "bare SDK"
SHORT, LONG = 20, 200


@dataclass
class Kind:
    """One kind of call, made in blocks of `calls`. `run` makes one block and returns what it measured beside the CPU, in seconds."""

    name: str
    calls: int
    run: Callable[[int], list[float]]
    cpu: dict[str, list[float]] = field(default_factory=dict)
    beside: dict[str, list[float]] = field(default_factory=dict)


def sync_kinds(url: str, calls: int) -> list[Kind]:
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none", max_retries=0)

    def chat(**what: Any) -> Callable[[int], list[float]]:
        def block(number: int) -> list[float]:
            taken = []
            for _ in range(number):
                started = perf_counter()
                client.chat.completions.create(model="gpt-4o-mini", max_completion_tokens=20, **what)
                taken.append(perf_counter() - started)
            return taken

        return block

    def stream(chunks: int, user: str = "hasty") -> Callable[[int], list[float]]:
        def block(number: int) -> list[float]:
            taken = []
            for _ in range(number):
                started = perf_counter()
                first = 0.0
                for _ in client.chat.completions.create(
                    model="gpt-4o-mini", messages=MESSAGES, max_completion_tokens=chunks, stream=True, user=user
                ):
                    first = first or perf_counter() - started
                taken.append(first)
            return taken

        return block

    return [
        Kind("chat", calls, chat(messages=MESSAGES)),
        Kind("chat, terse answer", calls, chat(messages=MESSAGES, user="terse")),
        Kind("step of an agent", max(calls // 2, 2), chat(**asked.step(1))),
        Kind(f"stream of {SHORT}", max(calls // 4, 2), stream(SHORT)),
        Kind(f"stream of {LONG}", max(calls // 4, 2), stream(LONG)),
        Kind(f"patient stream of {SHORT}", max(calls // 8, 2), stream(SHORT, "patient")),
    ]


def async_kinds(url: str, calls: int, loop: asyncio.AbstractEventLoop) -> list[Kind]:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)

    async def chat(**what: Any) -> float:
        started = perf_counter()
        await client.chat.completions.create(model="gpt-4o-mini", max_completion_tokens=20, **what)
        return perf_counter() - started

    async def stream(chunks: int) -> float:
        started = perf_counter()
        first = 0.0
        answer = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_completion_tokens=chunks, stream=True)
        async for _ in answer:
            first = first or perf_counter() - started
        return first

    def one_by_one(call: Callable[[], Awaitable[float]]) -> Callable[[int], list[float]]:
        async def block(number: int) -> list[float]:
            return [await call() for _ in range(number)]

        return lambda number: loop.run_until_complete(block(number))

    def together(number: int) -> list[float]:
        async def block() -> list[float]:
            return [t for _ in range(0, number, 16) for t in await asyncio.gather(*(chat(messages=MESSAGES) for _ in range(16)))]

        return loop.run_until_complete(block())

    return [
        Kind("async chat", calls, one_by_one(lambda: chat(messages=MESSAGES))),
        Kind("async step of an agent", max(calls // 2, 2), one_by_one(lambda: chat(**asked.step(1)))),
        Kind("async chat, 16 at a time", max(calls, 16) // 16 * 16, together),
        Kind(f"async stream of {SHORT}", max(calls // 4, 2), one_by_one(lambda: stream(SHORT))),
        Kind(f"async stream of {LONG}", max(calls // 4, 2), one_by_one(lambda: stream(LONG))),
    ]


Way = Callable[[], AbstractContextManager[Any]]


def ways(stores: dict[str, Any]) -> dict[str, Way]:
    import wflo_nb

    found: dict[str, Way] = {BARE: nullcontext, "bare again": nullcontext}
    for name, store in stores.items():
        found[f"tracked, {name}"] = lambda store=store: wflo_nb.execution(store=store)  # type: ignore[misc]
        found[f"budget, {name}"] = lambda store=store: wflo_nb.execution(budget_usd=5, store=store)  # type: ignore[misc]
    return found


def block(kind: Kind, way: Way, calls: int) -> tuple[float, float]:
    """CPU seconds per call, everything recorded, and the median of what the block measured beside it."""
    with way() as run:
        gc.collect()  # what other blocks left is not this one's
        started = process_time()
        beside = kind.run(calls)
        if run is not None:
            run.account.ledger.drain()  # ends of calls are booked a moment later: their cost counts
            run.account.store.write_out()
        cpu = process_time() - started
    return cpu / len(beside), statistics.median(beside)


def measure(kind: Kind, ways: dict[str, Way], rounds: int) -> None:
    for name, way in ways.items():
        block(kind, way, min(kind.calls, 20))
        kind.cpu[name], kind.beside[name] = [], []
    for number in range(rounds):
        names = list(ways)
        random.Random(number).shuffle(names)
        for name in names:
            cpu, beside = block(kind, ways[name], kind.calls)
            kind.cpu[name].append(cpu)
            kind.beside[name].append(beside)


def against_bare(values: dict[str, list[float]], name: str) -> float:
    return statistics.median(v / b for v, b in zip(values[name], values[BARE], strict=True))


def report(kind: Kind) -> None:
    print(f"\n{kind.name} ({kind.calls} calls × {len(kind.cpu[BARE])})".ljust(44) + f"{'CPU ms':>9}{'ratio':>8}{'wall ms':>10}{'ratio':>8}")
    for name in kind.cpu:
        ms, wall = (1000 * statistics.median(v[name]) for v in (kind.cpu, kind.beside))
        ratios = against_bare(kind.cpu, name), against_bare(kind.beside, name)
        print(f"  {name:<41}{ms:>9.3f}{ratios[0]:>8.3f}{wall:>10.3f}{ratios[1]:>8.3f}")
        say(kind.name, name, cpu_ms=ms, cpu_ratio=ratios[0], wall_ms=wall, wall_ratio=ratios[1])


def report_slope(short: Kind, long: Kind) -> None:
    """The cost of one chunk, from the slope between a short and a long stream."""
    slopes = {name: [(b - a) / (LONG - SHORT) for a, b in zip(short.cpu[name], long.cpu[name], strict=True)] for name in short.cpu}
    title = "one chunk of a stream" if short.name.startswith("stream") else "one chunk of an async stream"
    print(f"\n{title}".ljust(44) + f"{'CPU µs':>9}{'ratio':>8}")
    for name, values in slopes.items():
        us, ratio = 1e6 * statistics.median(values), statistics.median(values) / statistics.median(slopes[BARE])
        print(f"  {name:<41}{us:>9.2f}{ratio:>8.3f}")
        say(title, name, cpu_us=us, cpu_ratio=ratio)


_lines: list[str] = []


def say(kind: str, way: str, **figures: float) -> None:
    _lines.append(json.dumps({"benchmark": "overhead", "kind": kind, "way": way, **{k: round(v, 4) for k, v in figures.items()}}))


@contextmanager
def postgres(url: str | None) -> Iterator[str]:
    """A database of a given server, or of one started for the moment."""
    if url is not None:
        yield url
        return
    from tests import postgres as servers

    binaries = servers._binaries()
    if binaries is None:
        sys.exit("No PostgreSQL binaries were found; name a server with --postgres URL, or leave it out with --no-postgres.")
    server = servers.Server(binaries)
    try:
        yield server.url
    finally:
        server.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=32, help="calls of a block (streams: fewer)")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--postgres", metavar="URL", help="a database of your own")
    parser.add_argument("--no-postgres", action="store_true")
    parser.add_argument("--only", default="", help="kinds of calls whose name holds these words")
    options = parser.parse_args()

    with ExitStack() as stack:
        os.environ["WFLO_STATE_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
        os.environ.pop("WFLO_STORE", None)
        from wflo_nb.store import open_store

        stores = {"SQLite": open_store()}
        if not options.no_postgres:
            stores["PostgreSQL"] = open_store(stack.enter_context(postgres(options.postgres)))
        for store in stores.values():
            stack.callback(store.close)
        url = stack.enter_context(_lean.provider())
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        stack.callback(lambda: loop.run_until_complete(loop.shutdown_asyncgens()))
        kinds = [k for k in (*sync_kinds(url, options.calls), *async_kinds(url, options.calls, loop)) if options.only in k.name]
        for kind in kinds:
            measure(kind, ways(stores), options.rounds)
            report(kind)
        by_name = {k.name: k for k in kinds}
        for word in ("", "async "):
            short, long = by_name.get(f"{word}stream of {SHORT}"), by_name.get(f"{word}stream of {LONG}")
            if short and long:
                report_slope(short, long)
        print("", *_lines, sep="\n")


if __name__ == "__main__":
    main()
