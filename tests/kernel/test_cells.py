"""A `%%wflo` cell is an ordinary cell: compared with the same body without the magic, in a real kernel."""

from __future__ import annotations

import re

import pytest

from tests.kernel.conftest import Kernel, Output

BODIES = {
    "expression": "x = 41\nx + 1",
    "await": "import asyncio\nawait asyncio.sleep(0.01)\n7 * 6",
    "async comprehension": "async def g():\n    for i in range(3): yield i\nr = [i async for i in g()]\nr",
    "display": "display('a')\nprint('b')\n'c'",
    "semicolon": "'nothing';",
    "line magic": "y = %pwd\nlen(y) > 0",
    "shell": "z = !echo hi\nz",
    "shell output": "!echo hi",
    "future import": "from __future__ import annotations\ndef f(a: Undefined): pass\nf.__annotations__",
    "multi-line string": 's = """a\n  b\n"""\ns',
    "comment only": "# nothing",
    "time inside": "%%time\nq = 5\nq",
    "capture inside": "%%capture cap\nprint('hidden')",
    "help": "len?",
    "source of a class": "import inspect\nclass K:\n    def m(self): return 1\ndef fn():\n    return 2\ninspect.getsource(fn)",
    "run": "%run -n nothing_here.py",
    "stderr": "import sys\nprint('e', file=sys.stderr)",
}


def comparable(outputs: list[Output]) -> list[tuple[str, str]]:
    """Without our card and without times, and with the two lines' difference in numbering taken out."""
    own = [o for o in outputs if not (o.kind.endswith("display_data") and o.text.startswith("wflo · "))]
    return [(o.kind, re.sub(r"\d+(\.\d+)?(e[+-]?\d+)? ?[nµμm]?s", "T", o.text)) for o in own]


@pytest.mark.parametrize("name", BODIES)
def test_body_does_the_same_with_and_without_the_magic(kernel: Kernel, name: str) -> None:
    body = BODIES[name]
    plain, tracked = kernel.run(body), kernel.run("%%wflo budget=2\n" + body)
    assert plain.status == tracked.status, tracked.text
    if plain.status == "ok":
        assert comparable(plain.outputs) == comparable(tracked.outputs)


@pytest.mark.parametrize("head", ["", "import asyncio; await asyncio.sleep(0)\n"], ids=["sync", "async"])
def test_an_exception_keeps_its_line_and_shows_no_frame_of_ours(kernel: Kernel, head: str) -> None:
    ran = kernel.run("%%wflo budget=2\n" + head + "a = 1\nb = 0\na / b\n")
    line = 4 + bool(head)
    assert ran.status == "error"
    assert ran.reply["ename"] == "ZeroDivisionError"
    assert re.search(rf"^-+> {line} a / b", ran.errors[0].text, re.M), ran.text
    assert "wflo_nb/" not in ran.errors[0].text


def test_a_syntax_error_names_its_line_and_shows_no_card(kernel: Kernel) -> None:
    ran = kernel.run("%%wflo budget=2\nx = 1\ny = = 2")
    assert ran.status == "error" and "line 3" in ran.text and "wflo ·" not in ran.text


def test_history_keeps_the_users_text_and_the_last_result(kernel: Kernel) -> None:
    kernel.run("%%wflo budget=2\n'hello'")
    assert kernel.run("_").result == "'hello'"
    assert "%%wflo budget=2" in str(kernel.run("_ii").result)


def test_the_card_and_errors_number_the_cell_as_the_prompt_does(kernel: Kernel) -> None:
    ran = kernel.run("%%wflo budget=1\n1")
    assert f"In [{ran.reply['execution_count']}]" in ran.outputs[0].text
    ran = kernel.run("%%wflo budget=1\nget_ipython().run_cell('1')")
    assert f"In [{ran.reply['execution_count']}]" in ran.outputs[0].text


def test_time_around_the_cell_works(kernel: Kernel) -> None:
    ran = kernel.run("%%time\n%%wflo budget=2\nw = 3\nw")
    assert ran.status == "ok" and ran.result == "3" and "Wall time" in ran.text and "· Done" in ran.text


def test_capture_around_the_cell_hides_its_card_too(kernel: Kernel) -> None:
    ran = kernel.run("%%capture kept\n%%wflo budget=2\nprint('no')")
    assert ran.status == "ok" and ran.outputs == []
    assert "no" in str(kernel.run("kept.stdout").result)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("import time\nfor i in range(100): time.sleep(.1)", "KeyboardInterrupt"),
        ("import asyncio\nfor i in range(100): await asyncio.sleep(.1)", "CancelledError"),
    ],
    ids=["sync", "async"],
)
def test_an_interrupt_ends_the_cell_and_its_card(kernel: Kernel, body: str, error: str) -> None:
    ran = kernel.run("%%wflo budget=2\n" + body, interrupt=1)
    assert ran.status == "error" and ran.reply["ename"] == error
    assert ran.outputs[-1].kind == "update_display_data" and "· Failed" in ran.outputs[-1].text
    assert kernel.run("%%wflo\n1").status == "ok"


def test_a_nested_run_cell_does_not_end_the_outer_card(kernel: Kernel) -> None:
    ran = kernel.run("%%wflo budget=2\nget_ipython().run_cell('print(1)')\nprint('still inside')")
    kinds = [(o.kind, o.text) for o in ran.outputs if "wflo ·" in o.text or "still" in o.text]
    assert [k for k, _ in kinds] == ["display_data", "stdout", "update_display_data"]


def test_the_magic_twice_on_one_cell_is_refused(kernel: Kernel) -> None:
    ran = kernel.run("%%wflo budget=2\n%%wflo budget=3\nprint('ran')")
    assert ran.status == "error" and "on this cell already" in ran.text and "ran\n" not in ran.text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("budget=abc", "budget=abc is not an amount in USD"),
        ("budget=-1", "negative"),
        ("budget=nan", "not a finite amount"),
        ("budget=inf", "not a finite amount"),
        ("budget=2 usd", "'usd' is not an option. Amounts are in USD already"),
        ("budgt=2", "Did you mean budget?"),
        ("budget=2 budget=3", "budget= is given twice"),
        ("wait=soon", "not a number of seconds"),
        ("budget=", "budget= has no value"),
        ("2", "Write budget=2"),
        ("budget", "budget needs a value"),
        ("help", "%wflo help"),
        ("checkpoint=maybe", "checkpoint=on or checkpoint=off"),
        ('name="unfinished', "Close every quote"),
        ("budget=99999999999", "the largest amount that can be counted"),
    ],
)
def test_a_bad_option_fails_the_cell_before_its_body_runs(kernel: Kernel, line: str, says: str) -> None:
    ran = kernel.run(f"%%wflo {line}\nprint('body ran')")
    assert ran.status == "error" and says in ran.text and "body ran\n" not in ran.text
    assert ran.reply["ename"] == "ConfigurationError"
    assert len(ran.errors[0].data["traceback"]) == 1, "the message alone, none of our frames"


def test_a_budget_may_come_from_a_variable(kernel: Kernel) -> None:
    kernel.run("mine = 3")
    assert "of $3.00 spent" in kernel.run("%%wflo budget={mine}\n1").text


@pytest.mark.parametrize(
    ("code", "offered"),
    [
        ("%%wf", ["%%wflo"]),
        ("%%wflo bud", ["budget="]),
        ("%%wflo budget=2 ", ["checkpoint=", "name=", "per=", "team=", "tz=", "unknown_models=", "user=", "wait="]),
        ("%%wflo budget=2 checkpoint=o", ["off", "on"]),
        ("%%wflo bud\nx = 1", ["budget="]),
        ("%wflo rep", ["report"]),
        ("x = 1\n%wflo report by=mo", ["model"]),
        ("%wflo rollback la", ["last"]),
        ("%wflo price m in", ["input="]),
    ],
)
def test_completion_offers_exactly_what_fits(kernel: Kernel, code: str, offered: list[str]) -> None:
    at = code.index("\n") if code.startswith("%%") and "\n" in code else len(code)
    found = kernel.reply(kernel.client.complete(code, at))["matches"]
    assert sorted(found) == offered


def test_help_of_the_cell_magic_and_of_the_line_magic_is_ours(kernel: Kernel) -> None:
    assert kernel.run("?%%wflo").status == "ok"
    for code, word in (("%%wflo budget=2\n", "refused before it is sent"), ("%wflo", "rollback ID | NAME | last")):
        found = kernel.reply(kernel.client.inspect(code, 4))
        assert found["found"] and word in found["data"]["text/plain"]


def test_completeness_is_judged_as_without_the_magic(kernel: Kernel) -> None:
    assert kernel.reply(kernel.client.is_complete("%%wflo budget=2\n"))["status"] == "complete"
    assert kernel.reply(kernel.client.is_complete("%%wflo\nfor i in range(3):"))["status"] == "incomplete"


def test_a_cell_leaves_no_name_behind(kernel: Kernel) -> None:
    kernel.run("before = set(get_ipython().user_ns)")
    kernel.run("%%wflo budget=2\nmine_alone = 1")
    left = eval(
        str(
            kernel.run("sorted(n for n in set(get_ipython().user_ns) - before if not n.startswith('_i') and n.strip('_0123456789'))").result
        )
    )
    assert left == ["before", "mine_alone"]
    assert "__wflo__" not in kernel.run("%who_ls").text


def test_reset_does_not_take_the_magic_away(kernel: Kernel) -> None:
    assert kernel.run("%reset -f").status == "ok"
    ran = kernel.run("%%wflo budget=2\n6 * 7")
    assert ran.status == "ok" and ran.result == "42" and "· Done" in ran.text
