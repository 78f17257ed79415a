"""The matrix as it is printed: a table, the reasons of its dashes, its holes, and their number."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.capture.cells import FORMS
from benchmarks.capture.judge import CHECKS
from benchmarks.capture.run import Result


def title(result: Result) -> str:
    """The name of a row, with the model that answered if it was the small one."""
    return f"{result.name}, {result.local}" if result.local else result.name


def holes(result: Result) -> Iterator[str]:
    """What is wrong with a row, a line each."""
    if result.failure is not None:
        yield result.failure
    for form, cell in result.cells.items():
        for check in CHECKS:
            if check in cell.holes:
                yield f"{form}: not: {check}: {cell.holes[check]}"


def _field(result: Result, form: str) -> str:
    if form in result.absent:
        return "–"
    if result.failure is not None or form not in result.cells:
        return "**not run**"
    cell = result.cells[form]
    failed = ", ".join(str(number) for number, check in enumerate(CHECKS, 1) if check in cell.holes)
    return f"**✗ {failed}**" if failed else f"✓ {cell.calls}"


def markdown(results: list[Result]) -> str:
    """The table; below it why forms do not exist, and what the holes are."""
    lines = [f"| | versions | {' | '.join(FORMS)} |", f"|---|---|{'---|' * len(FORMS)}"]
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        lines.append(f"| {title(result)} | {versions} | {' | '.join(_field(result, form) for form in FORMS)} |")
    lines += ["", *_list("Dashes", _why_absent(results)), *_list("Not run against the small model", _why_not_local(results))]
    wrong = [f"* {title(result)}: {line}" for result in results for line in holes(result)]
    lines += [*_list("Forms in which each check holds", _by_check(results)), *_list("Holes", wrong)]
    return "\n".join([*lines, f"{summary(results)}."])


def _list(heading: str, items: list[str]) -> list[str]:
    return [f"{heading}:", "", *items, ""] if items else []


def _by_check(results: list[Result]) -> list[str]:
    cells = [cell for result in results for cell in result.cells.values()]
    held = {check: sum(check not in cell.holes for cell in cells) for check in CHECKS}
    return [f"{number}. {check}: {held[check]} of {len(cells)}" for number, check in enumerate(CHECKS, 1)]


def _why_absent(results: list[Result]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for result in results:
        for form, why in result.absent.items():
            if result.local is None:
                reasons.setdefault(f"{result.name}: {why}", []).append(form)
    return [f"* {name} ({', '.join(forms)})" for name, forms in reasons.items()]


def _why_not_local(results: list[Result]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result.not_local is not None:
            reasons.setdefault(result.not_local, []).append(result.name)
    return [f"* {', '.join(names)}: {why}" for why, names in reasons.items()]


_MARKS = ("<!-- the capture matrix begins -->", "<!-- the capture matrix ends -->")


def write(path: Path, text: str) -> None:
    """Write the table to a file of its own, or into a document between the marks that it has for it."""
    before, begin, rest = (path.read_text() if path.exists() else "").partition(_MARKS[0])
    _, end, after = rest.partition(_MARKS[1])
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}" if begin and end else f"{text}\n")


def summary(results: list[Result]) -> str:
    """One line about all of it."""
    cells = [cell for result in results for cell in result.cells.values()]
    calls = sum(cell.calls for cell in cells)
    count = sum(1 for result in results for _ in holes(result))
    found = f"{len(results)} rows, {len(cells)} forms with {calls} calls, {len(cells) * len(CHECKS)} checks, {count} holes"
    return f"{found}, Python {platform.python_version()}"


def record(result: Result) -> dict[str, Any]:
    """A row as JSON, each form with what became of each check."""
    found = {"benchmark": "matrix", **dataclasses.asdict(result), "whole": result.whole}
    for cell in found["cells"].values():
        cell["checks"] = {check: check not in cell["holes"] for check in CHECKS}
    return found
