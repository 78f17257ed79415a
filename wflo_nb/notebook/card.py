"""The card as an anywidget: traits that the front end draws, and the two roads by which clicks reach the kernel.

Imported at the first card, because anywidget takes a third of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from wflo_nb.notebook import static

_HERE = Path(__file__).parent
CONTROL = "wflo-control"


class Card(anywidget.AnyWidget):
    """Everything synced is private: users steer a run through ``%wflo`` and the card's buttons, not through traits."""

    _esm = (_HERE / "card.js").read_text(encoding="utf-8")
    _css = (_HERE / "card.css").read_text(encoding="utf-8")

    _execution = traitlets.Unicode("").tag(sync=True)
    _figures = traitlets.Dict().tag(sync=True)
    _checkpoints: Any = traitlets.List().tag(sync=True)
    _undo = traitlets.Bool(False).tag(sync=True)
    _reason = traitlets.Unicode("").tag(sync=True)
    _note = traitlets.Unicode("").tag(sync=True)

    def __init__(self, execution_id: str, figures: dict[str, Any], on_click: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(_execution=execution_id, _figures=figures)
        self.on_msg(lambda _widget, content, _buffers: on_click(content))
        # ipykernel 7.4 answers on the subshell that published last, which is the busy one whenever a cell updates the card.
        # The front end's own choice is right. A private name, hence the guard.
        if hasattr(self.comm, "_reply_subshell_for"):
            self.comm._reply_subshell_for = lambda _data, default: default

    def __repr__(self) -> str:
        return static.text(self._figures)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        if data is None:
            return bundle
        return {**data, "text/html": static.as_html(self._figures), "text/plain": static.text(self._figures)}, metadata


def listen(find: Callable[[str], Callable[[dict[str, Any]], None] | None]) -> Callable[[], None]:
    """Accept comms that the front end opens for an execution; returns what stops it.

    Such a comm is served on the front end's own subshell whatever the kernel does with the widget's. Nothing is published on
    it, because a message from the running cell would pull its replies behind that cell.
    """
    import comm

    manager = comm.get_comm_manager()

    def opened(connection: Any, message: dict[str, Any]) -> None:
        on_click = find(str(message["content"]["data"].get("execution", "")))
        if on_click is not None:
            connection.on_msg(lambda m: on_click(m["content"]["data"]))

    manager.register_target(CONTROL, opened)

    def stop() -> None:
        if manager.targets.get(CONTROL) is opened:
            manager.unregister_target(CONTROL, opened)

    return stop
