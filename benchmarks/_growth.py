"""The figure of growth, for light and for dark pages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

#: Of the palette of Okabe and Ito, which colour-blind people tell apart; brighter twins for the dark.
_THEMES = {
    "light": {"paper": "#ffffff", "ink": "#24292f", "faint": "#6e7781", "grid": "#e4e7eb", "leases": "#0072b2", "calls": "#c24e00"},
    "dark": {"paper": "#0d1117", "ink": "#e6edf3", "faint": "#8b949e", "grid": "#262c36", "leases": "#56b4e9", "calls": "#f0914a"},
}
_WAYS = {"leases": "through leases", "calls": "call by call"}


def require() -> None:
    """Say at once, and not after minutes, that the figure cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        sys.exit('The figure needs matplotlib: pip install "wflo_nb[plot]"')


def draw(lines: list[dict[str, Any]], path: Path, pause: float) -> None:
    """Write `path`, and beside it the same for dark pages: ``growth-dark.png``, and ``growth-light.png`` for any other name."""
    stem = path.stem.removesuffix("-light")
    for name, theme in _THEMES.items():
        _page(lines, path.with_name(f"{stem}-{name}{path.suffix}"), pause, theme)


def _page(lines: list[dict[str, Any]], path: Path, pause: float, theme: dict[str, str]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ink, faint = theme["ink"], theme["faint"]
    style = {"font.size": 11, "text.color": ink, "axes.labelcolor": faint, "xtick.color": faint, "ytick.color": faint}
    with plt.rc_context({**style, "font.family": "DejaVu Sans"}):
        figure, (rate, wait) = plt.subplots(1, 2, figsize=(11, 4.2), facecolor=theme["paper"])
        numbers = sorted({line["kernels"] for line in lines})
        for panel, title in ((rate, "Calls a second"), (wait, "Wait until a call is admitted, ms")):
            _bare(panel, title, numbers, theme)
        rate.plot(numbers, [n / pause for n in numbers], color=faint, linewidth=1.2, linestyle=(0, (2, 3)))
        rate.annotate("wanted", (numbers[-1], numbers[-1] / pause), (-8, 2), textcoords="offset points", ha="right", color=faint)
        ends: dict[Any, list[tuple[float, str, str]]] = {rate: [], wait: []}
        for way, words in _WAYS.items():
            mine = [line for line in lines if words in line["way"] and line.get("pairs")]
            x = [line["kernels"] for line in mine]
            drawn = {"color": theme[way], "linewidth": 2.2, "marker": "o", "markersize": 4.5, "clip_on": False}
            rate.plot(x, [line["pairs_per_s"] for line in mine], **drawn)
            median, late = ([line[key] for line in mine] for key in ("wait_p50_ms", "wait_p99_ms"))
            wait.fill_between(x, median, late, color=theme[way], alpha=0.16, linewidth=0)
            wait.plot(x, median, **drawn)
            wait.plot(x, late, color=theme[way], linewidth=1)
            ends[rate].append((mine[-1]["pairs_per_s"], words, theme[way]))
            ends[wait].append((median[-1], words, theme[way]))
        for panel, labels in ends.items():
            _labelled(panel, numbers[-1], sorted(labels))
        wait.text(0, 1.0, "thick: median; thin: 99 of 100 wait less", transform=wait.transAxes, color=faint, fontsize=9.5, va="bottom")
        rate.text(
            0,
            1.0,
            f"{os.cpu_count()} cores and one disk for all",
            transform=rate.transAxes,
            color=faint,
            fontsize=9.5,
            va="bottom",
        )
        figure.subplots_adjust(left=0.06, right=0.89, wspace=0.52)
        figure.savefig(path, dpi=150, facecolor=theme["paper"], bbox_inches="tight", pad_inches=0.2)
        plt.close(figure)


def _labelled(panel: Any, x: int, ends: list[tuple[float, str, str]]) -> None:
    """Write beside the end of each line what it is; two that end together are moved apart."""
    near = len(ends) == 2 and ends[1][0] < 2.2 * ends[0][0]
    for (y, words, colour), apart in zip(ends, (-7, 7) if near else (0, 0), strict=False):
        where = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
        panel.annotate(words, (x, y), (11, apart), color=colour, **where)


def _bare(panel: Any, title: str, numbers: list[int], theme: dict[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    panel.set_facecolor(theme["paper"])
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(numbers, [f"{n:,}" for n in numbers])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.set_xlabel("kernels on one budget")
    panel.set_title(title, loc="left", fontsize=12.5, color=theme["ink"], fontweight="bold", pad=22)
    panel.grid(axis="y", color=theme["grid"], linewidth=0.9)
    panel.set_axisbelow(True)
    panel.tick_params(length=0)
    for side in panel.spines.values():
        side.set_visible(False)
