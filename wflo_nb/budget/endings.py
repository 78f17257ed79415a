"""How calls and executions end. Of calls: in the ledger, at once where that takes microseconds, else by its own thread, and in the figures
of the account.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from wflo_nb import events
from wflo_nb.budget.account import Account
from wflo_nb.errors import StoreError, format_usd, tell
from wflo_nb.model import Call, CallState, ExecutionStatus, now, now_us, usd

_log = logging.getLogger(__name__)


def finish(account: Account, call: Call) -> None:
    """Record how a call ended: SETTLED, RELEASED or UNCONFIRMED. Never raises: the answer is paid and belongs to the user."""
    if _finished_at_once(account, call):
        if account.ledger.postponed:
            account.ledger.tidy()
    else:
        _finish_in_store(account, call)


def finish_in_loop(account: Account, call: Call) -> None:
    """`finish` for an event loop, which does not wait for a disk: at once if that takes microseconds, otherwise in the ledger's
    thread, together with others that end at the same time.
    """
    if not _finished_at_once(account, call):
        account.ledger.post_together(_finish_all, (account, call))
    else:
        account.ledger.tidy_soon()


def release(account: Account, call: Call) -> None:
    """Give a hold back: the call was never sent."""
    finish(account, call.changed(state=CallState.RELEASED, cost_nano=0, reason="cancelled before it was sent", settled_us=now_us()))


def record_unmetered(account: Account, call: Call) -> None:
    """Record a call that was sent although nothing about its cost can be read (only without a budget)."""
    account.begin()
    if account.offline or not _finished_in_store(account, call):
        account.ledger.keep(partial(account.store.finish, call))
    account.count(call, 0, calls=1, unpriced=1)
    account.ledger.tidy()


def record_spent(account: Account, call: Call) -> None:
    """Record a call that was known only when it was over, and so held nothing: what it cost is spent, and no cap is asked."""
    account.begin()
    try:
        if not account.offline:
            account.store.record(call, account.innermost.rows() if account.innermost else ())
    except StoreError as error:  # the answer is paid, and the user's
        tell(f"A finished call could not be recorded, and is missing from its budget: {error}")
    account.count(call, 0, in_flight=1)
    account.count_end(call, 0)


def end(account: Account, status: ExecutionStatus, *, outputs: object = None, error: dict[str, object] | None = None) -> None:
    """Close the execution in the ledger. Calls of threads that it left behind are still charged to it."""
    account.ledger.drain()
    at = now()
    if account.begun:  # the store of one that made no call may not even be open

        def write() -> None:
            account.store.end_execution(account.id, status, outputs=outputs, error=error, at=at)

        try:
            if account.offline:
                account.ledger.keep(write)
            else:
                account.ledger.catch_up()
                write()
        except StoreError as fault:
            tell(f"The end of {account.execution.workflow} could not be recorded yet: {fault}")
            account.ledger.keep(write)
    account.execution = replace(account.execution, status=status, updated_at=at, error=error, cost_nano=account.own_cost)
    if account.outer is None:
        account.answers.clear()  # an error that stopped it has its own hold of them
    if account.begun:
        events.emit(events.ExecutionEnded(account.execution, account.figures))


def _finished_at_once(account: Account, call: Call) -> bool:
    """Record an end in microseconds, where the store can keep it in memory. False, and nothing is done, if it cannot."""
    if account.offline:
        return False
    try:
        if not account.store.finish_now(call):
            return False
    except Exception:  # `finish` knows what to do about it
        _log.warning("a call could not be recorded at once and is recorded a moment later", exc_info=True)
        return False
    except BaseException:
        account.ledger.later(_finish_in_store, account, call)
        raise
    try:
        account.line.flying.pop(call.id, None)
        account.count_end(call, call.reserved_nano)
    except BaseException:
        if call.id in account.line.held:  # nothing of it is in the figures yet
            account.ledger.later(account.count_end, call, call.reserved_nano)
        raise
    return True


def _finish_in_store(account: Account, call: Call) -> None:
    held = call.reserved_nano
    account.line.flying.pop(call.id, None)
    try:
        if account.offline or not _finished_in_store(account, call):
            account.ledger.keep(partial(account.store.finish, call))
    except Exception as error:  # also what nobody foresaw: the answer is worth more than our record of it
        # The hold stays in the store, so the budget stays safe; what is lost is only the refund of its unused part.
        call = call.changed(state=CallState.UNCONFIRMED, cost_nano=held, reason=f"the ledger could not be written: {error}")
        tell(f"A finished call could not be recorded; its hold of {format_usd(usd(held))} stays counted. {error}")
    except BaseException:  # an interrupt: it is the user's, and the record is made a moment later
        account.ledger.later(_finish_in_store, account, call)
        raise
    account.count_end(call, held)
    account.ledger.tidy()


def _finished_in_store(account: Account, call: Call) -> bool:
    try:
        account.store.finish(call)
    except StoreError as error:
        if account.limited:
            raise
        account.unreachable(error)
        return False
    return True


def _finish_all(ended: list[tuple[Account, Call]]) -> None:
    """Record calls that ended at about the same time: one wait for the disk instead of one for each. All are of one store."""
    kept: list[tuple[Account, Call]] = []
    rest: list[tuple[Account, Call]] = []
    for one in ended:
        (rest if one[0].offline else kept).append(one)
    if len(kept) > 1:
        try:
            kept[0][0].store.finish_all([call for _, call in kept])
        except Exception:
            _log.warning("calls could not be recorded together and are recorded one by one", exc_info=True)
        else:
            for account, call in kept:
                account.line.flying.pop(call.id, None)
                account.count_end(call, call.reserved_nano)
            kept[0][0].ledger.tidy()
            ended = rest
    for account, call in ended:
        _finish_in_store(account, call)
