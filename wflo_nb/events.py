"""What happens, told to whoever listens: cards, telemetry, logs.

A listener is any callable that takes one event. It runs in the thread where the event happened, so it must be quick; a
listener that raises is logged and never reaches the user's call.

    undo = subscribe(print)
    ...
    undo()
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from wflo_nb.model import Call, Checkpoint, Execution

_log = logging.getLogger(__name__)


@dataclass(slots=True)  # not frozen: made twice for every call, and that takes three times as long
class Figures:
    """The money and counts of one execution at one moment: everything a card shows. Nobody changes it.

    Attributes:
        cap_nano: the execution's own cap, None if it has none.
        calls: calls that were sent and are over; `in_flight`: sent and not over; `refused`: never sent.
        unpriced: calls that ended with no known price (their cost is in no sum).
        stopped: why nothing more is sent (``"budget"``, ``"user"``), None while calls are allowed.
    """

    spent_nano: int = 0
    held_nano: int = 0
    unconfirmed_nano: int = 0
    cap_nano: int | None = None
    calls: int = 0
    in_flight: int = 0
    refused: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    stopped: str | None = None

    def plus(
        self,
        spent: int = 0,
        held: int = 0,
        unconfirmed: int = 0,
        calls: int = 0,
        in_flight: int = 0,
        refused: int = 0,
        unpriced: int = 0,
        input_tokens: int = 0,
        output_tokens: int = 0,
    ) -> Figures:
        """The figures with something added; every call takes this path twice."""
        return Figures(
            self.spent_nano + spent,
            self.held_nano + held,
            self.unconfirmed_nano + unconfirmed,
            self.cap_nano,
            self.calls + calls,
            self.in_flight + in_flight,
            self.refused + refused,
            self.unpriced + unpriced,
            self.input_tokens + input_tokens,
            self.output_tokens + output_tokens,
            self.stopped,
        )


@dataclass(frozen=True, slots=True)
class ExecutionStarted:
    """An execution was entered in the ledger."""

    execution: Execution
    figures: Figures


@dataclass(frozen=True, slots=True)
class ExecutionEnded:
    """An execution is over; its figures are final unless an unconfirmed call is settled later."""

    execution: Execution
    figures: Figures


@dataclass(frozen=True, slots=True)
class CallChanged:
    """A call was reserved, settled, released, refused or became unconfirmed (`call.state` says which)."""

    call: Call
    figures: Figures


@dataclass(frozen=True, slots=True)
class CallReconciled:
    """What a call in doubt cost was found out, and corrected in the ledger."""

    before: Call
    after: Call


@dataclass(frozen=True, slots=True)
class BudgetChanged:
    """An execution's cap was raised or lowered, or its calls were stopped by the user."""

    execution_id: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class CheckpointTaken:
    """A checkpoint was written."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Variables were restored from a checkpoint; `undo` is the automatic checkpoint taken just before."""

    checkpoint: Checkpoint
    undo: Checkpoint


@dataclass(frozen=True, slots=True)
class CallContent:
    """What a call asked and what it answered. Told only to those who `follow_content`, just before the call's end.

    Attributes:
        instructions: what the model is told beside the conversation, as parts; `asked`, `answered`: messages. All in the form of
            OpenTelemetry's GenAI conventions, with what looks like a key taken out.
        left_out: how many earlier messages were too long to be kept.
    """

    call_id: str
    instructions: list[dict[str, Any]]
    asked: list[dict[str, Any]]
    answered: list[dict[str, Any]]
    left_out: int = 0


Event = ExecutionStarted | ExecutionEnded | CallChanged | CallReconciled | BudgetChanged | CheckpointTaken | RolledBack


class Listener(Protocol):
    """Anything that can be called with an event."""

    def __call__(self, event: Event, /) -> object: ...


_lock = threading.Lock()
#: Those who listen now: by `subscribe` only. Looked at before an event is made, so that none is made for nobody.
listeners: tuple[Listener, ...] = ()


def subscribe(listener: Listener) -> Callable[[], None]:
    """Call `listener` with every event from now on. Returns its own undo, which may be called more than once."""
    global listeners
    with _lock:
        listeners = (*listeners, listener)

    def undo() -> None:
        global listeners
        with _lock:
            # By identity: two equal bound methods of one object are two subscriptions, and each undo takes back one.
            for index, known in enumerate(listeners):
                if known is listener:
                    listeners = listeners[:index] + listeners[index + 1 :]
                    return

    return undo


def emit(event: Event) -> None:
    """Tell every listener. Never raises."""
    for listener in listeners:
        try:
            listener(event)
        except Exception:
            _log.exception("wflo_nb listener %r failed; the call it listened to is not affected", listener)


# -- contents of calls, which nobody sees who did not ask ------------------------------------------------------------------

#: Those who want to see prompts and answers: by `follow_content` only.
readers: tuple[Callable[[CallContent], object], ...] = ()


def follow_content(reader: Callable[[CallContent], object]) -> Callable[[], None]:
    """Show `reader` the prompts and answers of calls from now on. Returns its own undo, which may be called more than once."""
    global readers
    with _lock:
        readers = (*readers, reader)

    def undo() -> None:
        global readers
        with _lock:
            readers = tuple(one for one in readers if one is not reader)

    return undo


def tell_content(content: CallContent) -> None:
    """Show it to everybody who asked. Never raises."""
    for reader in readers:
        try:
            reader(content)
        except Exception as error:  # what it says may quote the content
            _log.warning("a reader of contents failed (%s); the call is not affected", type(error).__name__)
