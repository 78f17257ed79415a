"""What a card shows, as plain data: one dict that the widget, the HTML and the text are all drawn from.

Money travels as text made here (exact, never rounded) plus nano-USD integers for the lengths of bars.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wflo_nb.errors import format_usd
from wflo_nb.events import Figures
from wflo_nb.model import usd

#: More points than this are thinned out: a sparkline is 160 pixels wide.
HISTORY = 120

#: What the pill says for each state.
PILLS = {
    "running": "Running",
    "stopping": "Stopping…",
    "refused": "Budget reached",
    "done": "Done",
    "failed": "Failed",
    "stopped": "Stopped",
    "over": "Stopped by budget",
    "restored": "Restored",
}


def money(nano: int | None) -> str:
    """Exact dollars, ``–`` for nothing known."""
    return "–" if nano is None else format_usd(usd(nano))


def tokens(count: int) -> str:
    """A token count for people: 999, 1.2k, 3.4M. Exact counts are in the reports."""
    if count < 1000:
        return str(count)
    if count < 1_000_000:
        return f"{count / 1000:.1f}k" if count < 100_000 else f"{count / 1000:.0f}k"
    return f"{count / 1_000_000:.1f}M"


def pace(nano: int, seconds: float) -> str:
    """Spend per minute to two digits: a rate is an estimate. Nothing until there is something to tell."""
    if nano <= 0 or seconds < 1:
        return "–"
    per_minute = nano * 60 / seconds / 1e9
    text = f"{per_minute:.2f}" if per_minute >= 0.1 else f"{per_minute:.9f}"
    if per_minute < 0.1:
        lead = len(text) - len(text[2:].lstrip("0"))
        text = text[: lead + 2].rstrip("0")
    return f"${text}/min"


def duration(seconds: float) -> str:
    """Tenths of a second at first, then whole seconds, minutes, hours."""
    whole = int(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(slots=True)
class History:
    """Spend over time for the sparkline, never more than `HISTORY` points."""

    points: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])

    def add(self, seconds: float, nano: int) -> None:
        """One more point; equal spend only moves the last point to the right."""
        if len(self.points) > 1 and self.points[-1][1] == nano == self.points[-2][1]:
            self.points[-1] = (seconds, nano)
        else:
            self.points.append((seconds, nano))
        if len(self.points) > HISTORY:
            self.points = [*self.points[:-1:2], self.points[-1]]


def pill(state: str, figures: Figures) -> str:
    """Which of `PILLS` fits: `state` is the run's (running, done, failed, stopped)."""
    if state == "running":
        return {"user": "stopping", "budget": "refused"}.get(figures.stopped or "", "running")
    if figures.stopped == "user":
        return "stopped"
    # A run can end stopped with figures that never were refused: by a smaller budget inside it.
    if state == "stopped" or (figures.stopped == "budget" and state != "done"):
        return "over"
    return state


def view(*, name: str, cell: str, state: str, figures: Figures, elapsed: float, history: History) -> dict[str, Any]:
    """Everything the card shows of one run, ready to be drawn."""
    cap = figures.cap_nano
    left = None if cap is None else max(0, cap - figures.spent_nano - figures.held_nano)
    shown = pill(state, figures)
    return {
        "name": name,
        "cell": cell,
        "running": state == "running",
        "state": shown,
        "pill": PILLS.get(shown, shown),
        "time": duration(elapsed),
        "spent": money(figures.spent_nano),
        "budget": None if cap is None else money(cap),
        "held": money(figures.held_nano),
        "unconfirmed": money(figures.unconfirmed_nano) if figures.unconfirmed_nano else "",
        "left": money(left),
        "calls": figures.calls,
        "in_flight": figures.in_flight,
        "refused": figures.refused,
        "unpriced": figures.unpriced,
        "tokens": f"{tokens(figures.input_tokens)} / {tokens(figures.output_tokens)}",
        "input_tokens": figures.input_tokens,
        "output_tokens": figures.output_tokens,
        "rate": pace(figures.spent_nano, elapsed),
        "spent_nano": figures.spent_nano,
        "held_nano": figures.held_nano,
        "unconfirmed_nano": figures.unconfirmed_nano,
        "cap_nano": cap,
        "percent": None if cap is None else (100 if cap == 0 else min(100, figures.spent_nano * 100 // cap)),
        "history": [[round(t, 1), n] for t, n in history.points],
    }
