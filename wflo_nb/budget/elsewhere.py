"""What worker processes spent of an execution's money: the ledger knows, and the process of the execution asks when it ends."""

from __future__ import annotations

from datetime import timedelta

from wflo_nb.budget.account import Account
from wflo_nb.budget.budget import key_of
from wflo_nb.errors import StoreError, tell
from wflo_nb.store.holder import is_dead, this_holder

#: How far the clocks of two machines may be apart.
_CLOCKS = timedelta(minutes=10)


def gather(account: Account) -> None:
    """Bring an account's figures and refusal up to date with what other processes did for its execution and for those inside it. Holds
    of those that were killed become unconfirmed. Never raises: the ledger is right, whatever the figures miss.
    """
    if not account.begun or account.offline:
        return
    store, since = account.store, account.execution.created_at - _CLOCKS
    try:
        found = store.elsewhere(account.id, since=since, holder=this_holder())
        if found.in_flight and store.sweep(is_dead):
            found = store.elsewhere(account.id, since=since, holder=this_holder())
    except StoreError as fault:
        tell(f"What worker processes of {account.execution.workflow} spent could not be read; the ledger has it. {fault}")
        return
    ours = _budgets(account)
    account.take_in(found, next((words for row, words in found.short_of_money if row is None or key_of(row) in ours), None))


def _budgets(account: Account) -> set[str]:
    """The budgets whose refusal stops an execution, by key: those that its calls are charged to, and those of its steps. One that a block
    inside it has stops that block alone.
    """
    steps = [inner.budget.key for inner in account.steps.values() if inner.budget is not None]
    return {*(budget.key for budget in (account.innermost.chain if account.innermost else ())), *steps}
