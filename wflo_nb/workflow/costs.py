"""What an execution has cost so far, by model, step and kind of token. The ledger's rows are added up, nothing is estimated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from wflo_nb.budget.account import Account
from wflo_nb.errors import UnknownModelError
from wflo_nb.model import usd
from wflo_nb.store import Store

_PAID = ("SETTLED", "UNCONFIRMED")
#: Where a call belongs to no step.
NO_STEP = ""


def breakdown(account: Account) -> dict[str, Any]:
    """The costs of an execution and of all inside it; see `WfloWorkflow.get_cost_breakdown`."""
    account.ledger.drain()
    figures = account.figures
    rows = list(_rows(account.store, account.id)) if account.begun and not account.offline else []
    paid = [row for row in rows if row["state"] in _PAID]
    total = sum(row["cost_nano"] or 0 for row in paid) if not account.offline else figures.spent_nano
    cap = account.execution.budget_nano if account.budget is None else account.budget.cap_nano
    return {
        "total_usd": usd(total),
        "budget_usd": None if cap is None else usd(cap),
        "remaining_usd": None if cap is None else usd(max(0, cap - total - figures.held_nano)),
        "exceeded": account.refusal is not None or (cap is not None and total > cap),
        "held_usd": usd(figures.held_nano),
        "unconfirmed_usd": usd(sum(row["cost_nano"] or 0 for row in paid if row["state"] == "UNCONFIRMED")),
        "calls": len(paid),
        "refused": sum(row["state"] == "REFUSED" for row in rows),
        "unpriced": sum(row["cost_nano"] is None for row in paid),
        "by_model": _by(paid, lambda row: row["model"]),  # what has no price at all is not there: $0 would not be true
        "by_step": _by(paid, lambda row: row["step"] or NO_STEP),
        "by_token_class": _by_token(account, paid, total),
    }


def _rows(store: Store, execution_id: str) -> Iterator[dict[str, Any]]:
    """The calls of an execution and of those inside it."""
    level = [execution_id]
    while level:
        columns = store.read("calls", where={"execution_id": level})
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        level = store.read("executions", where={"parent_id": level})["id"]


def _by(rows: Iterable[dict[str, Any]], key: Any) -> dict[str, Decimal]:
    sums: dict[str, int] = defaultdict(int)
    for row in rows:
        if row["cost_nano"] is not None:
            sums[key(row)] += row["cost_nano"]
    return {name: usd(nano) for name, nano in sorted(sums.items(), key=lambda one: (-one[1], one[0]))}


def _by_token(account: Account, rows: list[dict[str, Any]], total: int) -> dict[str, dict[str, Any]]:
    """By ordinary rates. What these do not explain (service tiers, long prompts, fees, holds that count as spent) stands under ``other``,
    so that the sum is the ledger's.
    """
    tokens: dict[str, int] = dict.fromkeys(("input", "cache_read", "cache_write", "cache_write_1h", "output"), 0)
    pico: dict[str, int] = dict.fromkeys(tokens, 0)
    reasoning = 0
    for row in rows:
        if row["input_tokens"] is None:
            continue
        read, write, long = row["cache_read_tokens"], row["cache_write_tokens"], row["cache_write_1h_tokens"]
        counts = {
            "input": max(0, row["input_tokens"] - read - write),
            "cache_read": read,
            "cache_write": write - long,
            "cache_write_1h": long,
            "output": row["output_tokens"],
        }
        reasoning += row["reasoning_tokens"]
        rates = _rates(account, row)
        for name, count in counts.items():
            tokens[name] += count
            pico[name] += count * rates.get(name, 0)
    found: dict[str, dict[str, Any]] = {name: {"tokens": tokens[name], "usd": usd(pico[name] // 1000)} for name in tokens}
    found["output"]["reasoning_tokens"] = reasoning
    found["other"] = {"usd": usd(total - sum(nano // 1000 for nano in pico.values()))}
    return found


def _rates(account: Account, row: dict[str, Any]) -> dict[str, int]:
    """Pico-USD per token of each class."""
    if row["cost_nano"] is None or row["state"] != "SETTLED":
        return {}
    for model in (row["answered_model"], row["model"]):
        try:
            if model:
                price = account.book.find(row["provider"] or None, model)
                return {name: int(rate.scaleb(6)) for name, rate in price.per_million().items()}
        except UnknownModelError:
            continue
    return {}
