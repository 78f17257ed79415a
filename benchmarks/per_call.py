"""What tracking and budgeting add to one LLM call, against a provider on loopback that answers at once.

    python benchmarks/per_call.py [CALLS]

The same client makes CALLS (default 150) chat calls per block; blocks without wflo_nb, tracked, and under a budget take turns five times in
one process, so that a busy moment of the machine hits all of them. The provider runs in a process of its own. Wall time holds the
fsync of the embedded ledger, so it depends on the disk; CPU time does not. A real call takes hundreds of milliseconds: compare with that.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter, process_time
from typing import Any

PROVIDER = """
import sys
from wflo_nb.testing import FakeProvider
with FakeProvider() as provider:
    print(provider.openai_url, flush=True)
    sys.stdin.read()
"""
ROUNDS = 5
BASE = "bare SDK"


@contextmanager
def provider() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", PROVIDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(10)


def milliseconds(call: Callable[[], Any], calls: int) -> tuple[float, float]:
    """Wall and CPU milliseconds per call."""
    wall, cpu = perf_counter(), process_time()
    for _ in range(calls):
        call()
    return (perf_counter() - wall) * 1000 / calls, (process_time() - cpu) * 1000 / calls


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    from openai import OpenAI

    import wflo_nb

    with tempfile.TemporaryDirectory() as home, provider() as url:
        os.environ["WFLO_STATE_DIR"] = home
        os.environ.pop("WFLO_STORE", None)
        client = OpenAI(base_url=url, api_key="none", max_retries=0)
        messages: list[Any] = [{"role": "user", "content": "a question of a few words"}]

        def whole() -> None:
            client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_completion_tokens=20)

        def stream() -> None:
            for _ in client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_completion_tokens=20, stream=True):
                pass

        ways: dict[str, Callable[[], Any]] = {
            BASE: nullcontext,
            "tracked": wflo_nb.execution,
            "under a budget": lambda: wflo_nb.execution(budget_usd=1),
        }
        for kind, call in (("chat", whole), ("stream of 20 chunks", stream)):
            report(kind, calls, measure(ways, call, calls))


def measure(ways: dict[str, Callable[[], Any]], call: Callable[[], None], calls: int) -> dict[str, list[tuple[float, float]]]:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            with way():
                seconds = milliseconds(call, calls if number else 20)
            if number:  # the first round warms up
                taken[name].append(seconds)
    return taken


def report(kind: str, calls: int, taken: dict[str, list[tuple[float, float]]]) -> None:
    wall = {name: statistics.median(w for w, _ in values) for name, values in taken.items()}
    cpu = {name: statistics.median(c for _, c in values) for name, values in taken.items()}
    print(f"{kind + f', {calls} calls × {ROUNDS}':<34}{'wall ms':>9}{'CPU ms':>9}{'CPU added':>11}")
    for name in taken:
        print(f"{name:<34}{wall[name]:>9.2f}{cpu[name]:>9.2f}{cpu[name] - cpu[BASE]:>11.2f}")
    rounded = {name: {"wall_ms": round(wall[name], 3), "cpu_ms": round(cpu[name], 3)} for name in taken}
    print(json.dumps({"benchmark": "per_call", "kind": kind, "figures": rounded}))


if __name__ == "__main__":
    main()
