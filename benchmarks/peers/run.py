"""Runs cases against one enforcer, in that enforcer's environment: one line of JSON in, one line out.

    python run.py ADAPTER PROVIDER_URL CONTROL_URL

The adapter is imported once; each case runs in a fork of this process, so that nothing of one case is left for the next and a heavy
import is paid once. Cases of several processes are several forks; those that are killed get a real SIGKILL.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from base import Enforcer, Given
from cases import BY_NAME, RATES, Case, Tally
from provider import Control

#: Seconds that one case may take.
PATIENCE = 240


def fork(work: Callable[[], Any], result: Path) -> int:
    """Run `work` in a child and leave what it returns in `result`."""
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        value = work()
        result.write_text(json.dumps(value))
    except BaseException as error:
        traceback.print_exc()
        result.write_text(json.dumps({"failure": f"{type(error).__name__}: {error}"[:300], "crashed": True}))
        code = 1
    finally:
        # As an interpreter ends: other threads that are no daemons first, then what was registered.
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(pids: list[int], seconds: float) -> bool:
    """Wait for the children; those that take longer are killed. Whether all ended by themselves."""
    until, left = time.monotonic() + seconds, set(pids)
    while left and time.monotonic() < until:
        for pid in list(left):
            if os.waitpid(pid, os.WNOHANG)[0]:
                left.discard(pid)
        time.sleep(0.005)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return not left


def drive(enforcer: Enforcer, case: Case, given: Given, control: Control, quick: bool) -> dict[str, Any]:
    """One process's part of a case."""
    tally = Tally()
    with enforcer.session(given) as session:
        try:
            case.drive(session, tally, control, quick)
        except session.refusals:
            tally.refused += 1
        believed = session.believed_usd()
    return {**asdict(tally), "believed_usd": believed}


def read(path: Path) -> dict[str, Any]:
    """What a child left; a child that was killed left nothing."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        value = {"failure": "the process was ended: it took too long", "crashed": True}
    return value if isinstance(value, dict) else {"value": value}


def run(enforcer: Enforcer, case: Case, url: str, control: Control, quick: bool, postgres: str | None) -> dict[str, Any]:
    """A whole case: what the provider billed, what the callers saw, what the enforcer wrote down."""
    folder = Path(tempfile.mkdtemp(prefix="wflo-bench-"))  # not a TemporaryDirectory: the end of a fork would remove it
    try:
        os.chdir(folder)  # some enforcers keep their file where they are started
        given = Given(case.budget_usd, url, folder, case.mode != "one", case.client, postgres if case.postgres else None)
        control.reset({"tokens": 400, **case.behave, **({"delay": 60} if case.mode == "kill" else {})}, RATES)
        count = (3 if quick else case.processes) if case.mode == "processes" else 1
        started = time.monotonic()
        if case.mode == "kill":
            kill_in_mid_call(enforcer, case, given, control, quick)
        paths = [folder / f"result-{number}" for number in range(count)]
        pids = [fork(lambda: drive(enforcer, case, given, control, quick), path) for path in paths]
        ended = wait(pids, PATIENCE)
        seconds = time.monotonic() - started
        bill = control.bill()
        wait([fork(lambda: enforcer.ledger(given), folder / "ledger")], 60)
        ledger = read(folder / "ledger")
        return {
            "case": case.name,
            "ended": ended,
            "seconds": round(seconds, 2),
            "nano": bill.nano,
            "requests": bill.requests,
            "late": bill.after(case.budget_nano),
            "children": [read(path) for path in paths],
            "ledger": None if "value" in ledger or "crashed" in ledger else ledger,
            "ledger_failure": ledger.get("failure"),
        }
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)


def kill_in_mid_call(enforcer: Enforcer, case: Case, given: Given, control: Control, quick: bool) -> None:
    """Processes that are killed while the provider, which has billed them already, is still thinking."""
    pids = [fork(lambda: drive(enforcer, case, given, control, quick), given.folder / "killed") for _ in range(case.processes)]
    until = time.monotonic() + 60
    while control.bill().requests < len(pids) and time.monotonic() < until:
        time.sleep(0.02)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    control.behave(delay=0.0)


def main() -> None:
    adapter, url, control_url = sys.argv[1:4]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what enforcers print is no answer
    warnings.simplefilter("ignore")
    enforcer: Enforcer = importlib.import_module(f"{adapter}_peer").Enforcer()
    control = Control(control_url)
    print(json.dumps({"can": sorted(enforcer.can)}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        case = BY_NAME[asked["case"]]
        try:
            result = run(enforcer, case, url, control, asked["quick"], asked.get("postgres"))
        except Exception as error:
            traceback.print_exc()
            result = {"case": case.name, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
