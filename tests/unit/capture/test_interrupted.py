"""An interrupt (Ctrl-C, a cell that is stopped) may come after any step: no money stays held, and nothing is booked twice or not at all."""

from __future__ import annotations

import dis
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from wflo_nb.budget.account import Account
from wflo_nb.capture import gate
from wflo_nb.capture.exchange import Exchange
from wflo_nb.capture.shown import Request
from wflo_nb.store import open_store
from wflo_nb.workflow.runtime import runtime

#: After these Python looks whether somebody interrupts.
_LOOKS = frozenset(name for name in dis.opmap if name.startswith(("CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "RESUME")))
_USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
_ANSWER = json.dumps({"model": "gpt-4o", "choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}], "usage": _USAGE})


class Interrupt:
    """Interrupts our own code at the point with a number. `came`: whether there was such a point."""

    def __init__(self, number: int) -> None:
        self.left, self.came = number, False

    def __call__(self, frame: FrameType, _event: str, _arg: object) -> Any:
        if not frame.f_globals.get("__name__", "").startswith("wflo_nb"):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        before = ""

        def step(frame: FrameType, event: str, _arg: object) -> Any:
            nonlocal before
            if event == "opcode":
                looks, before = before in _LOOKS, dis.opname[frame.f_code.co_code[frame.f_lasti]]
                self.left -= looks
                if looks and not self.left:
                    self.came = True
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return step

        return step


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    store = open_store(tmp_path / "x.db")
    yield runtime().new_run("interrupted", budget_nano=10**13, store=store).account
    store.close()


def in_place(account: Account, request: Request) -> Exchange | None:
    return gate.admit(account, request)


def in_a_loop(account: Account, request: Request) -> Exchange | None:
    if not account.begun:
        return gate.admit(account, request)
    work = gate.admit_in_loop(account, request)
    with pytest.raises(StopIteration) as ended:
        work.send(None)
    found: Exchange | None = ended.value.value
    return found


def one_call(account: Account, admit: Callable[[Account, Request], Exchange | None]) -> None:
    """As a transport does it."""
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
    exchange = admit(account, Request("api.openai.com", "/v1/chat/completions", json.dumps(body).encode()))
    assert exchange is not None
    try:
        try:
            exchange.head(200, "application/json", "")
            exchange.feed(_ANSWER.encode())
            exchange.flush()
        except BaseException as error:
            exchange.failed(error, sent=True)
            raise
        exchange.finished()
    finally:
        if not exchange.over:
            exchange.closed()


@pytest.mark.parametrize(("admit", "remembered"), [(in_place, True), (in_a_loop, True), (in_place, False)])
def test_no_point_of_a_call_leaves_money_held(
    account: Account, admit: Callable[[Account, Request], Exchange | None], remembered: bool
) -> None:
    one_call(account, admit)
    points = 0
    for number in range(1, 2000, 3):
        account.ledger.drain()
        account.store.budget(account.id)  # books everything: the next call has to ask the tables
        if remembered:
            one_call(account, in_place)
        interrupt, before = Interrupt(number), sys.gettrace()
        sys.settrace(interrupt)
        with suppress(KeyboardInterrupt):
            try:
                one_call(account, admit)
            finally:
                sys.settrace(before)
        if not interrupt.came:
            break
        points += 1
        one_call(account, in_place)
        account.ledger.drain()
        state = account.store.budget(account.id)
        assert (state.held_nano, account.line.flying, len(account.line)) == (0, {}, 0), number
    assert points > 50
    states = account.store.read("calls")["state"]
    assert set(states) <= {"SETTLED", "UNCONFIRMED", "RELEASED"}
    costs = [cost for cost in account.store.read("calls")["cost_nano"] if cost]
    assert account.store.budget(account.id).spent_nano == sum(costs)
