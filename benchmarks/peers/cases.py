"""The cases of the budget benchmark. Each works one session until the enforcer stops it, or until four times the budget are gone.

Calls are uniform unless the case is about something else: a prompt of 13 tokens and an answer of 400 by gpt-4o, of which the
budget holds 40.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from base import Session
from provider import Control

MODEL, CLAUDE, LONG = "gpt-4o", "claude-sonnet-4-6", "gpt-5.4"
CALL_NANO = 13 * 2_500 + 400 * 10_000
BUDGET_NANO = 40 * CALL_NANO
#: In the form of `wflo_nb.testing.RATES`; the last two are models that no price list has.
RATES = {
    "claude-sonnet-4-6": (3.0, 0.3, 3.75, 6.0, 15.0),
    "orion-7-ultra": (75.0, 75.0, 75.0, 75.0, 150.0),
    "meridian-absurd": (2000.0, 2000.0, 2000.0, 2000.0, 9710.0),
}


@dataclass
class Tally:
    """What the calling side saw.

    Attributes:
        answered: calls that returned.
        refused: calls that the enforcer ended.
        failed: calls that failed otherwise, and the first such failure.
        requests_at_refusal: how many requests the provider had seen at the first refusal (one caller only).
        interrupts: how many interrupts arrived.
    """

    answered: int = 0
    refused: int = 0
    failed: int = 0
    failure: str | None = None
    requests_at_refusal: int | None = None
    interrupts: int = 0

    def fail(self, error: BaseException) -> None:
        """Note a failure that is no refusal."""
        self.failed += 1
        self.failure = self.failure or f"{type(error).__name__}: {error}"[:300]


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name, title: for the command line and the table.
        drive: makes the calls in a session.
        needs: what the enforcer must support (see `Enforcer.can`).
        behave: the provider's behaviour.
        budget_nano: the budget.
        uniform: whether all calls are alike and small, so that nearly all of the budget should be usable.
        exact: whether the provider sends usage with every answer, so that a ledger can be exact.
        mode: ``"one"`` process, several ``"processes"``, or ``"kill"``: some are killed in mid-call before another goes on.
        processes: how many.
        client: options of the SDK's clients.
        postgres: record in PostgreSQL (wflo_nb alone).
    """

    name: str
    title: str
    drive: Callable[[Session, Tally, Control, bool], None]
    needs: frozenset[str] = frozenset()
    behave: dict[str, Any] = field(default_factory=dict)
    budget_nano: int = BUDGET_NANO
    uniform: bool = False
    exact: bool = True
    mode: str = "one"
    processes: int = 1
    client: dict[str, Any] = field(default_factory=dict)
    postgres: bool = False

    @property
    def budget_usd(self) -> float:
        """The budget in USD."""
        return self.budget_nano / 1_000_000_000


def request(number: int, **changes: Any) -> dict[str, Any]:
    """A uniform chat request; the number makes prompts differ, so that no loop detector has a reason to stop them."""
    prompt = f"Question {number}: say a few words about rivers, please."
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 400, **changes}


def repeat(session: Session, tally: Tally, ask: Callable[[int], Any], most: int, first: int = 0) -> None:
    """Ask until the first refusal; other failures are the provider's and do not end the loop."""
    for number in range(first, first + most):
        try:
            ask(number)
            tally.answered += 1
        except session.refusals:
            tally.refused += 1
            return
        except Exception as error:
            tally.fail(error)


def _chat(session: Session, **changes: Any) -> Callable[[int], Any]:
    return lambda number: session.chat(**request(number, **changes))


def _drain(session: Session, **changes: Any) -> Callable[[int], Any]:
    def ask(number: int) -> None:
        for _ in session.stream(**request(number, **changes)):
            pass

    return ask


def sequential(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    repeat(session, tally, _chat(session), 160)


def _gather(session: Session, tally: Tally, tasks: int, calls: int) -> None:
    async def one(task: int) -> None:
        for call in range(calls):
            try:
                await session.achat(**request(task * calls + call))
                tally.answered += 1
            except session.refusals:
                tally.refused += 1
                return
            except Exception as error:
                tally.fail(error)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(task) for task in range(tasks)))

    asyncio.run(all_of_them())


def gather50(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    _gather(session, tally, 50, 2 if quick else 3)


def gather500(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    _gather(session, tally, 120 if quick else 500, 1)


def threads64(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    lock = threading.Lock()

    def work(thread: int) -> None:
        own = Tally()
        repeat(session, own, _chat(session), 3, first=thread * 3)
        with lock:
            tally.answered += own.answered
            tally.refused += own.refused
            tally.failed += own.failed
            tally.failure = tally.failure or own.failure

    threads = [threading.Thread(target=work, args=(n,)) for n in range(24 if quick else 64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def share_of_processes(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    """What each of the processes does."""
    repeat(session, tally, _chat(session), 20, first=os.getpid() % 1000 * 20)


def stream_cross(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    repeat(session, tally, _drain(session), 80)


def stream_closed(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    def ask(number: int) -> None:
        chunks = session.stream(**request(number))
        for count, _ in enumerate(chunks):
            if count == 3:
                break
        chunks.close()  # type: ignore[attr-defined]

    repeat(session, tally, ask, 60)


def stream_broken(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    repeat(session, tally, _drain(session), 60)


def no_cap(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    def ask(number: int) -> None:
        asked = request(number)
        del asked["max_tokens"]
        session.chat(**asked)

    repeat(session, tally, ask, 3)


def no_cap_stream(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    def ask(number: int) -> None:
        asked = request(number)
        del asked["max_tokens"]
        for _ in session.stream(**asked):
            pass

    repeat(session, tally, ask, 3)


def retried(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    repeat(session, tally, _chat(session), 48)


def timed_out(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    lock = threading.Lock()

    def work(thread: int) -> None:
        own = Tally()
        repeat(session, own, _chat(session), 5, first=thread * 5)
        with lock:
            tally.refused += own.refused
            tally.failed += own.failed

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def unknown_model(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    repeat(session, tally, _chat(session, model="orion-7-ultra"), 20)


def absurd_model(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    repeat(session, tally, _chat(session, model="meridian-absurd"), 5)


def dear_model(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    repeat(session, tally, _chat(session, model="o1-pro"), 8)


def tier_border(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    def ask(number: int) -> None:
        # "user" is a token too; the second, fourth … prompt is one token over the border
        words = "a " * (272_000 - 1 + number % 2)
        session.chat(model=LONG, messages=[{"role": "user", "content": words}], max_tokens=100)

    repeat(session, tally, ask, 16)


def five_choices(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    repeat(session, tally, _chat(session, n=5, max_tokens=80), 160)


def _pages(words: int) -> str:
    return " ".join(f"word{number % 97}" for number in range(words))


def cached_prompt(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    prompt = _pages(2000)

    def ask(number: int) -> None:
        messages = [{"role": "system", "content": prompt}, {"role": "user", "content": f"Question {number}?"}]
        session.chat(model=MODEL, messages=messages, max_tokens=400)

    repeat(session, tally, ask, 120)


def cache_write(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    prompt = _pages(2000)

    def ask(number: int) -> None:
        session.message(
            model=CLAUDE, max_tokens=400, system=prompt, messages=[{"role": "user", "content": f"Question {number}: what does it say?"}]
        )

    repeat(session, tally, ask, 60)


def expanding_text(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    def ask(number: int) -> None:
        session.chat(model=MODEL, messages=[{"role": "user", "content": f"{number}: " + "ﷺ" * 200}], max_tokens=20)

    repeat(session, tally, ask, 10)


PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def images(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    def ask(number: int) -> None:
        parts: list[dict[str, Any]] = [{"type": "text", "text": f"Question {number}: what is on these?"}]
        parts += [{"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}}] * 8
        session.chat(model=MODEL, messages=[{"role": "user", "content": parts}], max_tokens=50)

    repeat(session, tally, ask, 70)


def tools(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    schema = {"type": "object", "properties": {f"field{n}": {"type": "string", "description": _pages(30)} for n in range(60)}}
    tool = {"type": "function", "function": {"name": "look_up", "description": _pages(100), "parameters": schema}}

    def ask(number: int) -> None:
        session.chat(**request(number, tools=[tool], max_tokens=50))

    repeat(session, tally, ask, 40)


def swallowed(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    """User code that catches everything, as many agent loops do: at least forty refusals are swallowed."""
    for number in range(160):
        try:
            session.chat(**request(number))
            tally.answered += 1
        except Exception as error:
            if isinstance(error, session.refusals):
                tally.refused += 1
                if tally.requests_at_refusal is None:
                    tally.requests_at_refusal = control.bill().requests
            else:
                tally.fail(error)


def nested(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    """Children with a budget far above what is left outside; the outer budget is the judge."""
    for number in range(40):
        with session.nested(5.0) as inner:
            repeat(inner, tally, _chat(inner), 4, first=number * 4)
        if tally.refused:
            return


def interrupts(session: Session, tally: Tally, control: Control, quick: bool) -> None:
    """Ctrl-C, and an exception set into the running thread, at random moments of calls; the user goes on each time."""
    total = 20 if quick else 200
    chance, main, done = random.Random(7), threading.main_thread().ident, threading.Event()
    armed = threading.Event()

    def shoot() -> None:
        for shot in range(total):
            armed.wait(10)
            time.sleep(chance.random() * 0.02)
            if done.is_set():
                return
            if shot % 2:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main or 0), ctypes.py_object(KeyboardInterrupt))
            armed.clear()

    signal.signal(signal.SIGINT, signal.default_int_handler)
    session.chat(**request(0))
    shooter = threading.Thread(target=shoot, daemon=True)
    shooter.start()
    number, until = 0, time.monotonic() + 100
    while tally.interrupts < total and not tally.refused and shooter.is_alive() and time.monotonic() < until:
        number += 1
        try:
            armed.set()
            session.chat(**request(number))
            tally.answered += 1
        except KeyboardInterrupt:
            tally.interrupts += 1
        except session.refusals:
            tally.refused += 1
        except Exception as error:
            tally.fail(error)
    try:
        done.set()
        armed.set()
        shooter.join(15)
        time.sleep(0.1)
    except KeyboardInterrupt:
        tally.interrupts += 1


_ONE_LONG = 5 * CALL_NANO * 10 // 4  # about $0.05: a third of one answer of 16,000 tokens

CASES: tuple[Case, ...] = (
    Case("sequential", "sequential", sequential, uniform=True),
    Case("gather50", "gather of 50", gather50, frozenset({"async"}), {"delay": 0.02}, uniform=True),
    Case("gather500", "gather of 500", gather500, frozenset({"async"}), {"delay": 0.02}, uniform=True),
    Case("threads64", "64 threads", threads64, behave={"delay": 0.02}, uniform=True),
    Case("processes", "8 processes (file)", share_of_processes, frozenset({"processes"}), uniform=True, mode="processes", processes=8),
    Case(
        "processes-postgres",
        "8 processes (PostgreSQL)",
        share_of_processes,
        frozenset({"processes", "postgres"}),
        uniform=True,
        mode="processes",
        processes=8,
        postgres=True,
    ),
    Case("stream", "streams crossing the budget", stream_cross, frozenset({"stream"}), uniform=True),
    Case("stream-closed", "streams closed early", stream_closed, frozenset({"stream"}), exact=False),
    Case("stream-cut", "streams cut", stream_broken, frozenset({"stream"}), {"cut_after": 5}, exact=False),
    Case("stream-malformed", "streams malformed", stream_broken, frozenset({"stream"}), {"malformed": True}, exact=False),
    Case("no-cap", "no output cap, 16k answer", no_cap, behave={"tokens": 16_000}, budget_nano=_ONE_LONG),
    Case("no-cap-stream", "the same, streamed", no_cap_stream, frozenset({"stream"}), {"tokens": 16_000}, budget_nano=_ONE_LONG),
    Case("usage-missing", "usage missing", sequential, behave={"usage": "missing"}, exact=False),
    Case("usage-null", "usage null", sequential, behave={"usage": "null"}, exact=False),
    Case("usage-doubled", "usage doubled", stream_cross, frozenset({"stream"}), {"usage": "doubled"}, uniform=True),
    Case("retries", "hidden retries, billed", retried, behave={"status": 500, "billed": True, "retry_after_ms": 1}, exact=False),
    Case(
        "timeout",
        "time-out after billing",
        timed_out,
        behave={"delay": 1.0},
        budget_nano=10 * CALL_NANO,
        exact=False,
        client={"timeout": 0.25, "max_retries": 1},
    ),
    Case("unknown-model", "unknown model", unknown_model),
    Case("absurd-model", "absurdly priced unknown model", absurd_model),
    Case("dear-model", "dearest listed model", dear_model),
    Case("tier-border", "prompts at a tier border", tier_border, budget_nano=8_000_000_000),
    Case("n5", "n=5", five_choices, frozenset({"raw"}), {"tokens": 80}, uniform=True),
    Case("cached", "cached prompt", cached_prompt, behave={"cached": 0.9}, budget_nano=20 * BUDGET_NANO // 10),
    Case("cache-write", "cache written for an hour", cache_write, frozenset({"anthropic"}), {"written_1h": 0.95}, 2 * BUDGET_NANO),
    Case("nfkc", "text that NFKC expands", expanding_text, behave={"normalised": True, "tokens": 20}, budget_nano=50_000_000),
    Case("images", "image payloads", images, frozenset({"raw"}), {"media_tokens": 1_445, "tokens": 50}, 1_000_000_000),
    Case("tools", "tool payloads", tools, frozenset({"raw"}), {"tokens": 50}, 120_000_000),
    Case("swallowed", "refusals swallowed", swallowed, uniform=True),
    Case("nested", "nested budgets", nested, frozenset({"nested"}), uniform=True),
    Case("kill", "kill -9 in mid-call, then another process", sequential, frozenset({"processes"}), exact=False, mode="kill", processes=3),
    Case("interrupts", "interrupts at random moments", interrupts, behave={"delay": 0.005}, budget_nano=8 * BUDGET_NANO, exact=False),
)
BY_NAME = {case.name: case for case in CASES}
