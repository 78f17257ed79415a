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


#: Text for those who listen to a page and not for those who look at it.
_HEARD = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap"


class Nested(str):
    """The name of a row that lies in another one: drawn as a branch, and told as what it is in."""

    name: str
    depth: int
    inside: str

    def __new__(cls, name: str, depth: int, inside: str = "") -> Nested:
        made = super().__new__(cls, name if depth == 0 else f"{'  ' * (depth - 1)}└ {name}")
        made.name, made.depth, made.inside = name, depth, inside
        return made

    def html(self) -> str:
        """As a cell of a page."""
        told = f'<span style="{_HEARD}">, inside {html.escape(self.inside)}</span>' if self.inside else ""
        branch = '<span aria-hidden="true">└ </span>' if self.depth else ""
        return f'<span style="padding-left:{max(0, self.depth - 1) * 1.2:g}em">{branch}{html.escape(self.name)}</span>{told}'


class Table:
    """Rows under named columns, with a line above and one below, and perhaps more `below`.

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
        below: Sequence[Table | Answer] = (),
    ) -> None:
        self.below = list(below)
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
        own = "\n".join([*([self.title] if self.title else []), *body, *([self.note] if self.note else [])])
        return "\n\n".join([own, *map(repr, self.below)])

    def _repr_html_(self) -> str:
        def cell(index: int, value: object) -> str:
            tag = 'th scope="row"' if index == 0 else "td"
            side = "right" if self._numeric(index) else "left"
            text = value.html() if isinstance(value, Nested) else html.escape(shown(value))
            look = f"text-align:{side}" + (";font-weight:normal" if index == 0 else "") + (";white-space:nowrap" if len(text) < 33 else "")
            return f'<{tag} style="{look}">{text}</{tag[:2]}>'

        def head(index: int, name: str) -> str:
            return f'<th scope="col" style="text-align:{"right" if self._numeric(index) else "left"}">{html.escape(name)}</th>'

        heads = "".join(head(i, c) for i, c in enumerate(self.columns))
        body = "".join("<tr>" + "".join(cell(i, v) for i, v in enumerate(row)) + "</tr>" for row in self.rows)
        look = "caption-side:top;text-align:left;font-weight:600;padding:4px 0;color:inherit"
        title = f'<caption style="{look}">{html.escape(self.title)}</caption>' if self.title else ""
        note = f'<div style="white-space:pre-line">{html.escape(self.note)}</div>' if self.note else ""
        table = f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>" if self.rows else ""
        if self.title and not self.rows:
            table = f"<div><b>{html.escape(self.title)}</b></div>"
        more = "".join(f'<div style="margin-top:12px">{t._repr_html_()}</div>' for t in self.below)
        return f'<div class="{PLAIN}">{table}{note}{more}</div>'

    def _numeric(self, index: int) -> bool:
        values = [row[index] for row in self.rows if row[index] is not None]
        return bool(values) and all(isinstance(value, (int, float, Decimal)) for value in values)


class Answer:
    """Sentences, tables, and lines to copy, about one object."""

    def __init__(self, sentences: Sequence[str], tables: Sequence[Table], steps: Sequence[tuple[str, str]], value: Any = None) -> None:
        self.sentences = list(sentences)
        self.tables = list(tables)
        self.steps = list(steps)
        self.value = value

    def __repr__(self) -> str:
        blocks = ["\n".join(self.sentences), *map(repr, self.tables)]
        if self.steps:
            width = max(len(line) for line, _ in self.steps)
            blocks.append("\n".join(["What to do next", *(f"  {line.ljust(width)}  {does}" for line, does in self.steps)]))
        return "\n\n".join(block for block in blocks if block)

    def _repr_html_(self) -> str:
        said = "".join(f"<p style='margin:0 0 4px'>{html.escape(sentence)}</p>" for sentence in self.sentences)
        tables = "".join(f'<div style="margin-top:12px">{table._repr_html_()}</div>' for table in self.tables)
        items = "".join(f"<li><code>{html.escape(line)}</code>: {html.escape(does)}</li>" for line, does in self.steps)
        steps = f'<div style="margin-top:12px"><b>What to do next</b><ul style="margin:4px 0">{items}</ul></div>' if items else ""
        return f'<div class="{PLAIN}" style="max-width:980px">{said}{tables}{steps}</div>'


class Said:
    """One sentence that a subcommand answers with, and the object it is about."""

    def __init__(self, text: str, value: Any = None) -> None:
        self.text = text
        self.value = value

    def __repr__(self) -> str:
        return self.text
