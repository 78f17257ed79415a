"""IPython in a terminal, where cells are run by IPython itself and Ctrl-C is a signal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wflo_nb.testing import FakeProvider

SESSION = """
import json, os, signal, threading
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="nocolor")
def run(cell):
    error = shell.run_cell(cell, store_history=True)
    return type(error.error_in_exec or error.error_before_exec).__name__
run("%load_ext wflo_nb")
run('''from openai import OpenAI
def ask():
    asked = [{"role": "user", "content": "x"}]
    return OpenAI(max_retries=0).chat.completions.create(model="gpt-4o-mini", max_tokens=50, messages=asked)''')
run("class Bad(Exception):\\n    def __str__(self): raise RuntimeError('no words')")
def interrupt():
    threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
ENDED
after = [run("ask()"), run("%%wflo budget=1\\nask()"), run("%wflo checkpoint a"), run("%wflo rollback a")]
import wflo_nb
print(json.dumps([ended, after, wflo_nb.report.executions()["status"].tolist()]))
"""
ENDINGS = {
    "interrupted while it awaits": 'interrupt(); ended = run("%%wflo budget=0.00002\\nimport asyncio\\nawait asyncio.sleep(30)")',
    "interrupted": 'interrupt(); ended = run("%%wflo budget=0.00002\\nimport time\\ntime.sleep(30)")',
    "an error without words": 'ended = run("%%wflo budget=0.00002\\nraise Bad()")',
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_cell_is_over_however_it_ended(provider: FakeProvider, state_dir: Path, tmp_path: Path, ending: str) -> None:
    known = {"WFLO_STATE_DIR": str(state_dir), "OPENAI_BASE_URL": provider.openai_url, "IPYTHONDIR": str(tmp_path / "ipython")}
    program = SESSION.replace("ENDED", ending)
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **known}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    _, after, statuses = json.loads(done.stdout.splitlines()[-1])
    assert after == ["NoneType"] * 4, done.stdout
    assert "RUNNING" not in statuses
