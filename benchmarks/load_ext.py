"""How long `import wflo_nb` and `%load_ext wflo_nb` take, in fresh processes and beside importing IPython alone.

    python benchmarks/load_ext.py [ROUNDS]

Prints medians of ROUNDS (default 9) fresh processes per line, the lines taken in turns so that a busy moment of the machine hits all of
them. The bytecode is warm: one uncounted round goes first. Only the ratios carry over to another machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile

# Each prints the seconds that count; starting the interpreter is not among them, except where it is the thing measured.
PROGRAMS = {
    "import IPython": "from time import perf_counter as t; a = t(); import IPython; print(t() - a)",
    "import wflo_nb": "from time import perf_counter as t; a = t(); import wflo_nb; print(t() - a)",
    "%load_ext wflo_nb (in a shell)": (
        "from time import perf_counter as t\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "a = t(); shell.run_line_magic('load_ext', 'wflo_nb'); print(t() - a)\n"
        "import os, sys; sys.stdout.flush(); os._exit(0)"  # what the extension goes on loading in the background is not waited for
    ),
}
BASE = "import IPython"
LIMIT = 0.3


def once(program: str) -> float:
    """Seconds that one fresh process reports."""
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "WFLO_STATE_DIR": home, "IPYTHONDIR": home}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)
    if done.returncode != 0:
        sys.exit(f"a measured program failed:\n{program}\n{done.stderr}")
    return float(done.stdout.split()[-1])


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    for program in PROGRAMS.values():
        once(program)
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            seconds[name].append(once(program))
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    print(f"{'median of ' + str(rounds) + ' fresh processes':<34}{'seconds':>9}{'fastest':>9}{'ratio':>8}")
    for name, value in medians.items():
        print(f"{name:<34}{value:>9.3f}{min(seconds[name]):>9.3f}{value / medians[BASE]:>8.2f}")
    loaded = medians["%load_ext wflo_nb (in a shell)"]
    print(f"%load_ext {'is within' if loaded < LIMIT else 'MISSES'} the promised {LIMIT} s (on an idle machine)")
    print(json.dumps({"benchmark": "load_ext", "rounds": rounds, "seconds": {name: round(value, 4) for name, value in medians.items()}}))


if __name__ == "__main__":
    main()
