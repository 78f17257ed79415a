"""Is an event loop ever kept waiting by the ledger? With the database 20 ms away, each way.

    python benchmarks/loop.py [--calls N] [--rate N] [--delay SECONDS]

A task of the loop wants to run every half millisecond and notes how late it is, while N calls are made through the real SDK, so many a
second that the loop is mostly idle: by the bare SDK, then under a budget on PostgreSQL behind a proxy that delays every byte, asked call by
call (``WFLO_OFFLINE=refuse``) and through a lease. The provider, the server and the proxy are processes of their own. The SDK keeps the
loop busy too (it builds and parses), so what counts is the difference to the bare SDK. Blocks take turns; the figures are the medians
of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import _lean
from benchmarks.kill import server
from tests.proxy import distant

TICK = 0.0005
ROUNDS = 3


async def lateness(late: list[float]) -> None:
    """Note how late this task runs, in milliseconds, until it is cancelled."""
    while True:
        wanted = perf_counter() + TICK
        await asyncio.sleep(TICK)
        late.append((perf_counter() - wanted) * 1000)


async def block(client: Any, calls: int, rate: float, store: Any) -> tuple[list[float], float]:
    """One block of calls; how late the loop was, and how long the block took."""
    import wflo_nb

    late: list[float] = []
    messages: list[Any] = [{"role": "user", "content": "a question of a few words"}]

    async def one(number: int) -> None:
        await asyncio.sleep(number / rate)
        await client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_completion_tokens=20)

    async with AsyncExitStack() as around:
        if store is not None:
            await around.enter_async_context(wflo_nb.execution("loop", budget_usd=5, store=store))
        watch = asyncio.create_task(lateness(late))
        started = perf_counter()
        await asyncio.gather(*(one(n) for n in range(calls)))
        taken = perf_counter() - started
        watch.cancel()
    return late, taken


async def measure(url: str, ways: dict[str, Any], calls: int, rate: float) -> dict[str, dict[str, float]]:
    from openai import AsyncOpenAI

    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        for number in range(ROUNDS + 1):
            for name, store in ways.items():
                late, taken = await block(client, calls, rate, store)
                late.sort()
                if number:  # the first round warms up
                    p50, p99 = late[len(late) // 2], late[int(len(late) * 0.99)]
                    figures = {"p50": p50, "p99": p99, "max": late[-1], "calls_per_s": calls / taken}
                    found[name].append(figures)
    return {name: {k: round(statistics.median(r[k] for r in rounds), 2) for k in rounds[0]} for name, rounds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--rate", type=float, default=25)
    parser.add_argument("--delay", type=float, default=0.02)
    chosen = parser.parse_args()
    with ExitStack() as around:
        os.environ["WFLO_STATE_DIR"] = around.enter_context(tempfile.TemporaryDirectory())
        provider = around.enter_context(_lean.provider())
        away = around.enter_context(distant(around.enter_context(server()), chosen.delay))
        from wflo_nb.config import Settings
        from wflo_nb.store import open_store

        ways: dict[str, Any] = {"bare SDK": None, "bare SDK again": None}
        for name, offline in (("call by call", "refuse"), ("through a lease", "lease")):
            ways[name] = open_store(away, settings=Settings(offline=offline))  # type: ignore[arg-type]
        figures = asyncio.run(measure(provider, ways, chosen.calls, chosen.rate))
        for store in ways.values():
            if store is not None:
                store.close()
    print(f"{'loop late by, ms':<20}{'p50':>8}{'p99':>8}{'max':>8}{'calls/s':>10}")
    for name, row in figures.items():
        print(f"{name:<20}{row['p50']:>8.2f}{row['p99']:>8.2f}{row['max']:>8.2f}{row['calls_per_s']:>10.0f}")
    print(json.dumps({"benchmark": "loop", "delay_s": chosen.delay, "figures": figures}))


if __name__ == "__main__":
    main()
