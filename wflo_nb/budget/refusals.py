"""A refusal for lack of money: its error, its record, and its figures, which are kept with the refused call so that it can be explained
later, also by another kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from wflo_nb.errors import BudgetExceededError, BudgetUnavailableError, StoreError, WfloError, format_usd
from wflo_nb.model import BudgetState, Call, CallState, now, now_us, usd
from wflo_nb.store import Store

if TYPE_CHECKING:
    from wflo_nb.budget.account import Account

_log = logging.getLogger(__name__)

#: So many calls in flight are named, the largest first; the others are summed up.
_NAMED = 8

#: When and in what words the ledger last could not be used: such a refusal cannot be in the ledger.
_unavailable: tuple[datetime, str] | None = None


class Quote(Protocol):
    """How a call's bounds came about. Asked only when they do not fit."""

    def closer(self) -> tuple[int, int] | None:
        """Closer bounds, the least and the most, found with more effort; None if there are none (any more)."""
        ...

    def explain(self, error: WfloError) -> dict[str, Any]:
        """Put the arithmetic of the bound on a refusal. Returns it as plain values for the record of the call."""
        ...


def unreachable(error: WfloError) -> WfloError:
    """Remember that calls were refused because the ledger could not be used. Returns `error`, to be raised."""
    global _unavailable
    _unavailable = (now(), str(error))
    return error


def last_unreachable() -> tuple[datetime, str] | None:
    """When the ledger of this process last could not be used, and the words that said so."""
    return _unavailable


def exceeded(account: Account, call: Call, state: BudgetState | None, requested_nano: int, hint: str | None = None) -> BudgetExceededError:
    """The error for a call that does not fit into a budget, as the ledger had that (`state`)."""
    refuser = account.budget_of(state.id) if state else None
    error = BudgetExceededError(
        spent_usd=usd(state.spent_nano if state else account.figures.spent_nano),
        held_usd=usd(state.held_nano if state else account.figures.held_nano),
        budget_usd=usd(state.cap_nano or 0) if state else usd(0),
        requested_usd=usd(requested_nano),
        scope=state.scope if state else "execution",
        execution_id=account.id,
        model=call.model,
        cell=call.cell,
        call_id=call.id,
        hint=hint or (refuser.advice if refuser else None),
    )
    account.show_delivered(error)
    return error


def latched(account: Account, call: Call, requested_nano: int, stopped: str) -> BudgetExceededError:
    """The error for a call after the one that was refused first, or after the user's stop."""
    tightest = None
    with suppress(StoreError):  # nothing is sent anyway
        tightest = account.tightest()
    if stopped == "user":
        error = exceeded(account, call, tightest, requested_nano)
        spent = format_usd(usd(account.figures.spent_nano))
        error.args = (f"Call to {call.model} refused before it was sent: you stopped this run after {spent}. Run the cell again to go on.",)
        return error
    hint = "An earlier call was refused for lack of money, so nothing more is sent here. Raise the budget to go on."
    return exceeded(account, call, tightest, requested_nano, hint)


def recorded(account: Account, call: Call, error: WfloError, quote: Quote | None = None, facts: dict[str, Any] | None = None) -> WfloError:
    """Record a call that is not sent, with the arithmetic of its bound and the `facts` of the refusal, for `%wflo why`. Returns
    `error`, to be raised.
    """
    if facts is not None:
        call = call.changed(meta={**call.meta, "refused": facts})
    if quote is not None:
        call = call.changed(meta={**call.meta, "bound": quote.explain(error)})
    # The kind of refusal, for other processes: one for lack of money ends the execution wherever it happened.
    call = call.changed(meta={**call.meta, "error": type(error).__name__})
    call = call.changed(state=CallState.REFUSED, cost_nano=0, reserved_nano=0, reason=str(error), settled_us=now_us())
    try:
        account.begin()
        if not account.offline:
            account.store.record(call)
    except (StoreError, BudgetUnavailableError):
        _log.warning("a refused call could not be recorded", exc_info=True)
    account.count(call, 0, refused=1)
    account.ledger.tidy()
    return error


def levels(states: Sequence[BudgetState]) -> list[dict[str, Any]]:
    """Budgets as plain figures."""
    return [
        {
            "id": s.id,
            "scope": s.scope,
            "cap_nano": s.cap_nano,
            "spent_nano": s.spent_nano,
            "unconfirmed_nano": s.unconfirmed_nano,
            "held_nano": s.held_nano,
            "left_nano": s.left_nano,
        }
        for s in states
    ]


def figures(store: Store, chain: Sequence[str], refuser: BudgetState, requested_nano: int) -> dict[str, Any]:
    """What a refusal for lack of money is explained with: the budget that refused as the ledger saw it in that step, the others of
    the chain, and who held the money. The last two are read a moment later. Never raises: a refusal stands without its explanation.
    """
    told: dict[str, Any] = {"budget": refuser.id, "requested_nano": requested_nano, "levels": levels([refuser])}
    try:
        others = {s.id: s for s in store.budgets(chain)}
        told["levels"] = levels([refuser if id == refuser.id else others[id] for id in chain if id in others])
        if refuser.held_nano:
            told["holders"] = _holders(store, refuser.id)
    except StoreError:
        _log.debug("the surroundings of a refusal could not be read", exc_info=True)
    return told


def _holders(store: Store, budget: str) -> list[dict[str, Any]]:
    found = [e.call for e in store.calls(CallState.RESERVED) if budget in e.chain and e.call.reserved_nano]
    found.sort(key=lambda c: -c.reserved_nano)
    told: list[dict[str, Any]] = [
        {
            "call": c.id,
            "model": c.model,
            "held_nano": c.reserved_nano,
            "since": c.created_at.isoformat(),
            "cell": c.cell,
            "holder": c.holder,
        }
        for c in found[:_NAMED]
    ]
    if len(found) > _NAMED:
        told.append({"calls": len(found) - _NAMED, "held_nano": sum(c.reserved_nano for c in found[_NAMED:])})
    return told
