"""Our errors come up through an SDK's frames; in a cell only the user's own lines are shown, all frames stay on the exception."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from wflo_nb.errors import WfloError

_OURS = str(Path(__file__).parent.parent)


def _libraries() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return (*{paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}, _OURS, "<frozen")


def users_own(trace: TracebackType | None) -> tuple[TracebackType | None, int]:
    """The traceback without the frames of libraries, and how many these were. Unchanged if nothing would be left."""
    libraries = _libraries()
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    own = [t for t in frames if not t.tb_frame.f_code.co_filename.startswith(libraries)]
    if not own:
        return (frames[0] if frames else None), 0
    chain: TracebackType | None = None
    for t in reversed(own):
        chain = TracebackType(chain, t.tb_frame, t.tb_lasti, t.tb_lineno)
    return chain, len(frames) - len(own)


def shorten_ours(shell: Any) -> Callable[[], None]:
    """Let this shell show our errors without library frames. Returns what undoes it."""

    def render(error: WfloError) -> list[str]:
        trace, hidden = users_own(error.__traceback__)
        lines: list[str] = shell.InteractiveTB.structured_traceback(type(error), error, trace)
        return [*lines, f"({hidden} frames of libraries are not shown; %debug has them all.)"] if hidden > 1 else lines

    ours: Any = WfloError
    ours._render_traceback_ = render

    def undo() -> None:
        if ours.__dict__.get("_render_traceback_") is render:
            del ours._render_traceback_

    return undo
