"""Money: reserve an upper bound, then settle, release or keep it as unconfirmed.

`budget.py` is one cap, `account.py` the money of one execution inside a chain of caps, `ledger.py` the way to the store that
never blocks an event loop.
"""
