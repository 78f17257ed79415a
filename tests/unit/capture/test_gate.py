"""What the gate makes of a request, before anything is sent."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from wflo_nb.capture import gate
from wflo_nb.store import open_store
from wflo_nb.workflow.runtime import runtime


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)])
def test_packed_request_is_bounded_by_what_is_in_it(tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    ask = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello world " * 1000}], "max_tokens": 1}
    body = json.dumps(ask).encode()
    store = open_store(tmp_path / "x.db")
    account = runtime().new_run("packed", budget_nano=10**12, store=store).account
    plain = gate.admit(account, gate.Request("127.0.0.1", "/v1/chat/completions", body))
    packed = gate.admit(account, gate.Request("127.0.0.1", "/v1/chat/completions", pack(body), encoding))
    assert plain is not None
    assert packed is not None
    assert packed.call.reserved_nano == plain.call.reserved_nano
    store.close()


def test_cap_that_is_written_fits_into_the_window_beside_the_input(tmp_path: Path) -> None:
    store = open_store(tmp_path / "x.db")
    run = runtime().new_run("window", budget_nano=10**12, store=store)
    run.account.book.declare("shared-window", input=1, output=1, max_input_tokens=8192, max_output_tokens=8192)
    for words, least in ((1, 7000), (400, 5000), (2000, 2000)):
        body = json.dumps({"model": "shared-window", "messages": [{"role": "user", "content": "word " * words}]}).encode()
        exchange = gate.admit(run.account, gate.Request("127.0.0.1", "/v1/chat/completions", body))
        assert exchange is not None
        assert exchange.call.cap_written is not None
        assert least < exchange.call.cap_written <= 8192 - words
    store.close()
