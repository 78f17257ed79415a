"""The card without a front end: HTML for a reopened notebook, text for terminals, logs and comparisons."""

from __future__ import annotations

import html
from typing import Any

from wflo_nb.notebook.tables import PLAIN


def _counts(view: dict[str, Any]) -> list[str]:
    calls = f"{view['calls']} call{'' if view['calls'] == 1 else 's'}"
    extra = [f"{view[k]} {k.replace('_', ' ')}" for k in ("in_flight", "refused", "unpriced") if view[k]]
    parts = [calls + (f" ({', '.join(extra)})" if extra else ""), f"{view['input_tokens']:,} tokens in, {view['output_tokens']:,} out"]
    if view["held_nano"]:
        parts.append(f"{view['held']} held")
    return parts


def _money(view: dict[str, Any]) -> str:
    doubt = f" ({view['unconfirmed']} of it unconfirmed)" if view["unconfirmed"] else ""
    return f"{view['spent']} of {view['budget']} spent{doubt}" if view["budget"] else f"{view['spent']} spent{doubt}, no budget"


def text(view: dict[str, Any]) -> str:
    """One line."""
    return f"wflo · {view['name']}: {_figures(view)}"


def comparable(view: dict[str, Any]) -> str:
    """One line that depends on the money alone: no time, no id, no cell number, so that a stored notebook compares equal.

    Cell numbers are left out because tools that compare notebooks run them without history, where every cell is the first.
    """
    named = "" if view["name"] == view["cell"] else f" · {view['name']}"
    return f"wflo{named}: {_figures(view)}"


def _figures(view: dict[str, Any]) -> str:
    return f"{_money(view)}, {', '.join(_counts(view))} · {view['pill']}"


def as_html(view: dict[str, Any]) -> str:
    """The same for a page; reads well as plain text where styles are stripped."""
    spent_width = view["percent"] or 0
    bar = (
        f'<div style="height:8px;border-radius:4px;background:#8883;margin-top:6px"><div style="width:{spent_width}%;height:8px;'
        f'border-radius:4px;background:{"#c2255c" if spent_width >= 100 else "#9a6700" if spent_width >= 80 else "#1a7f5a"}"></div></div>'
        if view["budget"]
        else ""
    )
    details = " &middot; ".join(html.escape(part) for part in _counts(view))
    return (
        f'<div class="{PLAIN}" style="max-width:760px;border:1px solid #8886;border-radius:8px;padding:8px 12px;'
        'font:13px/1.5 system-ui,sans-serif">'
        f"<b>{html.escape(view['name'])}</b> &middot; {html.escape(view['pill'])} &middot; {html.escape(view['time'])}<br>"
        f"{html.escape(_money(view))} &middot; {details}{bar}</div>"
    )
