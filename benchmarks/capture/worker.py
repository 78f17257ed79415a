"""The process of one row, in the environment of its SDK.

    python -m benchmarks.capture.worker TABLE ROW

It answers lines of JSON (form, phase, url, local, cap) with lines of JSON, until its input ends; then it must end by itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import os
import sys
import warnings
from importlib import metadata
from typing import Any

from benchmarks.capture.cells import Absent, Place, Row
from benchmarks.capture.phases import Leftovers, perform


def find(table: str, name: str) -> Row:
    """The row of that name."""
    return next(row for row in importlib.import_module(table).ROWS if row.name == name)


def versions(row: Row) -> dict[str, str]:
    """Of its packages, those that are installed."""
    found = {}
    for package in row.packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    # Frameworks print as they like; answers go over a copy of the descriptor that they do not know.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    row = find(*sys.argv[1:])
    answer({"versions": versions(row)})
    pools: set[str] = set()
    left = {form: Leftovers(pools) for form in row.forms}
    with asyncio.Runner() as loop:
        for line in sys.stdin:
            order = json.loads(line)
            work = row.forms[order["form"]]
            assert not isinstance(work, Absent)
            place = Place(order["url"], order["local"], order["cap"])
            seen = perform(row, work, order["phase"], place, left[order["form"]], loop)
            answer(dataclasses.asdict(seen))


if __name__ == "__main__":
    main()
