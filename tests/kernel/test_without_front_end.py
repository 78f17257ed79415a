"""nbclient and its kin: everything works, and what is stored says the same as the card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from wflo_nb.testing import FakeProvider

ASK = (
    "%load_ext wflo_nb\nimport openai\nclient = openai.OpenAI()\n"
    "def ask(text):\n    m = [{'role': 'user', 'content': text}]\n"
    "    return client.chat.completions.create(model='gpt-4o-mini', messages=m, max_tokens=5).choices[0].message.content"
)


def execute(cells: list[str], folder: Path, provider: FakeProvider, **environment: str) -> nbformat.NotebookNode:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in [ASK, *cells]])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WFLO_", "JPY_"))}
    env.update(WFLO_STATE_DIR=str(folder / "state"), OPENAI_API_KEY="test-key", OPENAI_BASE_URL=provider.openai_url, **environment)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute(env=env)
    return notebook


def plain(cell: nbformat.NotebookNode) -> list[str]:
    return [o["data"]["text/plain"] for o in cell.outputs if "data" in o]


def test_the_stored_output_has_the_final_numbers(tmp_path: Path, provider: FakeProvider) -> None:
    done = execute(["%%wflo budget=1 name=first\nfor i in range(3): ask(str(i))"], tmp_path, provider)
    (text,) = plain(done.cells[1])
    assert text == f"wflo · first: ${provider.spent_nano / 1e9:.9f}".rstrip("0") + " of $1.00 spent, 3 calls, 6 tokens in, 15 out · Done"
    data = done.cells[1].outputs[0]["data"]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "mathjax_ignore" in data["text/html"] and "3 calls" in data["text/html"]


def test_running_all_stops_at_a_refusal_even_a_swallowed_one(tmp_path: Path, provider: FakeProvider) -> None:
    swallow = "%%wflo budget=0.0000001\ntry: ask('x')\nexcept Exception: pass"
    with pytest.raises(CellExecutionError, match="BudgetExceededError"):
        execute([swallow, "ask('never')"], tmp_path, provider)
    assert provider.requests == 0


def test_the_static_card_is_the_same_every_time(tmp_path: Path, provider: FakeProvider) -> None:
    cells = ["%%wflo budget=1\nask('x')", "%%wflo\n1 + 1"]
    first, second = (execute(cells, tmp_path / n, provider, WFLO_NB="static") for n in "ab")
    assert [c.outputs for c in first.cells] == [c.outputs for c in second.cells]
    assert plain(first.cells[1])[-1] == "wflo: $0.0000033 of $1.00 spent, 1 call, 2 tokens in, 5 out · Done"
    assert [sorted(o["data"]) for o in first.cells[1].outputs] == [["text/plain"], ["text/plain"]]
    assert "widgets" not in first.metadata


def test_a_static_notebook_passes_nbval(tmp_path: Path, provider: FakeProvider) -> None:
    done = execute(["%%wflo budget=1 name=compared\nprint(ask('x'))", "%%wflo\n1 + 1"], tmp_path, provider, WFLO_NB="static")
    nbformat.write(done, tmp_path / "compared.ipynb")
    env = dict(os.environ, WFLO_NB="static", WFLO_STATE_DIR=str(tmp_path / "other"), OPENAI_BASE_URL=provider.openai_url)
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:anyio", "-p", "no:cacheprovider", "compared.ipynb"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0 and "3 passed" in ran.stdout, ran.stdout[-2000:]


def test_no_card_at_all_when_it_is_switched_off(tmp_path: Path, provider: FakeProvider) -> None:
    done = execute(["%%wflo budget=1\nask('x')\n1 + 1"], tmp_path, provider, WFLO_NB="off")
    assert plain(done.cells[1]) == ["2"] and provider.requests == 1
