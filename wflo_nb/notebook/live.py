"""Live cards: they listen to events, publish at most ten times a second, and take clicks while a cell runs.

Nothing here asks the database: figures come from the run's own account.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from wflo_nb import events
from wflo_nb.errors import WfloError, WfloWarning
from wflo_nb.events import Figures
from wflo_nb.model import Checkpoint, nano_from_usd
from wflo_nb.notebook import static
from wflo_nb.notebook.view import History, money, view

if TYPE_CHECKING:
    from wflo_nb.notebook.card import Card

_log = logging.getLogger(__name__)

#: Seconds between two updates of one card while it changes, and while it only gets older.
PERIOD = 0.1
HEARTBEAT = 1.0
#: So many clicks and cards are remembered; older ones are forgotten.
_REMEMBERED = 200
_CARDS = 100

Style = Literal["live", "static", "off"]


class Steered(Protocol):
    """The part of a run that a card shows and steers."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> str: ...
    def figures(self) -> Figures: ...
    def stop(self) -> None: ...
    def set_budget(self, nano: int) -> None: ...


class Variables(Protocol):
    """What the card's rollback buttons ask for; each answers with a sentence for the user and may raise `WfloError`."""

    def rollback_from(self, card: LiveCard, checkpoint_id: str) -> str: ...
    def undo_from(self, card: LiveCard) -> str: ...


class LiveCard:
    """One run's card. Thread-safe: it is updated by the ticker, by clicks and by the cell's end."""

    def __init__(self, run: Steered, *, name: str, cell: str, style: Style, variables: Variables) -> None:
        self.run = run
        self.name = name
        self.cell = cell
        self.style = style
        self._variables = variables
        self._history = History()
        self._started = time.monotonic()
        self._ended: float | None = None
        self._restored = False
        self._widget: Card | None = None
        self._handle: Any = None
        self._context = contextvars.copy_context()
        self._lock = threading.RLock()
        self._dirty = False
        self._published = 0.0
        self._seen: dict[str, None] = {}

    # -- drawing -----------------------------------------------------------------------------------------------------------

    def view(self) -> dict[str, Any]:
        """What the card shows now."""
        elapsed = (self._ended or time.monotonic()) - self._started
        figures = self.run.figures()
        self._history.add(elapsed, figures.spent_nano)
        shown = view(name=self.name, cell=self.cell, state=self.run.state, figures=figures, elapsed=elapsed, history=self._history)
        if self._restored:
            shown.update(state="restored", pill="Restored")
        return shown

    def show(self) -> None:
        """Put the card under the cell. Where no widget can be shown, the text at the end stands in."""
        if self.style != "live":
            return
        try:
            from wflo_nb.notebook.card import Card

            self._widget = Card(self.run.id, self.view(), self.clicked)
            self._handle = _display(self._widget, display_id=True)
        except Exception as error:
            self._widget = None
            self.style = "static"
            reason = f"{type(error).__name__}: {error}"
            warn(f"The live card cannot be shown ({reason}); its numbers are printed at the end.")

    def changed(self) -> None:
        """Something happened; the next tick tells the front end."""
        self._dirty = True

    @property
    def waiting(self) -> bool:
        """Whether the ticker has anything to do for this card."""
        return self._widget is not None and (self._ended is None or self._dirty)

    def tick(self) -> None:
        """Publish if there is anything to publish."""
        with self._lock:
            if self.waiting and (self._dirty or time.monotonic() - self._published >= HEARTBEAT):
                # In the cell's own context: some kernels can send nothing from a thread that knows no request to answer.
                self._context.copy().run(self._publish)

    def _publish(self) -> None:
        if self._widget is None:
            return
        self._dirty = False
        self._published = time.monotonic()
        try:
            self._widget._figures = self.view()
        except Exception:
            _log.debug("the card's front end cannot be reached", exc_info=True)

    def finish(self, reason: WfloError | None) -> None:
        """The run is over: the last numbers, for the front end and for what is stored in the notebook; `reason` if we ended it."""
        with self._lock:
            self._ended = time.monotonic()
            if self._widget is not None:
                self._widget._reason = str(reason) if reason else ""
                self._publish()
            if self._handle is not None:
                self._handle.update(self._widget)
            elif self.style == "static":
                _display({"text/plain": static.comparable(self.view())}, raw=True)

    def list_checkpoints(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Offer these for a rollback, in this order."""
        if self._widget is not None:
            self._widget._checkpoints = [{"id": c.id, "label": self._label(c)} for c in checkpoints]

    def _label(self, c: Checkpoint) -> str:
        here = c.execution_id == self.run.id and c.label.endswith(self.cell)
        name = f"{c.label.removesuffix(self.cell)}this cell" if here else c.label
        return f"{name} · {c.created_at.astimezone():%H:%M:%S} · {count(c.variables)}"

    def rolled_back(self, sentence: str, *, undoable: bool) -> None:
        """Show what a rollback did, and offer to undo it."""
        with self._lock:
            self._restored = undoable
            if self._widget is not None:
                self._widget._undo = undoable
                self.say(sentence)
                self._publish()

    def say(self, sentence: str) -> None:
        """One sentence under the numbers."""
        if self._widget is not None:
            self._widget._note = sentence

    # -- clicks ------------------------------------------------------------------------------------------------------------

    def clicked(self, message: dict[str, Any]) -> None:
        """A click, from any thread; the second copy of one is dropped. Never raises: the answer says what went wrong."""
        click = str(message.get("id"))
        with self._lock:
            if click in self._seen:
                return
            self._seen[click] = None
            if len(self._seen) > _REMEMBERED:
                del self._seen[next(iter(self._seen))]
        try:
            said = self._do(str(message.get("kind")), message)
        except WfloError as error:
            said = str(error)
        except Exception as error:
            _log.exception("a click on the card failed")
            said = f"That failed: {type(error).__name__}: {error}"
        if self._widget is not None:
            if said:
                self.say(said)
            self._widget.send({"kind": "ack", "id": click, "note": said})

    def _do(self, kind: str, message: dict[str, Any]) -> str:
        if kind == "stop":
            self.run.stop()
            self.changed()
            return "Stopped by you: no further call is sent; calls on their way finish and are counted."
        if kind == "raise":
            nano = nano_from_usd(message.get("amount"), "budget")
            self.run.set_budget(nano)
            self.changed()
            return f"The budget of this run is now {money(nano)}."
        if kind == "rollback":
            return self._variables.rollback_from(self, str(message.get("to")))
        if kind == "undo":
            return self._variables.undo_from(self)
        return f"This card does not know {kind!r}; reload the page."


def warn(sentence: str) -> None:
    """A `WfloWarning` without a source line: in a notebook, ours would say nothing to the user."""
    warnings.warn_explicit(sentence, WfloWarning, "%%wflo", 1)


def _display(thing: object, **options: Any) -> Any:
    from IPython import display

    show: Any = display.display
    return show(thing, **options)


def count(variables: int) -> str:
    """``1 variable``, ``2 variables``."""
    return f"{variables} variable{'' if variables == 1 else 's'}"


class Deck:
    """All cards of a session: one listener and one ticker thread for all of them."""

    def __init__(self) -> None:
        self._cards: dict[str, LiveCard] = {}
        self._lock = threading.Lock()
        self._ticker: threading.Thread | None = None
        self._open = True
        self._unlisten: Callable[[], None] | None = None
        self._unsubscribe = events.subscribe(self._heard)

    def put(self, card: LiveCard) -> None:
        """Show a card and keep it up to date."""
        with self._lock:
            self._cards[card.run.id] = card
            while len(self._cards) > _CARDS:
                del self._cards[next(iter(self._cards))]
        card.show()
        if card.style == "live":
            if self._unlisten is None:
                from wflo_nb.notebook.card import listen

                self._unlisten = listen(lambda id: c.clicked if (c := self._cards.get(id)) else None)
            self._tick_while_needed()

    def close(self) -> None:
        """Stop listening; cards that are shown stay as they are."""
        self._open = False
        self._unsubscribe()
        if self._unlisten is not None:
            self._unlisten()
        self._cards = {}
        ticker = self._ticker
        if ticker is not None and ticker is not threading.current_thread():
            ticker.join(10 * PERIOD)

    def _heard(self, event: events.Event) -> None:
        if isinstance(event, events.CallChanged):
            id = event.call.execution_id
        elif isinstance(event, (events.ExecutionStarted, events.ExecutionEnded)):
            id = event.execution.id
        elif isinstance(event, events.BudgetChanged):
            id = event.execution_id
        else:
            return
        card = self._cards.get(id)
        if card is not None:
            card.changed()
            if card.style == "live":
                self._tick_while_needed()  # the ticker sleeps for good when a cell is over; background work may go on

    def _tick_while_needed(self) -> None:
        with self._lock:
            if self._ticker is None and self._open:
                self._ticker = threading.Thread(target=self._tick, name="wflo-cards", daemon=True)
                self._ticker.start()

    def _tick(self) -> None:
        while True:
            time.sleep(PERIOD)
            for card in list(self._cards.values()):
                card.tick()
            with self._lock:
                if not (self._open and any(card.waiting for card in self._cards.values())):
                    self._ticker = None
                    return
