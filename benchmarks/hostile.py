"""A hostile provider: damaged answers and streams of every wire format, as many as you like.

    python benchmarks/hostile.py [--examples N] [--seed N]

Values are replaced inside frames that are otherwise whole, bytes are cut, doubled and inserted, content types and encodings lie, streams
are left or break. Each time the user must get exactly the bytes that came, the call must end, what was paid for must never be recorded
as $0, and nothing may be raised. 10,000 examples by default; exits 1 with the smallest example found if anything is not so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from hypothesis import HealthCheck, given, seed, settings

from tests.hostile import ATTACKS, Attack, declare_all, samples, suffer
from wflo_nb.errors import WfloWarning
from wflo_nb.store import open_store
from wflo_nb.workflow.runtime import runtime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore", WfloWarning)
    suffered: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder, "hostile.db"))
        account = runtime().new_run("hostile", budget_nano=10**18, store=store).account
        found = declare_all(account, list(samples()))

        @seed(options.seed)
        @settings(max_examples=options.examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(attack=ATTACKS)
        def attacked(attack: Attack) -> None:
            suffer(account, found, attack)
            suffered[found[int(attack.sample * len(found))].name] += 1

        started = time.perf_counter()
        attacked()
        figures = account.figures
        store.close()
    seconds = time.perf_counter() - started
    print(f"{sum(suffered.values()):,} damaged answers of {len(suffered)} kinds in {seconds:.0f} s, seed {options.seed}")
    print(
        f"{figures.calls:,} calls, {figures.spent_nano / 10**9:,.4f} USD recorded, {figures.held_nano} nano-USD held; nothing paid was free"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
