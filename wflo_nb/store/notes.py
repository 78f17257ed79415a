"""What a journal says of a call, written and read: the two kinds of notes of a purse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wflo_nb.errors import StoreError
from wflo_nb.model import Call, CallState
from wflo_nb.store import rows
from wflo_nb.store.booking import Ended, Flight


def held_note(flight: Flight) -> list[Any]:
    """What a journal says of a hold: as little as will do, since it may have to fit on a disk that is nearly full."""
    c = flight.call
    if c is None:
        raise StoreError(f"Call {flight.id} is over.")
    return [
        "held", flight.number, c.id, flight.held, flight.chain, c.execution_id, c.budget_id, c.provider, c.api, c.model, c.stream,
        c.cell, c.cell_id, c.step, c.holder, c.created_us, flight.stored,
    ]  # fmt: skip


def flight_from(line: Sequence[Any]) -> Flight:
    """The call that `held_note` told of."""
    _, number, id, held, chain, execution, budget, provider, api, model, stream, cell, cell_id, step, holder, created, stored = line
    call = Call(
        id, execution, provider, api, model, CallState.RESERVED, int(created),
        budget_id=budget, stream=stream, cell=cell, cell_id=cell_id, step=step, holder=holder,
    )  # fmt: skip
    return Flight(id, execution, tuple(chain), int(held), call, int(number), stored=bool(stored))


def ended_note(one: Ended) -> list[Any]:
    """What a journal says of a call that is over."""
    flight = one.flight
    return ["over", one.number, flight.id, flight.execution, flight.chain, flight.held, one.cost, flight.stored, one.row]


def ended_from(line: Sequence[Any], flights: Mapping[str, Flight]) -> Ended:
    """The end that `ended_note` told of.

    Raises:
        ValueError: it is of another version.
    """
    _, number, id, execution, chain, held, cost, stored, row = line
    if len(row) != len(rows.CALL_COLUMNS):
        raise ValueError("a note of another version")
    flight = flights.get(id) or Flight(id, execution, tuple(chain), int(held), None)
    flight.stored = flight.stored or bool(stored)
    return Ended(flight, tuple(row), cost, int(number))
