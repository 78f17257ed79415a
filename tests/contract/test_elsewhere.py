"""What other processes did for an execution is told apart from what its own process did. On both databases."""

from __future__ import annotations

from datetime import timedelta

from tests.contract.conftest import a_call, an_execution, settled, unconfirmed
from wflo_nb.model import CallState, Usage, now
from wflo_nb.store import Elsewhere, Store

MINE, THEIRS, OTHERS = "host|1|1|x", "host|2|1|y", "host|3|1|z"


def test_only_calls_of_other_processes_are_told_also_of_executions_inside(store: Store) -> None:
    began = now()
    store.begin_execution(an_execution("exec-1"), holder=MINE)
    store.begin_execution(an_execution("exec-2", parent_id="exec-1"), holder=THEIRS)
    store.begin_execution(an_execution("exec-3", parent_id="exec-2"), holder=OTHERS)
    store.begin_execution(an_execution("exec-9"), holder=THEIRS)
    for execution, holder, nano in (("exec-1", MINE, 500), ("exec-1", THEIRS, 70), ("exec-3", OTHERS, 8), ("exec-9", THEIRS, 999)):
        call = a_call(execution_id=execution, holder=holder)
        store.reserve(call, [], lo_nano=1000, hi_nano=1000)
        store.finish(settled(call, nano, usage=Usage(10, 5)))
    lost = a_call(holder=THEIRS)
    store.reserve(lost, [], lo_nano=300, hi_nano=300)
    store.finish(unconfirmed(lost))
    store.record(settled(a_call(holder=THEIRS), None))
    flying = a_call(holder=OTHERS)
    store.reserve(flying, [], lo_nano=40, hi_nano=40)
    words = {"reason": "no money", "meta": {"error": "BudgetExceededError"}, "state": CallState.REFUSED, "cost_nano": 0}
    store.record(a_call(holder=THEIRS, **{**words, "reason": "no price", "meta": {"error": "UnknownModelError"}}))
    store.record(a_call(holder=THEIRS, **words))
    store.record(a_call(holder=MINE, **{**words, "reason": "mine"}))
    refused = {"error": "BudgetExceededError", "refused": {"budget": "team:a@2026-11"}}
    store.record(a_call(holder=THEIRS, **{**words, "reason": "no more", "meta": refused}))
    store.record(a_call(holder=THEIRS, **{**words, "reason": "stopped", "meta": {**refused, "refused": {"stopped": "budget"}}}))

    found = store.elsewhere("exec-1", since=began - timedelta(minutes=1), holder=MINE)
    assert found == Elsewhere(
        calls=4,
        in_flight=1,
        refused=4,
        unpriced=1,
        spent_nano=378,
        held_nano=40,
        unconfirmed_nano=300,
        input_tokens=20,
        output_tokens=10,
        short_of_money=((None, "no money"), ("team:a@2026-11", "no more")),
    )
    assert store.elsewhere("exec-nobody", since=began, holder=MINE) == Elsewhere()
