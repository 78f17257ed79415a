"""Loading changes little and quickly; unloading leaves the shell exactly as it was found."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.kernel.conftest import Kernel, start
from wflo_nb.testing import FakeProvider

PICTURE = """
import threading, concurrent.futures, sys
def picture():
    ip = get_ipython()
    import comm
    seen = dict(
        transforms=list(ip.input_transformer_manager.cleanup_transforms),
        line=list(ip.input_transformer_manager.line_transforms),
        events={k: list(v) for k, v in ip.events.callbacks.items()},
        matchers=list(ip.Completer.custom_matchers),
        magics={k: dict(v) for k, v in ip.magics_manager.magics.items()},
        hidden={n for n in ip.user_ns_hidden if n.strip('_i0123456789')},
        names={n for n in ip.user_ns if n.strip('_i0123456789')},
        start=threading.Thread.start, submit=concurrent.futures.ThreadPoolExecutor.submit,
        cls=type(ip), finders=list(sys.meta_path), showtraceback=ip.showtraceback.__func__,
        errors=hasattr(__import__('wflo_nb').WfloError, '_render_traceback_'),
        targets=dict(comm.get_comm_manager().targets),
        extensions=set(ip.extension_manager.loaded) - {'wflo_nb'},
    )
    for library in ('httpx', 'httpx2'):
        if library in sys.modules:
            module = sys.modules[library]
            seen[library] = {c: dict(vars(getattr(module, c))) for c in ('HTTPTransport', 'AsyncHTTPTransport', 'Client', 'AsyncClient')}
    return seen
import openai, ipywidgets  # their own traces in the process are not ours
%load_ext storemagic
before = None; before = picture()
"""


@pytest.fixture
def bare(tmp_path_factory: pytest.TempPathFactory, bill: FakeProvider) -> Iterator[Kernel]:
    running = start(tmp_path_factory.mktemp("bare"), bill)
    yield running
    running.close()


def test_unloading_restores_the_shell_exactly_and_loading_again_works(bare: Kernel) -> None:
    bare.run(PICTURE)
    for _ in range(2):
        assert bare.run("%load_ext wflo_nb").status == "ok"
        assert "already loaded" in bare.run("%load_ext wflo_nb").text
        assert bare.run("picture() != before").result == "True", "this picture can tell the difference"
        assert "· Done" in bare.run("%%wflo budget=1\n1 + 1").text
        assert bare.run("%unload_ext wflo_nb").status == "ok"
        bare.run("after = picture(); after['names'] -= {'after'}")
        assert bare.run("[k for k in before if before[k] != after[k]]").result == "[]"
        assert "not found" in bare.run("%%wflo budget=1\n1").text
        assert bare.run("after = None\n6 * 7").result == "42"
    assert "cards" not in bare.run("import threading\n[t.name for t in threading.enumerate()]").text


LEAVE = """%%wflo budget=0
import threading, openai, asyncio
def ask():
    try:
        openai.OpenAI(max_retries=0).chat.completions.create(model='gpt-4o', messages=[{'role': 'user', 'content': 'x'}], max_tokens=9)
    except Exception as error:
        said.append(type(error).__name__)
async def later():
    while not go.is_set():
        await asyncio.sleep(0.01)
    await asyncio.to_thread(ask)
go, said = threading.Event(), []
"""


@pytest.mark.parametrize("left", ["threading.Thread(target=lambda: go.wait() and ask(), name='mine')", "asyncio.create_task(later())"])
def test_what_a_cell_left_behind_is_limited_after_unloading_too(bare: Kernel, bill: FakeProvider, left: str) -> None:
    bare.run(PICTURE)
    bare.run("%load_ext wflo_nb")
    asked = bill.requests
    assert bare.run(f"{LEAVE}left = {left}\nif hasattr(left, 'start'):\n    left.start()").status == "ok"
    told = bare.run("%unload_ext wflo_nb").text
    assert "Still at work for a cell: " in told, told
    bare.run("go.set()\nawait asyncio.to_thread(left.join) if hasattr(left, 'join') else await left")
    assert bare.run("said").result == "['BudgetExceededError']" and bill.requests == asked
    bare.run("%load_ext wflo_nb")
    bare.run("%unload_ext wflo_nb")
    bare.run("after = picture()")
    assert bare.run("all(after[k] == before[k] for k in ('start', 'submit', 'httpx', 'httpx2', 'finders') if k in before)").result == "True"


def test_the_cell_that_loads_the_extension_is_tracked_from_there_on(bare: Kernel, bill: FakeProvider) -> None:
    ran = bare.run(
        "import openai\nc = openai.OpenAI()\n%load_ext wflo_nb\n"
        "c.chat.completions.create(model='gpt-4o-mini', messages=[{'role': 'user', 'content': 'x'}]);"
    )
    assert ran.status == "ok", ran.text
    assert bare.run("b = %wflo budget\nb[0].spent_nano").result == str(bill.bill[-1].nano_usd)


def test_loading_imports_nothing_heavy_in_the_users_way(bare: Kernel) -> None:
    heavy = ("pandas", "sqlalchemy", "anywidget", "ipywidgets", "duckdb", "pyarrow")
    bare.run("import sys, wflo_nb.store as s\ns.warm_up = lambda: None")
    bare.run("%load_ext wflo_nb")
    assert bare.run(f"[m for m in {heavy} if m in sys.modules]").result == "[]"
    bare.run("1 + 1")
    assert bare.run(f"[m for m in {heavy} if m in sys.modules]").result == "[]", "cells without calls cost nothing either"


def test_a_bad_setting_is_told_when_the_extension_is_loaded(tmp_path_factory: pytest.TempPathFactory, bill: FakeProvider) -> None:
    kernel = start(tmp_path_factory.mktemp("bad"), bill, WFLO_NB="fancy")
    try:
        ran = kernel.run("%load_ext wflo_nb")
        assert ran.status == "error" and "live, static, off" in ran.text
        assert kernel.run("1 + 1").result == "2"
    finally:
        kernel.close()


def test_a_call_between_cells_belongs_to_the_notebook(bare: Kernel, bill: FakeProvider) -> None:
    bare.run("%load_ext wflo_nb\nimport openai, asyncio\nlater = openai.AsyncOpenAI()")
    bare.run(
        "def go():\n    what = {'model': 'gpt-4o-mini', 'messages': [{'role': 'user', 'content': 'x'}]}\n"
        "    asyncio.ensure_future(later.chat.completions.create(**what))\n"
        "import contextvars\nasyncio.get_running_loop().call_later(0.3, go, context=contextvars.Context())"
    )
    bare.client.wait_for_ready(timeout=20)
    asked = bill.requests
    end = time.monotonic() + 10
    while bill.requests == asked and time.monotonic() < end:
        time.sleep(0.1)
    bare.run("await asyncio.sleep(0.3)")
    assert bare.run("b = %wflo budget\nb[0].spent_nano").result == str(bill.bill[-1].nano_usd)
