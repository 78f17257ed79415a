"""The rules of money as plain functions from one state to the next: no database, no clock, no thread.

This is what the stores promise to do, small enough to be read in one sitting, and what they are checked against step by step
(``tests/contract/test_machine.py``). How much a reserve may hold and what an ended call costs are `grant` and `cost_of` of the store
room: the embedded store and this model run the same lines, the PostgreSQL statements say them in SQL.

The invariant. For every budget with a cap, ``spent + held <= cap``. It holds by induction, because of what each transition may do:

* `reserve` and `lease` add to *held*, never beyond the cap of any budget of the chain; nothing else adds to ``spent + held``, but
* an ended call whose cost is above its hold, a broken price bound, adds exactly the difference, and
* `record` adds the cost of a call that never asked.
* Everything else moves money from *held* to *spent* or gives it back. Lowering a cap moves nothing: it only admits less.

A lease is money that a holder may spend without asking again. It counts as held in its budgets; what the holder spends is taken out of
it when the call is shipped. When its holder is lost, the rest becomes spent and *unconfirmed*, never free: the holder may have spent it.
Should it come back, its calls are paid out of what was counted as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from wflo_nb.model import BudgetState, Call, CallState
from wflo_nb.store.records import Shortfall
from wflo_nb.store.rows import cost_of, grant


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger knows of one call.

    Attributes:
        chain: the budgets that it is charged to, root first.
        held: what was held for it; kept when the hold is over.
        cost: what it adds to the sums; None while it is open, or when no price is known.
        holder: who holds the money, while the call is open.
    """

    state: CallState
    chain: tuple[str, ...] = ()
    held: int = 0
    cost: int | None = None
    holder: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """Money of one budget in the hands of one holder.

    Attributes:
        outstanding: leased, and neither spent nor given back: part of the budget's *held*.
        lost: was outstanding when its holder was given up: part of the budget's *unconfirmed*.
    """

    outstanding: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Books:
    """Everything that money rules speak of. Never changed: each transition returns new books."""

    budgets: Mapping[str, BudgetState] = field(default_factory=dict)
    calls: Mapping[str, Entry] = field(default_factory=dict)
    leases: Mapping[tuple[str, str], Lease] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("budgets", "calls", "leases"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


# -- budgets -----------------------------------------------------------------------------------------------------------


def open_budget(books: Books, budget: BudgetState) -> Books:
    """Enter a budget; one that is there keeps its cap and its sums."""
    return books if budget.id in books.budgets else replace(books, budgets={**books.budgets, budget.id: budget})


def set_cap(books: Books, budget: str, cap: int | None) -> Books:
    """Raise, lower or take away a cap. No sum changes."""
    return replace(books, budgets={**books.budgets, budget: replace(books.budgets[budget], cap_nano=cap)})


def _moved(books: Books, chain: Iterable[str], held: int = 0, spent: int = 0, doubt: int = 0) -> dict[str, BudgetState]:
    """The budgets after the same change to each of a chain."""
    budgets = dict(books.budgets)
    for id in chain:
        b = budgets[id]
        budgets[id] = replace(b, held_nano=b.held_nano + held, spent_nano=b.spent_nano + spent, unconfirmed_nano=b.unconfirmed_nano + doubt)
    return budgets


# -- calls -------------------------------------------------------------------------------------------------------------


def reserve(
    books: Books, call: str, chain: Sequence[str], lo: int, hi: int, *, share: int = 1, holder: str | None = None
) -> tuple[Books, int | Shortfall]:
    """Hold money on every budget of the chain, or on none. The same call asked again gets the same answer and is held once.

    Raises:
        KeyError: a budget of the chain was never opened.
    """
    if call in books.calls:
        return books, books.calls[call].held
    ids = tuple(dict.fromkeys(chain))
    amount = grant([books.budgets[id] for id in ids], lo, hi, share)
    if isinstance(amount, Shortfall):
        return books, amount
    entry = Entry(CallState.RESERVED, ids, amount, None, holder)
    return replace(books, budgets=_moved(books, ids, held=amount), calls={**books.calls, call: entry}), amount


def finish(books: Books, call: str, state: CallState, cost: int | None = None, chain: Sequence[str] = ()) -> Books:
    """How a call ended: SETTLED, RELEASED or UNCONFIRMED. What is final stays; UNCONFIRMED may still be corrected.

    No cap is asked: money that is spent is recorded. A call that is not in the books is recorded, charged to `chain`.
    """
    known = books.calls.get(call)
    if known is None:
        return record(books, call, state, cost, chain)
    if known.state not in (CallState.RESERVED, CallState.UNCONFIRMED) or known.state is state:
        return books
    final = _cost(call, state, cost, known.held)
    before = (known.cost or 0) if known.state is CallState.UNCONFIRMED else 0
    budgets = _moved(
        books,
        known.chain,
        held=-known.held if known.state is CallState.RESERVED else 0,
        spent=(final or 0) - before,
        doubt=((final or 0) if state is CallState.UNCONFIRMED else 0) - before,
    )
    return replace(books, budgets=budgets, calls={**books.calls, call: replace(known, state=state, cost=final)})


def settle(books: Books, call: str, cost: int | None) -> Books:
    """The cost is known and spent; None: no price is known, and no sum changes."""
    return finish(books, call, CallState.SETTLED, cost)


def release(books: Books, call: str) -> Books:
    """It provably never ran: everything is given back."""
    return finish(books, call, CallState.RELEASED)


def unconfirmed(books: Books, call: str, cost: int | None = None) -> Books:
    """Nobody knows: the whole hold counts as spent until the truth is known."""
    return finish(books, call, CallState.UNCONFIRMED, cost)


def record(books: Books, call: str, state: CallState, cost: int | None, chain: Sequence[str] = (), held: int = 0) -> Books:
    """Enter a call that is over and never held money in these books. The second time changes nothing."""
    if call in books.calls:
        return books
    ids = tuple(dict.fromkeys(chain))
    final = _cost(call, state, cost, held)
    budgets = _moved(books, ids, spent=final or 0, doubt=(final or 0) if state is CallState.UNCONFIRMED else 0)
    return replace(books, budgets=budgets, calls={**books.calls, call: Entry(state, ids, held, final)})


def sweep(books: Books, dead: Callable[[str], bool]) -> Books:
    """Holders that are no more: their open calls become UNCONFIRMED."""
    for id, entry in books.calls.items():
        if entry.state is CallState.RESERVED and entry.holder is not None and dead(entry.holder):
            books = unconfirmed(books, id)
    return books


def _cost(call: str, state: CallState, cost: int | None, held: int) -> int | None:
    return cost_of(Call(call, "", "", "", "", state, 0, cost_nano=cost), held)


# -- leases ------------------------------------------------------------------------------------------------------------


def lease(books: Books, holder: str, chain: Sequence[str], lo: int, hi: int) -> tuple[Books, int | Shortfall]:
    """Hold money on every budget of a chain in the name of a holder, who may then spend it without asking.

    Raises:
        KeyError: a budget of the chain was never opened.
    """
    ids = tuple(dict.fromkeys(chain))
    amount = grant([books.budgets[id] for id in ids], lo, hi, 1)
    if isinstance(amount, Shortfall):
        return books, amount
    leases = dict(books.leases)
    for id in ids:
        had = leases.get((id, holder), Lease())
        leases[id, holder] = replace(had, outstanding=had.outstanding + amount)
    return replace(books, budgets=_moved(books, ids, held=amount), leases=leases), amount


def give_back(books: Books, holder: str, budget: str, amount: int) -> Books:
    """Return leased money that was not spent: of what is outstanding, then of what was counted as lost; never more than that."""
    had = books.leases.get((budget, holder), Lease())
    back = min(amount, had.outstanding)
    found = min(amount - back, had.lost)
    leases = {**books.leases, (budget, holder): Lease(had.outstanding - back, had.lost - found)}
    return replace(books, budgets=_moved(books, (budget,), held=-back, spent=-found, doubt=-found), leases=leases)


def expire_lease(books: Books, holder: str, budget: str) -> Books:
    """Give a holder up: what it has not accounted for counts as spent, unconfirmed."""
    had = books.leases.get((budget, holder), Lease())
    out = had.outstanding
    leases = {**books.leases, (budget, holder): Lease(0, had.lost + out)}
    return replace(books, budgets=_moved(books, (budget,), held=-out, spent=out, doubt=out), leases=leases)


def ship(books: Books, holder: str, call: str, state: CallState, cost: int | None, chain: Sequence[str], held: int = 0) -> Books:
    """Enter an ended call that was paid out of leases; the second time changes nothing.

    It is taken from what is outstanding, then from what was counted as lost: that is spent already, and now it is known for what. What
    neither covers was spent beyond the lease (a broken price bound), and is recorded like any other cost.
    """
    if call in books.calls:
        return finish(books, call, state, cost)
    ids = tuple(dict.fromkeys(chain))
    final = _cost(call, state, cost, held)
    amount = final or 0
    doubt = amount if state is CallState.UNCONFIRMED else 0
    leases = dict(books.leases)
    for id in ids:
        had = leases.get((id, holder), Lease())
        paid = min(amount, had.outstanding)
        found = min(amount - paid, had.lost)
        leases[id, holder] = Lease(had.outstanding - paid, had.lost - found)
        books = replace(books, budgets=_moved(books, (id,), held=-paid, spent=amount - found, doubt=doubt - found))
    return replace(books, calls={**books.calls, call: Entry(state, ids, held, final)}, leases=leases)


# -- what must be true -------------------------------------------------------------------------------------------------


def faults(books: Books) -> list[str]:
    """What does not add up in these books, in words; nothing when all is well.

    Every counter is the sum over the calls and leases that it stands for, and none is below zero.
    """
    found = []
    for id, b in books.budgets.items():
        mine = [e for e in books.calls.values() if id in e.chain]
        leases = [lease for (budget, _), lease in books.leases.items() if budget == id]
        lost = sum(lease.lost for lease in leases)
        sums = {
            "held": (b.held_nano, sum(e.held for e in mine if e.state is CallState.RESERVED) + sum(lease.outstanding for lease in leases)),
            "spent": (b.spent_nano, sum(e.cost or 0 for e in mine) + lost),
            "unconfirmed": (b.unconfirmed_nano, sum(e.cost or 0 for e in mine if e.state is CallState.UNCONFIRMED) + lost),
        }
        for name, (counter, added) in sums.items():
            if counter != added:
                found.append(f"budget {id}: {name} is {counter}, its calls and leases add up to {added}")
            if counter < 0:
                found.append(f"budget {id}: {name} is {counter}, below zero")
    return found


def over(books: Books) -> dict[str, int]:
    """By how much budgets are above their caps: empty unless a price bound was wrong, or a cap was lowered below what was spent."""
    found = {id: b.spent_nano + b.held_nano - b.cap_nano for id, b in books.budgets.items() if b.cap_nano is not None}
    return {id: excess for id, excess in found.items() if excess > 0}
