"""A booking that cannot be entered whole is entered call by call: one record that no table can keep must not hold the others back."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wflo_nb.errors import StoreUnavailableError, tell
from wflo_nb.store import booking
from wflo_nb.store.booking import Batch, Flight

_log = logging.getLogger(__name__)

#: Books as one transaction, and says what `booking.book` says.
Book = Callable[[Batch], bool]


def enter(batch: Batch, book: Book) -> bool:
    """Book a batch one by one. Of what cannot be entered even so only the cost is, and the user is told; a hold stays a part of the lease,
    and its flight is neither among those of the batch any more nor `stored`.

    Returns:
        what `booking.book` does.

    Raises:
        StoreUnavailableError: the tables cannot be written at all.
    """
    needed: dict[str, int] = defaultdict(int, batch.needed)
    for flight in (*(one.flight for one in batch.ended if not one.flight.stored), *(flight for flight, _ in batch.flights)):
        for id in flight.chain:
            needed[id] += flight.held
    for one in batch.ended:
        for id in one.flight.chain if not one.flight.stored else ():
            needed[id] -= one.flight.held
        alone = Batch(batch.key, [one], (), needed, one.number)
        try:
            book(alone)
        except StoreUnavailableError:
            raise
        except Exception as error:
            tell(f"Of a finished call only what it cost could be recorded. {error}")
            book(replace(alone, ended=[booking.bare(one, f"its record could not be entered: {error}")]))
    batch.flights = [pair for pair in batch.flights if _entered(batch, pair, needed, book)]
    return book(Batch(batch.key, (), (), needed, batch.number))


def _entered(batch: Batch, pair: tuple[Flight, dict[str, Any]], needed: dict[str, int], book: Book) -> bool:
    flight = pair[0]
    after = {**needed, **{id: needed[id] - flight.held for id in flight.chain}}
    try:
        book(Batch(batch.key, (), [pair], after, batch.number))
    except StoreUnavailableError:
        raise
    except Exception:
        _log.warning("the call %s, which is under way, could not be entered", flight.id, exc_info=True)
        flight.stored = False
        return False
    needed.update(after)
    return True
