"""Budgets with a name, through the magics; work left behind by earlier cells; worker processes that a cell starts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.conftest import Kernel, Ran, start
from wflo_nb.testing import FakeProvider

ASK = """
import asyncio, os, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from openai import AsyncOpenAI, OpenAI
client, later = OpenAI(), AsyncOpenAI()
def ask(text='hi', client=client):
    return client.chat.completions.create(model='gpt-4o', messages=[{'role': 'user', 'content': text}], max_tokens=50)
async def ask_later(text='hi'):
    return await later.chat.completions.create(model='gpt-4o', messages=[{'role': 'user', 'content': text}], max_tokens=50)
def spent():
    import sqlite3, wflo_nb.store
    rows = sqlite3.connect(wflo_nb.store.current().location).execute(
        "SELECT workflow_definition_id, sum(cost_nano) FROM workflow_executions GROUP BY 1"
    )
    return dict(rows)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, bill: FakeProvider) -> Iterator[tuple[Kernel, Kernel]]:
    """Two kernels of one user, with one ledger between them."""
    folder = tmp_path_factory.mktemp("shared")
    kernels = start(folder, bill, WFLO_NB="static", TZ="America/New_York"), start(folder, bill, WFLO_NB="static", USER="ann", LOGNAME="ann")
    for kernel in kernels:
        assert kernel.run("%load_ext wflo_nb").status == "ok"
        kernel.run(ASK)
    yield kernels
    for kernel in kernels:
        kernel.close()


def refused(ran: Ran) -> str:
    assert ran.status == "error" and ran.reply["ename"] == "BudgetExceededError", ran.text
    return str(ran.reply["evalue"])


def test_kernels_share_a_budget_by_its_name(two: tuple[Kernel, Kernel], bill: FakeProvider) -> None:
    first, second = two
    before = bill.spent_nano
    loop = "%%wflo budget=0.02 team=research wait=0\nwhile True: ask()"
    refused(first.run(loop))
    asked = bill.requests
    said = refused(second.run(loop))
    assert bill.requests == asked, "what the first kernel spent is gone for the second"
    assert 'the team "research" budget of $0.02 has' in said and "`%wflo budget USD team=research`" in said
    assert 18_000_000 < bill.spent_nano - before <= 20_000_000

    raised = second.run("%wflo budget 0.04 team=research")
    assert raised.status == "ok" and "$0.04" in str(raised.result), raised.text
    ran = first.run("%%wflo budget=0.01 team=research\nask()")
    assert ran.status == "ok" and 'The budget of team "research" is $0.04 already, and that stands' in ran.text
    assert first.run("%%wflo team=research\nask()").status == "ok"


def test_a_month_is_named_in_the_refusal_and_turns_over_in_its_own_zone(two: tuple[Kernel, Kernel], bill: FakeProvider) -> None:
    first, _ = two
    assert first.run("%wflo budget 0.000001 team=monthly per=month tz=Europe/Berlin").status == "ok"
    asked = bill.requests
    said = refused(first.run("%%wflo budget=1 team=monthly\nask()"))
    assert bill.requests == asked
    assert 'the team "monthly" (' in said and "Europe/Berlin, when the next month begins" in said
    ran = first.run("%%wflo budget=1 team=monthly per=day\nask()")
    assert ran.status == "error" and "per month in Europe/Berlin and cannot be made per day" in ran.text


def test_a_user_alone_is_who_is_logged_in(two: tuple[Kernel, Kernel], bill: FakeProvider) -> None:
    _, second = two
    before = bill.spent_nano
    assert second.run("%%wflo budget=0.5 user per=day\nask()").status == "ok"
    found = second.run("import wflo_nb\nb = wflo_nb.shared_budget(user='ann')\nb.per, b.state().spent_nano").result
    assert found == f"('day', {bill.spent_nano - before})"


def test_the_notebook_itself_can_be_charged_to_a_team(two: tuple[Kernel, Kernel], bill: FakeProvider) -> None:
    first, _ = two
    assert first.run("%wflo budget notebook=1 team=house").status == "ok"
    before = bill.spent_nano
    assert first.run("ask()").status == "ok"
    assert first.run("%%wflo budget=0.5\nask()").status == "ok"
    assert first.run("wflo_nb = __import__('wflo_nb'); wflo_nb.shared_budget(team='house').state().spent_nano").result == str(
        bill.spent_nano - before
    )
    first.run("%wflo budget 0.000001 team=house")
    assert 'team "house"' in refused(first.run("ask()")), "a cell without the magic as well"
    first.run("%wflo budget 5 team=house")
    assert first.run("ask()").status == "ok"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("team=nobody", 'There is no budget of team "nobody"'),
        ("budget=1 per=month", "add team=NAME or user=NAME"),
        ("budget=1 team=x tz=UTC", "add per=day, week, month or year"),
        ("budget=1 team=x per=monthly", "Did you mean month?"),
        ("budget=1 team=x per=month tz=Berlin", "Did you mean Europe/Berlin?"),
        ("budget=1 taem=x", "Did you mean team?"),
    ],
)
def test_a_wrong_line_says_what_would_be_right(two: tuple[Kernel, Kernel], line: str, says: str) -> None:
    ran = two[0].run(f"%%wflo {line}\nprint('body ran')")
    assert ran.status == "error" and says in ran.errors[0].text and "body ran\n" not in ran.text


def test_a_worker_process_charges_the_cell_that_started_it(two: tuple[Kernel, Kernel], bill: FakeProvider) -> None:
    first, _ = two
    first.run("WORKER = 'import wflo_nb; wflo_nb.join()\\n' + \"from openai import OpenAI\\nOpenAI().chat.completions.create(\"")
    first.run("WORKER += \"model='gpt-4o', messages=[{'role': 'user', 'content': 'hi'}], max_tokens=50)\"")
    before = bill.spent_nano
    ran = first.run("%%wflo budget=0.5 name=workers\nfor _ in range(2): subprocess.run([sys.executable, '-c', WORKER], check=True)")
    assert ran.status == "ok" and "2 calls" in ran.text, ran.text
    assert first.value("spent()['workers']") == bill.spent_nano - before > 0
    before = bill.spent_nano
    ran = first.run("subprocess.run([sys.executable, '-c', WORKER], check=True).returncode  # a cell without the magic")
    assert ran.result == "0" and bill.spent_nano > before
    ran = first.run("%%wflo budget=0.000001 name=poor\nsubprocess.run([sys.executable, '-c', WORKER], capture_output=True).returncode")
    assert "In a worker process" in refused(ran)


LEFT = {
    "thread": "def late():\n    go.wait(60); ask()\nwork = threading.Thread(target=late); work.start()",
    "pool": "pool = ThreadPoolExecutor(1)\nwork = pool.submit(lambda: (go.wait(60), ask()))",
    "task": """
async def late():
    while not go.is_set(): await asyncio.sleep(0.01)
    await ask_later()
work = asyncio.create_task(late())""",
    "to_thread": """
async def late():
    await asyncio.to_thread(go.wait, 60)
    await asyncio.to_thread(ask)
work = asyncio.create_task(late())""",
    "thread of a thread": """
def late():
    go.wait(60)
    inner = threading.Thread(target=ask); inner.start(); inner.join()
work = threading.Thread(target=late); work.start()""",
}
JOIN = {"pool": "work.result()", "task": "await work", "to_thread": "await work"}


@pytest.mark.parametrize("name", LEFT)
def test_work_left_behind_charges_its_own_cell_while_another_runs(two: tuple[Kernel, Kernel], bill: FakeProvider, name: str) -> None:
    kernel, _ = two
    before = bill.spent_nano
    ran = kernel.run(f"%%wflo budget=0.5 name='left by a {name}'\ngo = threading.Event()\n{LEFT[name]}")
    assert ran.status == "ok" and "0 calls" in ran.text, ran.text
    ran = kernel.run(f"%%wflo budget=0.000001 name='after a {name}'\ngo.set()\n{JOIN.get(name, 'work.join()')}\nNone")
    assert ran.status == "ok" and "0 calls" in ran.text, ran.text
    found = kernel.value("spent()")
    assert found[f"left by a {name}"] == bill.spent_nano - before > 0
    assert found[f"after a {name}"] == 0


def test_work_left_behind_is_still_held_to_its_own_cells_budget(two: tuple[Kernel, Kernel], bill: FakeProvider) -> None:
    kernel, _ = two
    late = "errors = []\ndef late():\n    go.wait(60)\n    try: ask()\n    except Exception as e: errors.append(type(e).__name__)\n"
    kernel.run(f"%%wflo budget=0.000001 name=tight\ngo = threading.Event()\n{late}work = threading.Thread(target=late); work.start()")
    asked = bill.requests
    assert kernel.run("%%wflo budget=5 name=rich\ngo.set()\nwork.join()").status == "ok"
    assert kernel.value("errors") == ["BudgetExceededError"] and bill.requests == asked
