"""The quickstart as a newcomer meets it: opened in JupyterLab, run from top to bottom, and rolled back by the card's button."""

from __future__ import annotations

from pathlib import Path

import nbformat
from playwright.sync_api import BrowserContext

from tests.browser.lab import Lab, Page
from wflo_nb.testing import FakeProvider

QUICKSTART = Path(__file__).parent.parent.parent / "notebooks" / "quickstart.ipynb"


def test_the_quickstart_runs_and_its_cards_move_and_restore(lab: Lab, context: BrowserContext, answers: FakeProvider, shots: Path) -> None:
    notebook = nbformat.read(QUICKSTART, 4)
    notebook.metadata["kernelspec"] = {"name": "here", "display_name": "here", "language": "python"}
    nbformat.write(notebook, lab.files / "quickstart.ipynb")
    runaway = next(i for i, cell in enumerate(notebook.cells) if "name=runaway" in cell.source)
    spoil = next(i for i, cell in enumerate(notebook.cells) if "name=spoil" in cell.source)
    page = Page(lab, context, "quickstart.ipynb")
    try:
        for i, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            if i == runaway:
                answers.behave(delay=2.0)  # the budget holds two calls: time to look while the second is under way
                page.run(i, wait=False)
                card = page.page.locator(".wf[aria-label='LLM spend of runaway']")
                page.page.wait_for_function("() => document.querySelector(\"[aria-label='LLM spend of runaway']\")?.dataset.calls >= 1")
                assert page.is_running(i), "the card moves while its cell runs"
                page.wait_done(i)
                answers.behave(delay=0.0)
                assert card.get_attribute("data-state") == "over" and "refused before it was sent" in card.inner_text()
                page.page.screenshot(path=shots / "quickstart-stopped.png")
            else:
                page.run(i)
            failed = [o["ename"] for o in page.outputs(i) if o["output_type"] == "error"]
            assert failed == (["BudgetExceededError"] if i == runaway else []), (i, failed)
        assert page.value("basket, orders['price'].tolist()") == "(['tea'], [3.0, 4.5, 5.0])"

        page.page.evaluate("i => window.jupyterapp.shell.currentWidget.content.scrollToItem(i)", spoil)
        card = page.page.locator(".wf[aria-label='LLM spend of spoil']")
        choice = card.locator("select")
        choice.select_option(value=str(choice.locator("option", has_text="after this cell").get_attribute("value")))
        card.locator(".wf-restore").click()
        card.locator(".wf-restore").click()
        page.page.wait_for_selector(".wf[aria-label='LLM spend of spoil'][data-state=restored]", timeout=20_000)
        assert page.value("basket, shop['basket'] is basket, shop['open']") == "(['tea', 'regret'], True, False)"
    finally:
        answers.behave(delay=0.0)
        page.close()
