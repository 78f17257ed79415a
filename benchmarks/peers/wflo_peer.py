"""wflo_nb itself, as its README says: a block with a budget; a shared budget by name where processes spend one together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import base
import openai  # noqa: F401 - imported once, before the forks
from base import Given

import wflo_nb
from wflo_nb.errors import WfloError


class Session(base.Session):
    refusals = (WfloError,)
    run: wflo_nb.workflow.run.Run  # type: ignore[name-defined]

    @contextmanager
    def nested(self, budget_usd: float) -> Iterator[base.Session]:
        with contextlib.suppress(WfloError), wflo_nb.execution("inner", budget_usd=budget_usd):
            yield self

    def believed_usd(self) -> float | None:
        return float(self.run.spent_usd)

    def flush(self) -> None:
        self.run.account.ledger.drain()
        self.run.account.store.write_out()


class Enforcer(base.Enforcer):
    can = frozenset({"async", "stream", "raw", "anthropic", "processes", "postgres", "nested"})
    session_class = Session

    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        os.environ["WFLO_STATE_DIR"] = str(given.folder / "state")
        os.environ.pop("WFLO_STORE", None)
        sharing = {"team": "bench"} if given.shared else {}
        with (
            contextlib.suppress(WfloError),
            wflo_nb.execution("bench", budget_usd=f"{given.budget_usd:.9f}", store=given.postgres, **sharing) as run,  # type: ignore[arg-type]
        ):
            session = Session(given)
            session.run = run
            yield session

    def ledger(self, given: Given) -> dict[str, int] | None:
        os.environ["WFLO_STATE_DIR"] = str(given.folder / "state")
        store = wflo_nb.open_store(given.postgres)
        calls = store.read("calls")
        states = list(zip(calls["state"], calls["cost_nano"], calls["reserved_nano"], strict=True))
        store.close()
        return {
            "settled": sum(cost or 0 for state, cost, _ in states if state == "SETTLED"),
            "unconfirmed": sum(cost or 0 for state, cost, _ in states if state == "UNCONFIRMED"),
            "held": sum(held for state, _, held in states if state == "RESERVED"),
        }

    def recorded(self, given: Given) -> int | None:
        os.environ["WFLO_STATE_DIR"] = str(given.folder / "state")
        store = wflo_nb.open_store(given.postgres)
        settled = sum(state == "SETTLED" for state in store.read("calls")["state"])
        store.close()
        return settled
