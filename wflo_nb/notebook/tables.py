"""What the ``%wflo`` subcommands return: values that show themselves as tables and stay usable as objects."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from wflo_nb.errors import format_usd

#: Keeps Jupyter from typesetting ``$1 of $2`` as mathematics.
PLAIN = "tex2jax_ignore mathjax_ignore"


def shown(value: object) -> str:
    """One cell of a table as text."""
    if value is None:
        return "–"
    if isinstance(value, Decimal):
        return format_usd(value)
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def size(count: int) -> str:
    """Bytes for people: 12 B, 3.4 kB, 5.6 MB."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


class Table:
    """Rows under named columns, with a line above and one below.

    Iterating and indexing give the `items` behind the rows (records of the other rooms), not text.
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        items: Sequence[Any] | None = None,
        title: str = "",
        note: str = "",
    ) -> None:
        self.columns = tuple(columns)
        self.rows = [tuple(row) for row in rows]
        self.items = list(items if items is not None else self.rows)
        self.title = title
        self.note = note

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def __repr__(self) -> str:
        texts = [[shown(v) for v in row] for row in self.rows]
        widths = [max(len(c), *(len(row[i]) for row in texts)) if texts else len(c) for i, c in enumerate(self.columns)]
        right = [self._numeric(i) for i in range(len(self.columns))]

        def line(values: Sequence[str]) -> str:
            return "  ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)).rstrip()

        body = [line(self.columns), *(line(row) for row in texts)] if texts else []
        return "\n".join([*([self.title] if self.title else []), *body, *([self.note] if self.note else [])])

    def _repr_html_(self) -> str:
        def cell(tag: str, index: int, value: object) -> str:
            side = "right" if self._numeric(index) else "left"
            return f'<{tag} style="text-align:{side}">{html.escape(shown(value))}</{tag}>'

        head = "".join(cell("th", i, c) for i, c in enumerate(self.columns))
        body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in self.rows)
        title = f"<div><b>{html.escape(self.title)}</b></div>" if self.title else ""
        note = f"<div>{html.escape(self.note)}</div>" if self.note else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if self.rows else ""
        return f'<div class="{PLAIN}">{title}{table}{note}</div>'

    def _numeric(self, index: int) -> bool:
        values = [row[index] for row in self.rows if row[index] is not None]
        return bool(values) and all(isinstance(value, (int, float, Decimal)) for value in values)


class Said:
    """One sentence that a subcommand answers with, and the object it is about."""

    def __init__(self, text: str, value: Any = None) -> None:
        self.text = text
        self.value = value

    def __repr__(self) -> str:
        return self.text
