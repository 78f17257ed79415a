"""Wire formats of other packages: found when no format of ours speaks at a path, told when they are broken, never a danger to a call."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wflo_nb.budget.account import Account
from wflo_nb.capture import formats, gate
from wflo_nb.capture.shown import Request
from wflo_nb.errors import UnsupportedFormatError, WfloWarning
from wflo_nb.model import CallState
from wflo_nb.workflow.runtime import runtime

ACME = """
from wflo_nb.capture.formats.base import Facts, WireFormat

def read(body, seller=None, path=""):
    return Facts(model=body["engine"], cap=body.get("limit"))

def fold(answer, obj):
    answer.complete = answer.put(input_tokens=obj["in"], output_tokens=obj["out"])

def write_cap(body, cap, host):
    body["limit"] = cap

FORMATS = [WireFormat("acme", "/acme/generate", "acme", lambda body: "engine" in body, read, fold, write_cap)]
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts a package with an entry point on the path, as an installation does."""

    def install(code: str) -> None:
        (tmp_path / "acme_wire.py").write_text(code)
        record = tmp_path / "acme_wire-1.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-wire\nVersion: 1.0\n")
        (record / "entry_points.txt").write_text("[wflo_nb.formats]\nacme = acme_wire:FORMATS\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        forget()

    yield install
    monkeypatch.undo()
    sys.modules.pop("acme_wire", None)
    forget()


def forget() -> None:
    for cached in (formats._plugged_in, formats.find, formats.all_at):
        cached.cache_clear()


def account(tmp_path: Path) -> Account:
    from wflo_nb.store import open_store

    run = runtime().new_run("plugins", budget_nano=10**9, store=open_store(tmp_path / "x.db"))
    run.account.book.declare("acme-1", input=1, output=2, max_output_tokens=500)
    return run.account


def test_format_of_another_package_bounds_caps_and_bills(installed: Callable[[str], None], tmp_path: Path) -> None:
    installed(ACME)
    payer = account(tmp_path)
    exchange = gate.admit(payer, Request("127.0.0.1", "/acme/generate", b'{"engine":"acme-1","text":"hi"}'))
    assert exchange is not None
    assert exchange.body is not None
    assert json.loads(exchange.body)["limit"] == exchange.call.cap_written == 500
    exchange.head(200, "application/json", "")
    exchange.feed(b'{"in": 3, "out": 5}')
    exchange.finished()
    assert (exchange.call.state, exchange.call.cost_nano) == (CallState.SETTLED, 13_000)
    payer.store.close()


def test_formats_of_other_packages_are_loaded_when_they_are_needed_first(installed: Callable[[str], None]) -> None:
    installed(ACME)
    formats.find("/v1/chat/completions")
    assert "acme_wire" not in sys.modules
    assert formats.find("/acme/generate") is not None
    assert "acme_wire" in sys.modules


@pytest.mark.parametrize("code", ["1 / 0", "FORMATS = [3]", "FORMATS = None", "import nothing_like_it", ""])
def test_broken_package_is_told_and_its_paths_stay_unread(installed: Callable[[str], None], code: str) -> None:
    installed(code)
    with pytest.warns(WfloWarning, match="'acme' .*cannot be loaded"):
        assert formats.find("/acme/generate") is None
    assert formats.find("/acme/generate") is None
    assert formats.find("/v1/messages") is not None


def test_errors_of_a_package_refuse_a_call_or_leave_it_unconfirmed_and_reach_no_user(
    installed: Callable[[str], None], tmp_path: Path
) -> None:
    installed(ACME.replace('Facts(model=body["engine"]', 'Facts(model=body["nothing"]'))
    payer = account(tmp_path)
    with pytest.raises(UnsupportedFormatError, match="could not be read"):
        gate.admit(payer, Request("127.0.0.1", "/acme/generate", b'{"engine":"acme-1"}'))
    payer.store.close()


def test_answer_that_a_package_cannot_read_is_unconfirmed(installed: Callable[[str], None], tmp_path: Path) -> None:
    installed(ACME.replace('obj["in"]', 'obj["in"][99]'))
    payer = account(tmp_path)
    exchange = gate.admit(payer, Request("127.0.0.1", "/acme/generate", b'{"engine":"acme-1","limit":9}'))
    assert exchange is not None
    exchange.head(200, "application/json", "")
    exchange.feed(b'{"in": [], "out": 5}')
    exchange.finished()
    assert exchange.call.state is CallState.UNCONFIRMED
    assert exchange.call.cost_nano == exchange.call.reserved_nano > 0
    payer.store.close()
