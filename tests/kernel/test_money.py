"""Budgets in a real kernel, with the real SDK against a provider that keeps its own bill."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.kernel.conftest import Kernel, Ran, start
from wflo_nb.testing import FakeProvider

ASK = """
import openai, asyncio, threading, time
client, later = openai.OpenAI(), openai.AsyncOpenAI()
def what(text):
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
def ask(text="a question", **more):
    return client.chat.completions.create(**what(text), **more).choices[0].message.content
async def ask_later(text="a question", **more):
    return (await later.chat.completions.create(**what(text), **more)).choices[0].message.content
"""


@pytest.fixture(scope="module", autouse=True)
def ready(kernel: Kernel) -> None:
    assert kernel.run(ASK).status == "ok"


def final(ran: Ran) -> str:
    return next(o.text for o in reversed(ran.outputs) if o.kind == "update_display_data")


def spent(ran: Ran) -> Decimal:
    found = re.search(r"\$([\d.]+)(?: of \S+)? spent", final(ran))
    assert found is not None, final(ran)
    return Decimal(found[1])


def ledger(kernel: Kernel) -> int:
    """What the notebook's budget says that it spent, in nano-USD."""
    return int(str(kernel.run("b = %wflo budget\nb[0].spent_nano").result))


def test_the_cards_last_numbers_are_the_providers_bill(kernel: Kernel, bill: FakeProvider) -> None:
    before = bill.spent_nano
    ran = kernel.run("%%wflo budget=1\nx = [ask(f'question {i}') for i in range(5)]\nlen(x)")
    assert ran.status == "ok" and ran.result == "5"
    assert spent(ran) * 10**9 == bill.spent_nano - before
    assert "5 calls" in final(ran) and "· Done" in final(ran)


def test_gathered_and_threaded_calls_are_charged_to_their_cell(kernel: Kernel, bill: FakeProvider) -> None:
    before = bill.spent_nano
    ran = kernel.run(
        "%%wflo budget=1\nawait asyncio.gather(*(ask_later(f'q {i}') for i in range(8)))\n"
        "ts = [threading.Thread(target=ask) for _ in range(4)]\n[t.start() for t in ts]; [t.join() for t in ts];"
    )
    assert ran.status == "ok", ran.text
    assert spent(ran) * 10**9 == bill.spent_nano - before and "12 calls" in final(ran)


def test_a_refused_call_fails_the_cell_before_anything_is_sent(kernel: Kernel, bill: FakeProvider) -> None:
    asked = bill.requests
    ran = kernel.run("%%wflo budget=0.000001\nask('dear ' * 100)")
    assert ran.status == "error" and ran.reply["ename"] == "BudgetExceededError"
    assert bill.requests == asked
    assert "1 refused" in final(ran) and "· Stopped by budget" in final(ran)


def test_a_refusal_shows_the_users_lines_and_keeps_the_others_for_a_debugger(kernel: Kernel) -> None:
    ran = kernel.run("%%wflo budget=0.000001\nx = 1\nask('dear ' * 100)")
    shown = ran.errors[0].text
    assert re.search(r"^-+> 3 ask\('dear ' \* 100\)", shown, re.M) and "in ask(text" in shown
    assert "site-packages" not in shown and "wflo_nb/" not in shown and "not shown" in shown
    assert "openai" in str(kernel.run("import sys, traceback\n''.join(traceback.format_tb(sys.last_traceback))").result)


def test_a_swallowed_refusal_fails_the_cell_at_its_end(kernel: Kernel, bill: FakeProvider) -> None:
    asked = bill.requests
    ran = kernel.run("%%wflo budget=0.000001\ntry:\n    ask('dear ' * 100)\nexcept Exception:\n    pass\nprint('went on')")
    assert "went on" in ran.text
    assert ran.status == "error" and ran.reply["ename"] == "BudgetExceededError" and bill.requests == asked
    assert "refused before it was sent" in ran.reply["evalue"]
    assert kernel.run("get_ipython().last_execution_succeeded").result == "False"
    assert kernel.run("1 + 1").status == "ok"


def test_a_swallowed_refusal_fails_an_async_cell_too(kernel: Kernel) -> None:
    ran = kernel.run("%%wflo budget=0.000001\ntry:\n    await ask_later('dear ' * 100)\nexcept Exception:\n    pass")
    assert ran.status == "error" and ran.reply["ename"] == "BudgetExceededError"


def test_budget_zero_is_valid_and_allows_no_paid_call(kernel: Kernel, bill: FakeProvider) -> None:
    assert kernel.run("%%wflo budget=0\n1 + 1").status == "ok"
    asked = bill.requests
    ran = kernel.run("%%wflo budget=0\nask()")
    assert ran.status == "error" and ran.reply["ename"] == "BudgetExceededError" and bill.requests == asked


def test_a_wrapped_refusal_still_comes_out_as_budget_exceeded(kernel: Kernel) -> None:
    ran = kernel.run(
        "%%wflo budget=0.000001\ntry:\n    ask('dear ' * 100)\nexcept Exception as e:\n    raise RuntimeError('framework') from None"
    )
    assert ran.status == "error" and ran.reply["ename"] == "BudgetExceededError"
    assert [o.data["ename"] for o in ran.errors] == ["RuntimeError", "BudgetExceededError"]


def test_a_cell_without_the_magic_is_tracked_without_a_card(kernel: Kernel, bill: FakeProvider) -> None:
    before, known = bill.spent_nano, ledger(kernel)
    ran = kernel.run("ask('plainly')")
    assert ran.status == "ok" and [o.kind for o in ran.outputs] == ["execute_result"]
    assert ledger(kernel) - known == bill.spent_nano - before > 0


def test_a_nested_cell_spends_the_outer_cells_budget(kernel: Kernel, bill: FakeProvider) -> None:
    asked = bill.requests
    ran = kernel.run("%%wflo budget=0.000001\nget_ipython().run_cell('ask(\"dear \" * 100)')\nNone")
    assert ran.status == "error" and bill.requests == asked
    ran = kernel.run("%%wflo budget=0.000001\nget_ipython().run_cell('%%wflo budget=5\\nask(\"dear \" * 100)')\nNone")
    assert bill.requests == asked, "the inner budget lies inside the outer one"


def test_a_refusal_inside_capture_is_not_hidden(kernel: Kernel, bill: FakeProvider) -> None:
    asked = bill.requests
    for head in ("%%capture\n%%wflo budget=0.000001\n", "%%wflo budget=0.000001\n%%capture\n"):
        ran = kernel.run(head + "ask('dear ' * 100)")
        assert ran.status == "error" and ran.reply["ename"] == "BudgetExceededError", ran.text
    assert bill.requests == asked


def test_a_name_and_unpriced_calls_are_shown(kernel: Kernel) -> None:
    ask = "client.chat.completions.create(model='my-secret-model', messages=[{'role': 'user', 'content': 'x'}]);"
    ran = kernel.run(f'%%wflo budget=1 name="two words"\n{ask}')
    assert ran.status == "error" and "No price is known" in ran.text and "two words" in final(ran)
    ran = kernel.run(f"%%wflo budget=1 unknown_models=allow\n{ask}")
    assert ran.status == "ok", ran.text
    assert "1 call (1 unpriced)" in final(ran)
    kernel.run("%wflo price my-secret-model input=1 output=2")
    ran = kernel.run(f"%%wflo budget=1\n{ask}")
    assert ran.status == "ok" and spent(ran) > 0


def test_work_left_behind_stays_on_its_own_cell(kernel: Kernel, bill: FakeProvider) -> None:
    ran = kernel.run(
        "%%wflo budget=1 name=behind\ndef later_on():\n    time.sleep(0.5); ask('late')\nt = threading.Thread(target=later_on); t.start()"
    )
    assert "0 calls" in final(ran)
    before = bill.spent_nano
    ran = kernel.run("%%wflo budget=1 name=next\nt.join()")
    assert "0 calls" in final(ran) and bill.spent_nano > before
    found = kernel.run("b = %wflo budget\n{n: s.spent_nano for s, (n, *_) in zip(b, b.rows)}").result
    assert found is not None
    assert eval(found)["└ behind"] == bill.spent_nano - before


def test_prices_budgets_and_reports_are_objects(kernel: Kernel) -> None:
    assert kernel.run("p = %wflo price gpt-4o\np[0].model").result == "'gpt-4o'"
    assert kernel.run("b = %wflo budget\nb[0].scope").result == "'notebook'"
    assert "spent by this notebook" in str(kernel.run("%wflo").result)
    assert "_repr_html_" in str(kernel.run("dir(b)").result)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("roport", "Did you mean report?"),
        ("budget notebok=1", "Did you mean notebook?"),
        ("budget notebook=-1", "negative"),
        ("budget -1", "negative"),
        ("budget per=month", "which budget?"),
        ("budget 5 EUR", "nothing behind it"),
        ("budget 5 team=a per=fortnight", "per=fortnight"),
        ("reconcile free", "name calls by their ids"),
        ("reconcile call-nothing free", "No call call-nothing"),
        ("reconcile call-nothing", "nothing says"),
        ("reconcile all older=soon free", "no span of time"),
        ("why call-nothing", "No call call-nothing"),
        ("price foo input=1 output=1 max_input=many", "not a whole number"),
        ("price foo input=99999 output=1", "allow_absurd=True"),
        ("price foo input=1", "output= is missing"),
        ("price foo input=x output=1", "foo"),
        ("price input=1 output=1", "name the model first"),
        ("price gpt-4oo", "Did you mean"),
        ("report by=modle", "Did you mean model?"),
        ("report call", "Did you mean calls?"),
        ("report model", "Did you mean by=model?"),
        ("connect", "needs one place"),
        ("help nothing", "unknown subcommand"),
        ("undo now", "takes no options"),
    ],
)
def test_a_wrong_line_says_what_would_be_right(kernel: Kernel, line: str, says: str) -> None:
    ran = kernel.run(f"%wflo {line}")
    assert ran.status == "error" and says in ran.errors[0].text
    assert len(ran.errors[0].data["traceback"]) == 1


def test_help_lists_every_subcommand(kernel: Kernel) -> None:
    text = str(kernel.run("%wflo help").result)
    for word in ("budget", "checkpoint", "checkpoints", "rollback", "undo", "connect", "report", "price", "metrics", "trace"):
        assert f"%wflo {word}" in text
    assert str(kernel.run("%wflo help undo").result).startswith("%wflo undo")


@pytest.fixture
def own_kernel(tmp_path_factory: pytest.TempPathFactory, bill: FakeProvider) -> Iterator[Kernel]:
    running = start(tmp_path_factory.mktemp("own"), bill)
    running.run("%load_ext wflo_nb")
    running.run(ASK)
    yield running
    running.close()


def test_the_notebooks_budget_is_around_every_cell(own_kernel: Kernel, bill: FakeProvider) -> None:
    assert "$0.000001" in str(own_kernel.run("%wflo budget notebook=0.000001").result)
    asked = bill.requests
    for code in ("ask('dear ' * 100)", "%%wflo budget=5\nask('dear ' * 100)", "%%wflo\nask('dear ' * 100)"):
        ran = own_kernel.run(code)
        assert ran.status == "error" and "notebook budget of $0.000001" in ran.reply["evalue"], ran.text
    ran = own_kernel.run("try:\n    ask('dear ' * 100)\nexcept Exception: pass")
    assert ran.status == "error" and ran.reply["ename"] == "BudgetExceededError", "a plain cell that swallows it fails as well"
    assert bill.requests == asked
    note = "list(session_of(get_ipython()).deck._cards.values())[-1]._widget._note"
    own_kernel.run("from wflo_nb.notebook.extension import session_of\n%wflo budget notebook=0.5")
    own_kernel.run("%%wflo budget=5\n1")
    assert "notebook's budget of $0.50 has $0.50 left" in str(own_kernel.run(note).result)
    own_kernel.run("%%wflo budget=0.1\n1")
    assert own_kernel.run(note).result == "''"
    own_kernel.run("%wflo budget notebook=off")
    assert own_kernel.run("%%wflo budget=1\nask()").status == "ok"


def test_another_store_takes_over_with_what_was_left(
    own_kernel: Kernel, bill: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own_kernel.run("%wflo budget notebook=1")
    own_kernel.run("ask()")
    left = own_kernel.run("b = %wflo budget\nb[0].left_nano").result
    other = tmp_path_factory.mktemp("other") / "ledger.db"
    ran = own_kernel.run(f"%wflo connect {other}")
    assert ran.status == "ok" and "other" in str(ran.result), ran.text
    assert own_kernel.run("b = %wflo budget\nb[0].cap_nano, b[0].spent_nano").result == f"({left}, 0)"
    before = bill.spent_nano
    own_kernel.run("ask()")
    assert own_kernel.run("b = %wflo budget\nb[0].spent_nano").result == str(bill.spent_nano - before)
    ran = own_kernel.run("%wflo connect /proc/nowhere/ledger.db")
    assert ran.status == "error" and own_kernel.run("b = %wflo budget\nb[0].cap_nano").result == left


def test_what_is_spent_while_another_store_is_opened_is_not_left_there(
    own_kernel: Kernel, bill: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own_kernel.run("%wflo budget notebook=1")
    own_kernel.run("import wflo_nb.notebook.session as s\nopen_store = s.open_store")
    own_kernel.run("s.open_store = lambda *a, **k: (ask(), open_store(*a, **k))[1]")  # as a thread that was left behind does
    before = bill.spent_nano
    assert own_kernel.run(f"%wflo connect {tmp_path_factory.mktemp('other') / 'ledger.db'}").status == "ok"
    assert own_kernel.run("b = %wflo budget\nb[0].cap_nano").result == str(10**9 - (bill.spent_nano - before)) != str(10**9)


def test_a_team_store_is_named_by_its_url_and_never_shows_the_password(own_kernel: Kernel, bill: FakeProvider, postgres_url: str) -> None:
    place = urlsplit(postgres_url)
    url = urlunsplit(place._replace(netloc=f"{place.username}:hunter2@{place.netloc.rpartition('@')[2]}"))  # the server trusts everybody
    ran = own_kernel.run(f"%wflo connect {url}")
    assert ran.status == "ok", ran.text
    assert "hunter2" not in ran.text + own_kernel.run("%wflo").text
    before = bill.spent_nano
    ran = own_kernel.run("%%wflo budget=1 name=shared\nx = ask()")
    assert ran.status == "ok" and spent(ran) * 10**9 == bill.spent_nano - before
    own_kernel.run("x = 'changed'")
    assert own_kernel.run("%wflo rollback last").status == "ok"
    assert "word0" in str(own_kernel.run("x").result)
    found = own_kernel.run("r = %wflo report by=workflow\nint(r.cost_nano.sum())").result
    assert found == str(bill.spent_nano - before)
    assert own_kernel.run("%wflo connect default").status == "ok"


def test_a_store_that_cannot_be_used_fails_the_budgeted_cell_before_its_body(
    tmp_path_factory: pytest.TempPathFactory, bill: FakeProvider
) -> None:
    folder = tmp_path_factory.mktemp("broken")
    blocked = folder / "a-file"
    blocked.write_text("not a folder")
    kernel = start(folder, bill, WFLO_STORE=str(blocked / "ledger.db"))
    try:
        assert kernel.run("%load_ext wflo_nb").status == "ok"
        assert kernel.run("1 + 1").result == "2", "cells that call no model are not touched"
        ran = kernel.run("%%wflo budget=1\nprint('body ran')")
        assert ran.status == "error" and "body ran\n" not in ran.text
        assert "a-file" in ran.text or "ledger" in ran.text
        ran = kernel.run("%wflo connect default")
        assert ran.status == "ok" and f"{folder}/state" in ran.text, "the way out is not the place that cannot be used"
        assert kernel.run("%%wflo budget=1\n1").status == "ok"
    finally:
        kernel.close()
