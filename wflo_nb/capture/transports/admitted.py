"""A call that the gate was asked about before it was signed, on its way to the transport that sends it (botocore)."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from wflo_nb.capture.exchange import Exchange


@dataclass(slots=True)
class Admitted:
    """The gate's answer: an exchange to follow, or None where it has nothing to do with the call. For one send."""

    exchange: Exchange | None
    taken: bool = False


#: Shared by copies of the context, so that it is taken once.
_waiting: ContextVar[Admitted | None] = ContextVar("wflo_nb_admitted", default=None)


def offer(admission: Admitted | None) -> None:
    """Let the next transport of this context use `admission` and not ask again; None when nothing is on its way any more."""
    _waiting.set(admission)


def take() -> Admitted | None:
    """What the gate said of the call that is sent now, None if nobody has asked it."""
    admission = _waiting.get()
    if admission is None or admission.taken:
        return None
    admission.taken = True
    return admission
