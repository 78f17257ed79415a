"""``%%wflo`` as an input transformer: the magic line becomes one Python line and the body stays an ordinary cell.

A cell magic that runs its body itself loses top-level ``await``, line numbers and the cell's error status; this loses nothing,
because after the transformation there is no magic left.
"""

from __future__ import annotations

import re
from typing import Any

#: The one name that lives in the user's namespace, hidden from ``%who``. It stands in tracebacks as the first line of the cell.
BEGIN = "__wflo__"

_HEAD = re.compile(r"^%%wflo(?:[ \t]+(?P<line>.*?))?[ \t]*\r?\n?$")


def _first_full(lines: list[str]) -> int:
    return next((i for i, line in enumerate(lines) if line.strip()), len(lines))


def transform(lines: list[str]) -> list[str]:
    """Replace a leading ``%%wflo …`` line by a call of the begin name; any other cell is returned as it is.

    Pure: IPython runs it several times per cell (execution, completeness check, ``%%time``, ``%%capture``).
    """
    start = _first_full(lines)
    head = _HEAD.match(lines[start]) if start < len(lines) else None
    if head is None:
        return lines
    body = lines[start + 1 :]
    below = _first_full(body)
    if below < len(body) and body[below].startswith("%%"):
        # Another cell magic under ours: IPython only looks for one on the first line, so it is handed the rest of the cell.
        rest = body[below:]
        body = body[:below] + (transform(rest) if _HEAD.match(rest[0]) else _other_cell_magic(rest))
    return [*lines[:start], f"{BEGIN}({(head['line'] or '')!r})\n", *body]


def _other_cell_magic(lines: list[str]) -> list[str]:
    from IPython.core import inputtransformer2

    ipython: Any = inputtransformer2
    transformed: list[str] = ipython.cell_magic(lines)
    return transformed
