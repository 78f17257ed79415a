"""One server, one browser and one provider for the whole session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, TimeoutError

from tests.browser.lab import Lab, Page, browser
from wflo_nb.testing import FakeProvider

SETUP = """%load_ext wflo_nb
import time, openai
client = openai.OpenAI()
def ask(text="a question", model="gpt-4o-mini", **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, **more).choices[0].message.content"""


@pytest.fixture(scope="session")
def answers() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, answers: FakeProvider) -> Iterator[Lab]:
    running = Lab(tmp_path_factory.mktemp("lab"), OPENAI_API_KEY="test-key", OPENAI_BASE_URL=answers.openai_url)
    yield running
    running.close()


# Of the package, not the session: as long as Playwright lives, an event loop runs in this thread, and no later test could start one.
@pytest.fixture(scope="package")
def context() -> Iterator[BrowserContext]:
    with browser() as running:
        yield running


@pytest.fixture(scope="session")
def shots() -> Path:
    folder = Path(__file__).parent.parent / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def notebook(lab: Lab, context: BrowserContext) -> Iterator[Callable[..., Page]]:
    """Opens a notebook of these cells, the extension loaded by its first one. A kernel that hangs at its start is tried again once."""
    opened: list[Page] = []

    def open_(name: str, *cells: str) -> Page:
        for attempt in (1, 2):
            lab.write(f"{name}-{attempt}.ipynb", [SETUP, *cells])
            page = Page(lab, context, f"{name}-{attempt}.ipynb")
            opened.append(page)
            try:
                page.run(0)
                return page
            except TimeoutError:
                page.close()
        raise RuntimeError("the kernel did not answer twice")

    yield open_
    for page in opened:
        page.close()
