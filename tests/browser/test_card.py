"""The card in a real JupyterLab: it moves while the cell runs, and its buttons work while the cell blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.lab import Page
from wflo_nb.testing import FakeProvider

LOOP = """%%wflo budget=1 name="label 60 tickets"
for i in range(60):
    ask(f"ticket {i}")
    time.sleep(0.1)
"""

TRIAGE = """%%wflo budget=2 name="triage 40 support tickets"
for i, ticket in enumerate(tickets):
    labels[i] = ask(f"Label this ticket: {ticket}", model="gpt-4o", max_tokens=4000)
    time.sleep(0.05)"""

SUMMARISE = """%%wflo budget=0.0004 name="summarise"
for i in range(40):
    ask("Summarise all tickets. " * 30, max_tokens=200)"""

Open = Callable[..., Page]


def spent(page: Page) -> str:
    return page.page.inner_text(".wf-big")


def calls(page: Page) -> int:
    return int(page.page.get_attribute(".wf", "data-calls") or 0)


def wait_for_calls(page: Page, least: int) -> None:
    page.page.wait_for_function(f"() => Number(document.querySelector('.wf')?.dataset.calls) >= {least}", timeout=30_000)


def test_the_card_moves_while_the_cell_runs_and_ends_on_the_ledgers_numbers(notebook: Open, answers: FakeProvider) -> None:
    before = answers.spent_nano
    page = notebook("moves", LOOP.replace("60", "25"))
    page.run(1, wait=False)
    wait_for_calls(page, 2)
    first = spent(page)
    assert page.is_running(1)
    wait_for_calls(page, 6)
    assert page.is_running(1) and spent(page) != first
    page.wait_done(1)
    page.page.wait_for_selector(".wf[data-state=done]")
    billed = answers.spent_nano - before
    assert spent(page) == f"${billed / 1e9:.9f}".rstrip("0") and calls(page) == 25
    bar = page.page.locator(".wf-bar")
    assert bar.get_attribute("role") == "progressbar" and f"{spent(page)} of $1.00" in str(bar.get_attribute("aria-valuetext"))
    assert page.page.text_content(".wf-hear") == bar.get_attribute("aria-valuetext"), "those who listen hear the sum as well"
    assert f"{spent(page)} of $1.00 spent, 25 calls" in page.text(1), "the stored text tells the final numbers"


@pytest.mark.parametrize("how", ["blocks", "awaits"])
def test_stop_works_while_the_cell_runs(notebook: Open, answers: FakeProvider, how: str) -> None:
    page = notebook(f"stop-{how}", LOOP if how == "blocks" else LOOP.replace("time.sleep", "import asyncio; await asyncio.sleep"))
    page.run(1, wait=False)
    wait_for_calls(page, 2)
    page.page.click(".wf-stop")
    page.wait_done(1, 20)
    assert calls(page) < 60 and "BudgetExceededError" in str(page.outputs(1))
    asked = answers.requests
    time.sleep(0.5)
    assert answers.requests == asked, "nothing is sent after the stop"
    assert page.page.get_attribute(".wf", "data-state") == "stopped"


def test_a_kernel_that_cannot_hear_a_click_is_told_of_and_can_be_interrupted(notebook: Open) -> None:
    # The regular expression holds the interpreter's lock, so that no thread of the kernel can answer.
    page = notebook("busy-kernel", "%%wflo budget=1\nask()\ntime.sleep(1)\nimport re\nre.match(r'(a+)+$', 'a' * 60 + 'b')")
    page.run(1, wait=False)
    wait_for_calls(page, 1)
    page.page.wait_for_timeout(1500)
    page.page.click(".wf-stop")
    page.page.wait_for_selector(".wf-note button", timeout=15_000)
    assert "has not answered" in page.page.inner_text(".wf-note")
    page.page.click(".wf-note button")
    page.wait_done(1, 30)
    assert "KeyboardInterrupt" in str(page.outputs(1))
    page.page.wait_for_selector(".wf[data-state=stopped], .wf[data-state=failed]")


def test_a_raised_budget_lets_a_refused_cell_go_on(notebook: Open, answers: FakeProvider) -> None:
    page = notebook(
        "raise",
        """%%wflo budget=0.000001
refused, answer = 0, None
while answer is None:
    try:
        answer = ask("please")
    except Exception as error:
        refused += 1
        time.sleep(0.2)
""",
    )
    page.run(1, wait=False)
    page.page.wait_for_selector(".wf[data-state=refused]", timeout=30_000)
    page.page.fill(".wf-amount", "0.5")
    page.page.press(".wf-amount", "Enter")
    page.wait_done(1, 20)
    assert page.value("answer is not None and refused > 0") == "True"
    assert page.page.inner_text(".wf-of") == "of $0.50"
    assert page.page.get_attribute(".wf", "data-state") == "done"


def test_restore_and_undo_exchange_the_variables_in_the_kernel(notebook: Open) -> None:
    page = notebook(
        "restore", "data = [1, 2, 3]\nalias = data", "%%wflo budget=1\ndata.append(4)\ndata[0] = 'changed'\nnew = ask()", "1 + 1"
    )
    page.run(1)
    page.run(2)
    restore = page.page.locator(".wf-restore")
    restore.wait_for(state="visible", timeout=20_000)
    restore.click()
    assert "Yes" in restore.inner_text(), "the first press only arms"
    assert page.value("data[0]") == "'changed'"
    restore.click()
    page.page.wait_for_selector(".wf[data-state=restored]", timeout=20_000)
    assert page.value("data, data is alias, 'new' in globals()") == "([1, 2, 3], True, False)"
    assert "%wflo undo" in page.page.inner_text(".wf-note")
    page.page.click(".wf-undo")
    page.page.wait_for_selector(".wf[data-state=done]", timeout=20_000)
    assert page.value("data, data is alias, 'new' in globals()") == "(['changed', 2, 3, 4], True, True)"
    scope = "__import__('wflo_nb.notebook.extension', fromlist=['x']).session_of(get_ipython()).notebook_id"
    assert page.value(scope).startswith("'nb-"), "the server tells which notebook this is, so that its checkpoints outlive the kernel"


def test_a_card_whose_kernel_has_ended_says_how_to_go_on(notebook: Open) -> None:
    page = notebook("ended", "value = 'old'", "%%wflo budget=1\nvalue = 'new'", "%load_ext wflo_nb")
    page.run(1)
    page.run(2)
    page.page.locator(".wf-restore").wait_for(state="visible", timeout=20_000)
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    page.page.evaluate(f"async () => {{ await {kernel}.restart() }}")
    page.run(3)
    page.page.click(".wf-restore")
    page.page.click(".wf-restore")
    page.page.wait_for_function("() => document.querySelector('.wf-note').textContent.includes('has ended')", timeout=20_000)
    assert page.page.input_value(".wf-select") in page.page.inner_text(".wf-note"), "the line names the checkpoint that was chosen"


def test_restore_is_refused_while_another_cell_runs(notebook: Open) -> None:
    page = notebook("busy", "value = 'old'", "%%wflo budget=1\nvalue = 'new'", "time.sleep(4)")
    page.run(1)
    page.run(2)
    page.page.locator(".wf-restore").wait_for(state="visible", timeout=20_000)
    page.run(3, wait=False)
    page.page.wait_for_timeout(500)
    page.page.click(".wf-restore")
    page.page.click(".wf-restore")
    page.page.wait_for_function("() => document.querySelector('.wf-note').textContent.includes('is running')", timeout=20_000)
    page.wait_done(3)
    assert page.value("value") == "'new'"


def test_the_card_is_fit_to_be_seen_in_both_themes(notebook: Open, shots: Path, answers: FakeProvider) -> None:
    page = notebook("shots", 'tickets = ["late parcel", "wrong size", "refund", "lost"] * 10\nlabels = {}', TRIAGE, SUMMARISE)
    page.run(1)
    answers.behave(delay=0.35, tokens=2800)
    try:
        page.run(2, wait=False)
        wait_for_calls(page, 18)
        for theme in ("Light", "Dark"):
            page.theme(f"JupyterLab {theme}")
            page.page.wait_for_function("() => document.querySelector('.wf-v').textContent.includes('in flight')")
            page.page.locator(".wf").first.screenshot(path=shots / f"card-running-{theme.lower()}.png")
    finally:
        answers.behave(delay=0.0, tokens=20)
    page.wait_done(2)
    page.run(3)
    page.page.wait_for_function("() => document.querySelectorAll('.wf-restore:not([hidden])').length === 2")
    for theme in ("Dark", "Light"):
        page.theme(f"JupyterLab {theme}")
        for index, name in ((0, "done"), (1, "refused")):
            page.page.locator(".wf").nth(index).screenshot(path=shots / f"card-{name}-{theme.lower()}.png")
        page.page.screenshot(path=shots / f"page-{theme.lower()}.png")
    shown = page.page.evaluate("() => { const s = getComputedStyle(document.querySelector('.wf')); return [s.backgroundColor, s.color] }")
    assert shown[0] != shown[1]
    for index in (0, 1):
        box = page.page.locator(".wf").nth(index).bounding_box()
        assert box is not None and box["width"] <= 764 and box["height"] < 320
    assert page.page.locator(".wf mjx-container").count() == 0, "dollar signs are not typeset"
    assert not [line for line in page.console if line.startswith("error") and "wf" in line]
