"""Is a budget ever exceeded? wflo_nb and other enforcers, side by side, against a provider that keeps the true bill.

    python benchmarks/budget.py [--only wflo,agentbudget] [--cases sequential,gather50] [--quick]

A provider on loopback, in a process of its own, speaks the real wire formats to the real SDKs and bills by its own counting, also
calls whose answer was cut, timed out, failed after the work, or was retried in secret. Every enforcer runs in an environment of its
own (made below ``.cache/bench`` on first use, pinned in ``benchmarks/peers/requirements``), used as its documentation says
(``benchmarks/peers/<name>_peer.py``). Three figures a case:

ratio       the provider's bill ÷ the budget; more than 1.000 is a broken budget. Where nothing stops a caller, the case ends by itself
            at about four times the budget (twelve in the gather of 500), so ratios of different cases do not compare.
late        calls that reached the provider after its bill had reached the budget, and in the case of swallowed refusals also those
            after the first refusal.
usable      the share of the budget that could be spent before the refusal, for uniform calls of 1/40 of the budget.

For wflo_nb the run is a test: ratio ≤ 1.000 and 0 late calls in all cases, ≥ 0.90 usable where calls are uniform, its own ledger equal
to the bill to the nano-dollar whenever usage was sent and never below the bill otherwise; else the exit code is 1. The others are
only reported: "-" where a case is not supported by their documentation, "!" where a call failed for a reason of theirs.

PostgreSQL cases need ``WFLO_TEST_POSTGRES`` or server binaries; without them they are "not run". ``--quick`` makes the concurrent
cases smaller. wflo_nb alone takes about a minute, all enforcers eleven to twenty-two on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))
sys.path.insert(1, str(PEERS.parents[1]))

from cases import BY_NAME, CASES, Case  # noqa: E402
from environments import NotInstalled, environment, pins, python  # noqa: E402

ADAPTERS = {
    "wflo": "wflo_nb",
    "none": "bare SDK",
    "agentbudget": "agentbudget",
    "shekel": "shekel",
    "litellm_max_budget": "litellm max_budget",
    "litellm_manager": "litellm BudgetManager",
    "pydantic_ai": "pydantic-ai UsageLimits",
    "agent_budget_guard": "agent-budget-guard",
    "agentkavach": "agentkavach",
    "agentcap_guard": "agentcap-guard",
    "ai_cost_guard": "ai-cost-guard",
    "agentguard47": "agentguard47",
    "agentguard47_file": "agentguard47, file store",
    "agent_cost_guardrails": "agent-cost-guardrails",
}


@contextlib.contextmanager
def provider() -> Iterator[dict[str, str]]:
    """The provider's addresses, while it runs."""
    process = subprocess.Popen(
        [sys.executable, str(PEERS / "provider.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PEERS.parents[1])},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # requests of killed callers are still being thought about
            process.kill()
            process.wait()


@contextlib.contextmanager
def postgres() -> Iterator[str | None]:
    """The URL of an empty database; None where there is no server."""
    try:
        import psycopg

        from tests.postgres import Server, _binaries
    except ImportError:
        yield None
        return
    given, binaries = os.environ.get("WFLO_TEST_POSTGRES"), _binaries()
    if not given and binaries is None:
        yield None
        return
    server = None if given else Server(binaries)
    url = given or (server.url if server else "")
    name = f"wflo_bench_{os.getpid()}"
    try:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        yield url.rpartition("/")[0] + f"/{name}"
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        if server is not None:
            server.remove()


class Runner:
    """One enforcer's process."""

    def __init__(self, adapter: str, addresses: dict[str, str], log: Any) -> None:
        self._process = subprocess.Popen(
            [python(adapter), str(PEERS / "run.py"), adapter, addresses["url"], addresses["control"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**environment(adapter), **({"PYTHONPATH": str(PEERS.parents[1])} if adapter == "wflo" else {})},
        )
        self.can = frozenset(self._answer()["can"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the adapter ended")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def ask(self, case: Case, quick: bool, postgres: str | None) -> dict[str, Any]:
        """The outcome of a case."""
        assert self._process.stdin is not None
        print(json.dumps({"case": case.name, "quick": quick, "postgres": postgres}), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def figures(adapter: str, case: Case, result: dict[str, Any]) -> dict[str, Any]:
    """The figures of one outcome."""
    children = result.get("children") or []
    late, ratio = result["late"], result["nano"] / case.budget_nano
    refusals = [c["requests_at_refusal"] for c in children if c.get("requests_at_refusal") is not None]
    if refusals:
        late = max(late, result["requests"] - refusals[0])
    failure = next((c["failure"] for c in children if c.get("failure")), None)
    found = {
        "benchmark": "budget",
        "enforcer": ADAPTERS[adapter],
        "case": case.name,
        "ratio": round(ratio, 4),
        "late": late,
        "usable": round(min(1.0, ratio), 4) if case.uniform else None,
        "requests": result["requests"],
        "answered": sum(c.get("answered", 0) for c in children),
        "refused": sum(c.get("refused", 0) for c in children),
        "failed": sum(c.get("failed", 0) for c in children),
        "interrupts": sum(c.get("interrupts", 0) for c in children),
        "nano": result["nano"],
        "seconds": result["seconds"],
        "failure": failure,
    }
    if result.get("ledger"):
        found["ledger"] = result["ledger"]
    return found


def complaints(case: Case, found: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """What wflo_nb did not keep of its promise in a case."""
    wrong, budget, bill = [], case.budget_nano, result["nano"]
    if bill > budget:
        wrong.append(f"the bill is {bill} nano-USD, the budget {budget}")
    if found["late"]:
        wrong.append(f"{found['late']} calls after exhaustion")
    if case.uniform and bill < 0.9 * budget:
        wrong.append(f"only {bill / budget:.3f} of the budget could be used")
    ledger = result.get("ledger")
    if ledger is None:
        wrong.append(f"its ledger could not be read: {result.get('ledger_failure')}")
    elif case.exact and (ledger["settled"], ledger["unconfirmed"], ledger["held"]) != (bill, 0, 0):
        wrong.append(f"its ledger says {ledger}, the bill {bill}")
    elif ledger["settled"] + ledger["unconfirmed"] + ledger["held"] < bill:
        wrong.append(f"its ledger says {ledger}, less than the bill of {bill}")
    elif ledger["settled"] + ledger["unconfirmed"] + ledger["held"] > budget:
        wrong.append(f"its ledger says {ledger}, more than the budget of {budget}")
    if not result["ended"] or any(c.get("crashed") for c in result["children"]):
        wrong.append(f"a process did not end well: {found['failure']}")
    if case.exact and found["failed"]:
        wrong.append(f"{found['failed']} calls failed: {found['failure']}")
    if case.name == "interrupts" and not found["interrupts"]:
        wrong.append("no interrupt arrived")
    return wrong


def measure(adapter: str, cases: list[Case], quick: bool, addresses: dict[str, str], database: str | None, log: Any) -> dict[str, Any]:
    """All cases of one enforcer: by case, its figures, "-" (not supported) or "not run"; and what wflo_nb did not keep."""
    rows: dict[str, Any] = {}
    wrong: list[str] = []
    runner: Runner | None = None
    for case in cases:
        if runner is None:
            runner = Runner(adapter, addresses, log)
        if not case.needs <= runner.can:
            rows[case.name] = "-"
            continue
        if case.postgres and database is None:
            rows[case.name] = "not run"
            continue
        try:
            result = runner.ask(case, quick, database)
        except (RuntimeError, ValueError) as error:
            rows[case.name] = "not run"
            wrong.append(f"{case.name}: {error}")
            runner = None
            continue
        if "error" in result:
            rows[case.name] = "not run"
            wrong.append(f"{case.name}: {result['error']}")
            continue
        found = figures(adapter, case, result)
        bad = complaints(case, found, result) if adapter == "wflo" else []
        wrong += [f"{case.name}: {sentence}" for sentence in bad]
        rows[case.name] = found
        usable = "" if found["usable"] is None else f"  usable {found['usable']:.3f}"
        print(f"  {case.title:<44}ratio {found['ratio']:7.3f}  late {found['late']:>4}{usable:<15} {found['seconds']:7.1f} s", flush=True)
        for sentence in bad:
            print(f"    WRONG: {sentence}", flush=True)
    if runner is not None:
        runner.close()
    return {"rows": rows, "wrong": wrong}


def cell(value: Any) -> str:
    """One field of the table: ratio, then late calls if there were any."""
    if not isinstance(value, dict):
        return str(value)
    text = f"{value['ratio']:.3f}"
    text = f"**{text}**" if value["ratio"] > 1 else text
    if value["late"]:
        text += f" +{value['late']}"
    # Calls that the enforcer itself broke, so that a low ratio is not taken for good enforcement.
    own = BY_NAME[value["case"]].exact or value["case"] == "interrupts"
    return text + (" !" if value["failed"] and own else "")


def table(cases: list[Case], measured: dict[str, Any]) -> str:
    """The whole comparison as Markdown."""
    names = list(measured)
    lines = ["| case | " + " | ".join(ADAPTERS[n] for n in names) + " |", "|---|" + "---|" * len(names)]
    lines += [
        f"| {case.title} | " + " | ".join(cell(measured[n]["rows"].get(case.name, "not run")) for n in names) + " |" for case in cases
    ]
    worst, late, usable = [], [], []
    for n in names:
        rows = [v for v in measured[n]["rows"].values() if isinstance(v, dict)]
        shares = [v["usable"] for v in rows if v["usable"] is not None]
        worst.append(f"{max((v['ratio'] for v in rows), default=0):.3f}")
        late.append(str(sum(v["late"] for v in rows)))
        usable.append(f"{min(shares):.3f}" if shares else "-")
    lines.append("| **worst ratio** | " + " | ".join(worst) + " |")
    lines.append("| **calls after exhaustion, all cases** | " + " | ".join(late) + " |")
    lines.append("| **least usable share, uniform calls** | " + " | ".join(usable) + " |")
    return "\n".join(lines)


def versions(adapters: list[str]) -> str:
    """What was measured."""
    ours = [f"{name} {importlib.metadata.version(name)}" for name in ("openai", "anthropic")]
    return "; ".join(
        f"{ADAPTERS[a]}: " + (f"{importlib.metadata.version('wflo_nb')} ({', '.join(ours)})" if a == "wflo" else ", ".join(pins(a)))
        for a in adapters
    )


def chosen(text: str | None, known: list[str], what: str) -> list[str]:
    """The names in a list separated by commas; all of them without one."""
    names = [name.strip().replace("wflo_nb", "wflo") for name in text.split(",")] if text else known
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"No {what} is called {', '.join(unknown)}. There are: {', '.join(known)}.")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description="Is a budget ever exceeded? See the top of this file.")
    parser.add_argument("--only", help=f"enforcers, separated by commas: {', '.join(ADAPTERS)}")
    parser.add_argument("--cases", help=f"cases, separated by commas: {', '.join(BY_NAME)}")
    parser.add_argument("--quick", action="store_true", help="fewer tasks, threads, processes and interrupts")
    parser.add_argument("--log", help="where the output of the enforcers goes; nowhere without it")
    asked = parser.parse_args()
    adapters = chosen(asked.only, list(ADAPTERS), "enforcer")
    cases = [BY_NAME[name] for name in chosen(asked.cases, [c.name for c in CASES], "case")]
    measured: dict[str, Any] = {}
    started = time.monotonic()
    with provider() as addresses, postgres() as database, Path(asked.log or os.devnull).open("a") as log:
        for adapter in adapters:
            print(f"{ADAPTERS[adapter]}", flush=True)
            try:
                measured[adapter] = measure(adapter, cases, asked.quick, addresses, database, log)
            except (NotInstalled, RuntimeError) as error:
                print(f"  not run: {error}", flush=True)
                measured[adapter] = {"rows": {}, "wrong": [f"not run: {error}"]}
    print(f"\n{table(cases, measured)}\n")
    print(f"{versions(adapters)}; Python {platform.python_version()}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}")
    print(f"{time.monotonic() - started:.0f} s\n")
    for one in measured.values():
        for row in one["rows"].values():
            if isinstance(row, dict):
                print(json.dumps(row, ensure_ascii=False))
    wrong = measured.get("wflo", {}).get("wrong", [])
    for sentence in wrong:
        print(f"wflo_nb: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
