"""Workflows in a real kernel, whose cells run in an event loop already."""

from __future__ import annotations

from tests.kernel.conftest import Kernel
from tests.kernel.test_money import ASK
from wflo_nb.testing import FakeProvider

WORKFLOW = (
    ASK
    + """
import wflo_nb
wflo = wflo_nb.WfloWorkflow("cells", budget_usd=0.5)
@wflo_nb.checkpoint
async def draft(topic):
    return await ask_later(topic)
async def article(topic):
    text = await draft(topic)
    with wflo_nb.step("review"):
        await ask_later(text)
    return len(text) > 0
def plain(topic):
    return len(ask(topic)) > 0
"""
)


def test_workflow_is_awaited_in_a_cell_and_spends_the_cells_budget(kernel: Kernel, bill: FakeProvider) -> None:
    assert kernel.run(WORKFLOW).status == "ok"
    before = bill.spent_nano
    ran = kernel.run("%%wflo budget=1\nawait wflo.execute(article, {'topic': 'rivers'})")
    assert ran.result == "True", ran.text
    spent = bill.spent_nano - before
    assert kernel.run("(await wflo.get_cost_breakdown())['total_usd'] * 10**9 == " + str(spent)).result == "True"
    assert kernel.run("[(one.name, one.version) for one in wflo.list_checkpoints()]").result == "[('draft', 1)]"
    assert kernel.run("len(await wflo.rollback_to_last_checkpoint()) > 0").result == "True"
    refused = kernel.run("%%wflo budget=0\nawait wflo.execute(article, {'topic': 'rivers'})")
    assert refused.reply["ename"] == "BudgetExceededError"
    assert bill.spent_nano - before == spent


def test_plain_and_async_workflows_run_in_a_cell_without_await(kernel: Kernel, bill: FakeProvider) -> None:
    assert kernel.run(WORKFLOW).status == "ok"
    before = bill.requests
    assert kernel.run("%%wflo budget=1\nwflo.execute_sync(plain, 'rivers')").result == "True"
    assert kernel.run("later = openai.AsyncOpenAI()\nwflo.execute_sync(article, {'topic': 'rivers'})").result == "True"
    assert bill.requests == before + 3
