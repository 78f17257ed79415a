"""Where the money went, as pandas DataFrames.

    from wflo_nb import report

    report.costs(by="model")
    report.calls().groupby("cell")["cost_usd"].sum()

Every number adds up to the ledger: the sum of ``cost_usd`` over `costs` of any grouping, over `calls` and over
`executions` is the same amount. (Calls outside of any execution belong to none of the last.)

Types of the columns, also of empty frames:

* money (``…_usd``): exact decimals, ``decimal128(20, 9)``, whose sums are exact as well. For a ratio or a plot, take
  ``.astype(float)`` first. ``cost_nano`` is the same amount in whole nano-USD. A price that is not known is ``<NA>``, never 0;
* counts and tokens: ``Int64``; milliseconds: ``Float64``; text: ``string``; yes or no: ``boolean``: all can be ``<NA>``;
* times: ``datetime64[us, UTC]``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wflo_nb import store as stores
from wflo_nb._context import KINDS
from wflo_nb.errors import StoreUnavailableError
from wflo_nb.store import Store

if TYPE_CHECKING:
    import pandas as pd

By = Literal["model", "cell", "step", "node", "agent", "task", "tool", "workflow", "day", "provider", "status"]

__all__ = ["budgets", "calls", "checkpoints", "costs", "executions"]

_TOKENS = dict.fromkeys(
    ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens"), "count"
)
# Column of the frame → its kind. A column of a store that is named otherwise stands behind the bar.
_EXECUTIONS = {
    "id": "text",
    "workflow|workflow_definition_id": "text",
    "status": "text",
    "cell": "text",
    "cost_usd|cost_nano": "money",
    "unconfirmed_usd|unconfirmed_nano": "money",
    "budget_usd|budget_nano": "money",
    "unpriced": "count",
    "error": "fault",
    "created_at": "time",
    "updated_at": "time",
    "cell_id": "text",
    "notebook_id": "text",
    "kernel_id": "text",
    "parent_id": "text",
    "cost_nano": "count",
}
_CALLS = {
    "id": "text",
    "execution_id": "text",
    "cell": "text",
    "step": "text",
    "provider": "text",
    "api": "text",
    "model": "text",
    "answered_model": "text",
    "status|state": "text",
    **_TOKENS,
    "cost_usd|cost_nano": "money",
    "reserved_usd|reserved_nano": "money",
    "reason": "text",
    "created_at": "time",
    "settled_at": "time",
    "latency_ms": "real",
    "ttft_ms": "real",
    "stream": "flag",
    "http_status": "count",
    "cap_written": "count",
    "price_source": "text",
    "price_date": "text",
    "budget_id": "text",
    "cell_id": "text",
    "cost_nano": "count",
    **dict.fromkeys(KINDS, "text"),
}
_BUDGETS = {
    "id": "text",
    "scope": "text",
    "cap_usd|cap_nano": "money",
    "spent_usd|spent_nano": "money",
    "unconfirmed_usd|unconfirmed_nano": "money",
    "held_usd|held_nano": "money",
    "parent_id": "text",
    "name": "text",
    "period": "text",
    "zone": "text",
    "updated_at": "time",
}
_CHECKPOINTS = {
    "id": "text",
    "label|step_id": "text",
    "version": "count",
    "variables|variable_count": "count",
    "bytes|bytes_total": "count",
    "created_at": "time",
    "execution_id": "text",
    "parent_id": "text",
    "scope": "text",
}
# The money first: in a notebook the right end of so wide a table is out of sight.
_COSTS = {
    "cost_usd|cost_nano": "money",
    "unconfirmed_usd|unconfirmed_nano": "money",
    "calls": "count",
    "refused": "count",
    "unpriced": "count",
    **_TOKENS,
    "cost_nano": "count",
}


def executions(store: Store | str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """One row per tracked cell, block or workflow run, oldest first; ``cost_usd`` is what its own calls cost, ``unconfirmed_usd`` the
    part of it that no usage ever confirmed.

    ``unpriced`` counts those of its calls that have no known price and are in no sum; with no others, the cost is ``<NA>``.

    Args:
        store: a store, or where one is; by default the store of this process.
    """
    return _table("executions", _EXECUTIONS, store)


def calls(store: Store | str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """One row per attempt to call a model, oldest first: also refused ones (cost 0) and those under way (cost ``<NA>``).

    Tokens are ``<NA>`` when the provider sent no usage; ``reason`` says why a call was refused, released, unconfirmed or unpriced.
    ``agent``, ``task`` and ``tool`` are what a framework calls the place in which it was made, as far as it tells.

    Args:
        store: a store, or where one is; by default the store of this process.
    """
    return _table("calls", _CALLS, store)


def checkpoints(store: Store | str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """One row per saved state of variables, oldest first; ``bytes`` before equal parts are shared.

    Args:
        store: a store, or where one is; by default the store of this process.
    """
    return _table("checkpoints", _CHECKPOINTS, store)


def budgets(store: Store | str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """One row per budget: cap (``<NA>``: it only counts), spent with the ``unconfirmed_usd`` part of it, and held for calls in flight.

    A budget counts what those inside it spend, so that rows of different levels must not be added up.

    Args:
        store: a store, or where one is; by default the store of this process.
    """
    return _table("budgets", _BUDGETS, store)


def costs(by: By | str = "model", store: Store | str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Calls, tokens and money per group, the dearest group first (days in order). The sums are made by the database.

    ``calls`` counts what was sent, ``refused`` what never was, ``unpriced`` what was sent and has no known price (it is in no sum of
    money); ``unconfirmed_usd`` is the part of ``cost_usd`` that no usage ever confirmed.

    Args:
        by: ``model`` (as asked for, with its provider), ``cell``, ``step`` (or ``node``: how the work is named in which
            a call was made), ``agent`` (the step's name where no framework tells another), ``task`` and ``tool`` (``<NA>`` outside of
            one), ``workflow``, ``day`` (UTC), ``provider`` or ``status``.
        store: a store, or where one is; by default the store of this process.

    Raises:
        ConfigurationError: there is no such grouping.
    """
    with _opened(store) as source:
        columns = source.aggregate(by)
    keys = {name: "time" if name == "day" else "text" for name in columns if name not in _stored(_COSTS)}
    return _frame({**keys, **_COSTS}, columns)


def _table(name: str, kinds: dict[str, str], store: Store | str | os.PathLike[str] | None) -> pd.DataFrame:
    with _opened(store) as source:
        columns = source.read(name)
    if name == "calls":
        columns |= {kind: [(meta or {}).get(kind) for meta in columns["meta"]] for kind in KINDS}
    return _frame(kinds, columns)


def _frame(kinds: dict[str, str], columns: dict[str, list[Any]]) -> pd.DataFrame:
    from wflo_nb.report.frames import frame  # pandas and pyarrow, at first use

    return frame({name.partition("|")[0]: (kind, columns[name.rpartition("|")[2]]) for name, kind in kinds.items()})


def _stored(kinds: dict[str, str]) -> set[str]:
    return {name.rpartition("|")[2] for name in kinds}


@contextmanager
def _opened(store: Store | str | os.PathLike[str] | None) -> Iterator[Store]:
    if store is None or isinstance(store, Store):
        yield store or stores.current()
        return
    if not stores.is_there(store):
        # Opening would make an empty one, perhaps in somebody's database, and a mistyped path would look like no spending at all.
        raise StoreUnavailableError(
            f"There is no store at {Path(os.fspath(store)).expanduser().absolute()}, so there is nothing to report. Check the path."
        )
    opened = stores.open_store(store)
    try:
        yield opened
    finally:
        opened.close()
