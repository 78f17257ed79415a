"""The process of one row, in the environment of its SDK.

    python -m benchmarks.capture.worker TABLE ROW PATIENCE

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

from benchmarks.capture.cells import Place, Row
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

    table, name, patience = sys.argv[1:]
    row = find(table, name)
    answer({"versions": versions(row)})
    pools: set[str] = set()
    left = {form: Leftovers(pools, float(patience)) for form in row.forms}
    with asyncio.Runner() as loop:
        for line in sys.stdin:
            order = json.loads(line)
            place = Place(order["url"], order["local"], order["cap"])
            seen = perform(row, order["form"], order["phase"], place, left[order["form"]], loop)
            answer(dataclasses.asdict(seen))


if __name__ == "__main__":
    main()
