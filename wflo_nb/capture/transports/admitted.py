"""A call whose money is held before the request is signed, on its way to the transport that sends it (botocore)."""

from __future__ import annotations

from contextvars import ContextVar

from wflo_nb.capture.exchange import Exchange

#: One place for one exchange, so that it is taken once also where the context was copied on the way.
_waiting: ContextVar[list[Exchange] | None] = ContextVar("wflo_nb_admitted", default=None)


def offer(exchange: Exchange | None) -> list[Exchange]:
    """Let the next transport of this context follow `exchange`. Returns where it lies until it is taken."""
    place = [] if exchange is None else [exchange]
    _waiting.set(place)
    return place


def take() -> Exchange | None:
    """The exchange that was admitted for what is sent now, if one was."""
    place = _waiting.get()
    return place.pop() if place else None


def withdraw() -> None:
    """Nothing is on its way any more."""
    _waiting.set(None)
