"""Checkpoints around cells and by name, and rollbacks that run nothing again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.conftest import Kernel, start
from wflo_nb.testing import FakeProvider


@pytest.fixture(autouse=True)
def fresh(kernel: Kernel) -> None:
    kernel.run("%reset -f")


def test_a_rollback_brings_variables_back_with_their_sharing(kernel: Kernel) -> None:
    kernel.run("import pandas as pd\ndata = [1, 2]; alias = data; frame = pd.DataFrame({'a': [1, 2]}); gone = 'here'")
    kernel.run("%wflo checkpoint start")
    kernel.run("data.append(3); frame.loc[0, 'a'] = 99; new = 1; del gone")
    ran = kernel.run("%wflo rollback start")
    assert ran.status == "ok", ran.text
    said = str(ran.result)
    assert "restored alias, data, frame, gone" in said and "deleted new" in said and "%wflo undo" in said
    assert kernel.run("data, alias is data, frame.a.tolist(), gone, 'new' in globals()").result == "([1, 2], True, [1, 2], 'here', False)"
    assert kernel.run("%wflo undo").status == "ok"
    assert kernel.run("data, alias is data, frame.a.tolist(), 'gone' in globals(), new").result == "([1, 2, 3], True, [99, 2], False, 1)"


def test_a_rollback_may_leave_variables_as_they_are(kernel: Kernel) -> None:
    kernel.run("a, b, c = 1, 1, 1\n%wflo checkpoint 'two words'\na = b = c = 2")
    assert kernel.run("%wflo rollback two words without=a,c").status == "ok"
    assert kernel.run("a, b, c").result == "(2, 1, 2)"
    kernel.run("b = 2")
    ran = kernel.run("%wflo rollback two words without=a,bb")
    assert ran.status == "error" and "without=bb" in ran.text and kernel.run("b").result == "2", "a mistyped name restores nothing"
    ran = kernel.run("%wflo rollback two words without=")
    assert ran.status == "error" and "without= has no value" in ran.text


def test_the_line_that_is_told_brings_them_back_whatever_the_name(kernel: Kernel) -> None:
    for name in ('"a\'b"', "'say \"hi\"'", "'two words'"):
        said = str(kernel.run(f"%wflo checkpoint {name}").result)
        assert kernel.run(said.split("`")[1]).status == "ok", said


def test_undo_goes_back_and_forth_and_says_so(kernel: Kernel) -> None:
    kernel.run("x = 1\n%wflo checkpoint first\nx = 2")
    kernel.run("%wflo rollback first")
    for value in "212":
        assert "`%wflo undo` once more" in str(kernel.run("%wflo undo").result)
        assert kernel.run("x").result == value
    labels = kernel.run("c = %wflo checkpoints\n[s.label for s in c[:4]]").result
    assert labels == "['before undo', 'before undo', 'before undo', 'before restoring first']"


def test_every_tracked_cell_is_saved_before_and_after(kernel: Kernel) -> None:
    kernel.run("x = 1")
    ran = kernel.run("%%wflo\nx = 2")
    number = ran.reply["execution_count"]
    kernel.run(f"%wflo rollback before In [{number}]")
    assert kernel.run("x").result == "1"
    kernel.run(f"%wflo rollback 'after In [{number}]'")
    assert kernel.run("x").result == "2"


def test_a_failed_cell_can_be_rolled_back(kernel: Kernel) -> None:
    kernel.run("x = [1]")
    ran = kernel.run("%%wflo\nx.append(2)\n1 / 0")
    kernel.run(f"%wflo rollback before In [{ran.reply['execution_count']}]")
    assert kernel.run("x").result == "[1]"


def test_checkpoint_off_saves_nothing(kernel: Kernel) -> None:
    count = "c = %wflo checkpoints\nlen(c)"
    before = kernel.run(count).result
    kernel.run("%%wflo checkpoint=off\nx = 1")
    assert kernel.run(count).result == before


def test_the_shells_own_names_are_neither_saved_nor_deleted(kernel: Kernel) -> None:
    kernel.run("_mine = 1\n'an output'")
    kernel.run("%wflo checkpoint own")
    names = kernel.run("c = %wflo checkpoints\nc[0].variables").result
    kernel.run("'another output'")
    kernel.run("_mine = 2")
    assert kernel.run("%wflo rollback own").status == "ok"
    assert names == "1" and kernel.run("_mine").result == "1"
    assert kernel.run("len(In) > 3 and 'get_ipython' in globals() and callable(exit)").result == "True"
    assert kernel.run("%%wflo budget=1\n5").status == "ok", "the begin name survives"


def test_what_cannot_be_saved_is_named(kernel: Kernel) -> None:
    kernel.run("import threading\nlock = threading.Lock(); x = 1")
    ran = kernel.run("%wflo checkpoint with-lock")
    assert "lock" in str(ran.result) and "by reference" in str(ran.result)
    kernel.run("x = 2")
    assert "lock" in str(kernel.run("%wflo rollback with-lock").result)


@pytest.mark.parametrize("line", ["rollback nothing-of-this-name", "rollback snap-0000"])
def test_an_unknown_checkpoint_is_a_short_clear_error(kernel: Kernel, line: str) -> None:
    kernel.run("%wflo checkpoint there")
    ran = kernel.run(f"%wflo {line}")
    assert ran.status == "error" and ran.reply["ename"] == "CheckpointNotFoundError"
    assert "No checkpoint is called" in ran.reply["evalue"] and len(ran.errors[0].data["traceback"]) == 1
    assert kernel.run("%wflo rollback").status == "error"
    assert kernel.run("%wflo checkpoint").status == "error"


def test_a_rollback_inside_a_tracked_cell_is_refused(kernel: Kernel) -> None:
    kernel.run("x = 1")
    kernel.run("%wflo checkpoint one")
    ran = kernel.run("%%wflo budget=1\nx = 2\n%wflo rollback one")
    assert ran.status == "error" and "is running" in ran.text
    assert kernel.run("x").result == "2"


def test_names_of_checkpoints_complete(kernel: Kernel) -> None:
    kernel.run("%wflo checkpoint before-cleaning")
    kernel.run("%wflo checkpoint 'two words'")
    kernel.run("%%wflo\n1")

    def offered(code: str) -> list[str]:
        found = kernel.reply(kernel.client.complete(code, len(code)))
        return [code[: found["cursor_start"]] + match for match in found["matches"]]

    for listed in (False, True):
        assert offered("%wflo rollback befo") == ["%wflo rollback before-cleaning"], f"listed: {listed}"
        assert offered("%wflo rollback two w") == ["%wflo rollback two words"]
        kernel.run("%wflo checkpoints")


def test_checkpoints_survive_a_kernel_restart_of_the_same_notebook(tmp_path: Path, bill: FakeProvider) -> None:
    name = {"JPY_SESSION_NAME": "/somewhere/analysis.ipynb"}
    first = start(tmp_path, bill, **name)
    try:
        first.run("%load_ext wflo_nb")
        first.run("words = ['kept', 'over', 'restarts']; handle = open('/dev/null')")
        assert first.run("%wflo checkpoint kept").status == "ok"
    finally:
        first.close()
    second = start(tmp_path, bill, **name)
    try:
        second.run("%load_ext wflo_nb")
        said = str(second.run("%wflo rollback kept").result)
        assert "could not bring back handle" in said and "Run the code again that makes handle" in said
        assert second.run("words").result == "['kept', 'over', 'restarts']"
        assert "somewhere" not in second.run("c = %wflo checkpoints\nc[0].scope").text, "paths are not stored"
    finally:
        second.close()
    other = start(tmp_path, bill, JPY_SESSION_NAME="/somewhere/else.ipynb")
    try:
        other.run("%load_ext wflo_nb")
        assert other.run("%wflo rollback kept").reply["ename"] == "CheckpointNotFoundError"
    finally:
        other.close()


def test_a_checkpoint_that_fails_warns_once_and_harms_nothing(kernel: Kernel) -> None:
    kernel.run(
        "from wflo_nb.notebook.extension import session_of\nc = session_of(get_ipython()).checkpoints\n"
        "def broken(*a, **k): raise OSError('disk full')\nreal, c.take = c.take, broken"
    )
    try:
        first, second = kernel.run("%%wflo\n1 + 1"), kernel.run("%%wflo\n2 + 2")
        assert (first.result, second.result) == ("2", "4") and first.status == second.status == "ok"
        assert first.text.count("disk full") == 1 and "disk full" not in second.text
    finally:
        kernel.run("del c.take")
