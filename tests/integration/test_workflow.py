"""The documented programs of a workflow: budget, tracking, checkpoint and rollback, resuming, execution records, cost analysis."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls, ledger_total
from wflo_nb import BudgetExceededError, WfloWorkflow, track_llm_call
from wflo_nb.errors import CheckpointNotFoundError, ConfigurationError, SignatureError, WfloWarning, WorkflowError
from wflo_nb.model import usd
from wflo_nb.store import current, open_store
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime
from wflo_nb.workflow.session import Session
from wflo_nb.workflow.shelf import Shelf


def chat(client: Any, model: str = "gpt-4o-mini", **extra: Any) -> Any:
    return client.chat.completions.create(model=model, messages=PROMPT, **{"max_tokens": 50, **extra})


def status(id: str | None) -> Any:
    assert id is not None
    return current().execution(id)


# -- execution --------------------------------------------------------------------------------------------------------------------------


def test_async_workflow_is_run_recorded_and_gives_its_own_result(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    wflo = WfloWorkflow(name="research", budget_usd=1.0)

    async def research(inputs: dict[str, Any]) -> dict[str, Any]:
        async with async_openai() as client:
            answer = await chat(client)
        return {"topic": inputs["topic"], "text": answer.choices[0].message.content}

    async def program() -> tuple[Any, Any]:
        result = await wflo.execute(research, {"topic": "rivers"})
        return result, await wflo.get_cost_breakdown()

    assert wflo.execution_id is None
    result, costs = asyncio.run(program())
    assert result["topic"] == "rivers"
    assert result["text"].startswith("word0")
    kept = status(wflo.execution_id)
    assert (kept.workflow, kept.status, kept.inputs, kept.outputs) == ("research", "COMPLETED", {"topic": "rivers"}, result)
    assert kept.cost_nano == provider.spent_nano > 0
    assert costs["total_usd"] == usd(provider.spent_nano)
    assert costs["remaining_usd"] == 1 - costs["total_usd"]
    assert costs["exceeded"] is False


def test_plain_workflow_runs_off_the_event_loop_and_is_charged(provider: FakeProvider, openai_client: Any) -> None:
    seen: list[bool] = []

    def work(topic: str, *, length: int) -> str:
        seen.append(threading.current_thread() is threading.main_thread())
        chat(openai_client)
        return topic * length

    wflo = WfloWorkflow("sync", budget_usd=1)
    assert asyncio.run(wflo.execute(work, {"topic": "ab", "length": 2})) == "abab"
    assert seen == [False]
    assert [row["execution_id"] for row in ledger_calls()] == [wflo.execution_id]
    assert ledger_total() == provider.spent_nano


class Called:
    def __init__(self, client: Any) -> None:
        self.client = client

    def __call__(self, inputs: Any) -> str:
        return f"{inputs}:{chat(self.client).choices[0].finish_reason}"


class AsyncCalled(Called):
    async def __call__(self, inputs: Any) -> str:  # type: ignore[override]
        return await asyncio.to_thread(super().__call__, inputs)


def test_partials_objects_lambdas_and_functions_without_inputs_are_workflows(openai_client: Any) -> None:
    async def plus(a: int, b: int) -> int:
        return a + b

    async def program() -> list[Any]:
        wflo = WfloWorkflow("kinds", budget_usd=1)
        return [
            await wflo.execute(functools.partial(plus, 1), {"b": 2}),
            await wflo.execute(Called(openai_client), "x"),
            await wflo.execute(AsyncCalled(openai_client), "y"),
            await wflo.execute(lambda: plus(2, 3)),
            await wflo.execute(len, [1, 2, 3]),
            await wflo.execute(lambda inputs: inputs, {"inputs": 1}),
            await wflo.execute(lambda state, city="LA": (state, city), {"state": "CA", "city": "SF"}),
            await wflo.execute(lambda state, city: (state, city), {"state": "CA", "city": "SF"}),
            await wflo.execute(lambda state, city: (state, city), {"state": "CA"}, city="LA"),
            await wflo.execute(lambda signature: signature, {"signature": 1}),
        ]

    whole = {"state": "CA", "city": "SF"}
    expected = [3, "x:stop", "y:stop", 5, 3, {"inputs": 1}, (whole, "LA"), ("CA", "SF"), ({"state": "CA"}, "LA"), 1]
    assert asyncio.run(program()) == expected
    assert len(ledger_calls()) == 2


def test_generators_of_both_kinds_are_streamed_through(provider: FakeProvider, openai_client: Any, async_openai: Callable[[], Any]) -> None:
    wflo = WfloWorkflow("stream", budget_usd=1)

    def plain(n: int) -> Iterator[int]:
        for i in range(n):
            chat(openai_client)
            yield i

    async def native(n: int) -> AsyncIterator[int]:
        async with async_openai() as client:
            for i in range(n):
                await chat(client)
                yield i

    async def program() -> None:
        for workflow in (plain, native):
            before, got = provider.requests, []
            async for item in await wflo.execute(workflow, {"n": 2}):
                got.append(item)
                assert provider.requests == before + len(got)  # as they come
            assert got == [0, 1]
            assert status(wflo.execution_id).status == "COMPLETED"

    asyncio.run(program())
    assert list(wflo.execute_sync(plain, {"n": 2})) == list(wflo.execute_sync(native, {"n": 2})) == [0, 1]
    assert ledger_total() == provider.spent_nano
    assert len({row["execution_id"] for row in ledger_calls()}) == 4


class HandsOut:
    """Runs by a method that is a generator, or only gives one."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run


class AdaptedGenerator:
    pass


def handing_out(openai_client: Any, async_openai: Callable[[], Any]) -> dict[str, Any]:
    """Workflows that are no generator functions, and still give items."""

    def plain() -> Iterator[int]:
        for i in range(3):
            chat(openai_client)
            yield i

    async def native() -> AsyncIterator[int]:
        async with async_openai() as client:
            for i in range(3):
                await chat(client)
                yield i

    async def gives_native() -> AsyncIterator[int]:
        return native()

    async def gives_plain() -> Iterator[int]:
        return plain()

    @wflo_nb.adapter(AdaptedGenerator)
    def adapted(*_: Any) -> Iterator[int]:
        yield from plain()

    return {
        "plain function, generator": functools.wraps(plain)(lambda: plain()),
        "plain function, async generator": lambda: native(),
        "async function, generator": gives_plain,
        "async function, async generator": gives_native,
        "method that is a generator": HandsOut(plain),
        "method that is an async generator": HandsOut(native),
        "adapter that is a generator": AdaptedGenerator(),
    }


@pytest.mark.parametrize("budget", [None, 0.000001])
@pytest.mark.parametrize("sync", [True, False])
def test_generator_that_is_only_handed_out_is_the_workflow(
    budget: float | None, sync: bool, provider: FakeProvider, openai_client: Any, async_openai: Callable[[], Any]
) -> None:
    wflo = WfloWorkflow("handed", budget_usd=budget)

    async def read(workflow: Any) -> list[int]:
        return [item async for item in await wflo.execute(workflow)]

    for workflow in handing_out(openai_client, async_openai).values():
        before, rows = provider.requests, len(ledger_calls())
        if budget is None:
            assert (list(wflo.execute_sync(workflow)) if sync else asyncio.run(read(workflow))) == [0, 1, 2]
            assert (provider.requests - before, len(ledger_calls()) - rows) == (3, 3)
            assert wflo._newest is not None
            assert status(wflo._newest.run.id).status == "COMPLETED"
        else:
            with pytest.raises(BudgetExceededError):
                list(wflo.execute_sync(workflow)) if sync else asyncio.run(read(workflow))
            assert provider.requests == before
    assert runtime()._installed == 0


def test_generator_that_is_handed_out_and_never_read_is_not_left_running(
    openai_client: Any, async_openai: Callable[[], Any], provider: FakeProvider
) -> None:
    wflo = WfloWorkflow("unread", budget_usd=1)
    for workflow in handing_out(openai_client, async_openai).values():
        wflo.execute_sync(workflow)
        asyncio.run(wflo.execute(workflow))
    assert set(current().read("executions")["status"]) == {"FAILED"}
    assert (provider.requests, runtime()._installed) == (0, 0)


def test_what_the_reader_of_a_stream_calls_in_between_is_not_the_workflows(openai_client: Any) -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2

    wflo = WfloWorkflow("stream", budget_usd=1)
    for _ in wflo.execute_sync(items):
        chat(openai_client)
    assert ledger_calls() == []


def test_stream_that_is_closed_early_ends_failed_with_what_it_gave(openai_client: Any) -> None:
    def items() -> Iterator[str]:
        yield from ("first", "second", "third")

    async def program() -> WfloWorkflow:
        wflo = WfloWorkflow("stream")
        stream = await wflo.execute(items)
        assert await anext(stream) == "first"
        await stream.aclose()
        return wflo

    kept = status(asyncio.run(program()).execution_id)
    assert (kept.status, kept.error["type"], kept.outputs) == ("FAILED", "GeneratorExit", {"partial": "first"})


def test_execute_sync_works_inside_a_running_loop_and_outside(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    async def work(inputs: Any) -> Any:
        async with async_openai() as client:
            await chat(client)
        return inputs

    wflo = WfloWorkflow("cell", budget_usd=1)
    assert wflo.execute_sync(work, 1) == 1

    async def cell() -> Any:  # as a cell of a notebook, which runs in a loop
        return wflo.execute_sync(work, 2), wflo.execution_id, wflo.list_checkpoints()

    assert asyncio.run(cell())[0] == 2
    assert ledger_total() == provider.spent_nano
    assert provider.requests == 2


def test_concurrent_executions_of_one_object_keep_their_ids_and_costs(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    wflo = WfloWorkflow("many", budget_usd=1)

    async def work(n: int) -> tuple[str | None, Decimal]:
        async with async_openai() as client:
            for _ in range(n):
                await chat(client)
            await wflo.checkpoint("n", n)
            assert await wflo.rollback_to_checkpoint("n") == n
            return wflo.execution_id, (await wflo.get_cost_breakdown())["total_usd"]

    async def one(n: int) -> tuple[Any, Any, Any]:
        inside, cost = await wflo.execute(work, {"n": n})
        return inside, wflo.execution_id, cost

    async def program() -> list[tuple[Any, Any, Any]]:
        return await asyncio.gather(*(one(n) for n in (1, 2, 3)))

    found = asyncio.run(program())
    assert [inside for inside, _, _ in found] == [after for _, after, _ in found]
    assert len({inside for inside, _, _ in found}) == 3
    unit = usd(provider.bill[0].nano_usd)
    assert [cost for _, _, cost in found] == [unit, 2 * unit, 3 * unit]
    assert sorted(one.version for one in wflo.list_checkpoints()) == [1, 2, 3]


@pytest.mark.parametrize("fails", [False, True])
def test_object_that_is_executed_inside_itself_tells_of_the_outermost_in_the_end(
    fails: bool, provider: FakeProvider, openai_client: Any
) -> None:
    wflo, told = WfloWorkflow("self", budget_usd=1), {}

    async def nested(depth: int) -> None:
        told[depth] = wflo.execution_id
        chat(openai_client)
        if depth:
            await wflo.execute(nested, {"depth": depth - 1})
        assert wflo.execution_id == told[depth]
        if fails and depth == 2:
            raise KeyError

    def plain(depth: int) -> Iterator[int]:
        told[depth] = wflo.execution_id
        chat(openai_client)
        if depth:
            yield from wflo.execute_sync(plain, {"depth": depth - 1})
        yield depth
        if fails and depth == 2:
            raise KeyError

    async def program() -> Any:
        with contextlib.suppress(KeyError):
            await wflo.execute(nested, {"depth": 2})
        return wflo.execution_id, await wflo.get_cost_breakdown()

    id, costs = asyncio.run(program())
    assert (id, costs["total_usd"]) == (told[2], usd(provider.spent_nano))
    with contextlib.suppress(KeyError):
        list(wflo.execute_sync(plain, {"depth": 2}))
    assert wflo.execution_id == told[2]


def test_trace_id_is_that_of_the_execution_and_absent_without_observability() -> None:
    wflo, blind = WfloWorkflow("traced"), WfloWorkflow("blind", enable_observability=False)
    assert wflo.get_trace_id() is None
    wflo.execute_sync(lambda: 1)
    first = wflo.get_trace_id()
    assert first is not None
    assert len(first) == 32
    assert int(first, 16)
    wflo.execute_sync(lambda: 1)
    assert wflo.get_trace_id() != first
    blind.execute_sync(lambda: 1)
    assert blind.get_trace_id() is None


def test_failed_execution_keeps_its_error_and_partial_result(openai_client: Any) -> None:
    wflo = WfloWorkflow("broken")

    @wflo_nb.checkpoint
    def draft() -> dict[str, str]:
        return {"text": "half"}

    def work() -> None:
        draft()
        raise ValueError("no key sk-" + "a1B2" * 10)

    with pytest.raises(ValueError, match="no key"):
        wflo.execute_sync(work)
    kept = status(wflo.execution_id)
    assert (kept.status, kept.error) == ("FAILED", {"type": "ValueError", "message": "no key [secret]"})
    assert kept.outputs == {"partial": {"text": "half"}}


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_error_that_cannot_be_told_comes_out_itself_and_ends_the_execution() -> None:
    wflo = WfloWorkflow("wordless", per_agent_budgets={"writer": 1})

    async def fail() -> None:
        with wflo_nb.step("writer"):
            raise Wordless

    with pytest.raises(Wordless):
        asyncio.run(wflo.execute(fail))
    with pytest.raises(Wordless), wflo_nb.execution("block", budget_usd=1):
        raise Wordless
    told = {"type": "Wordless", "message": "It cannot be told: its str raises RuntimeError."}
    ended = [status(id) for id in current().read("executions")["id"]]
    assert [(one.status, one.error) for one in ended] == [("FAILED", told)] * 2
    assert runtime()._installed == 0


def test_stop_iteration_of_a_plain_function_comes_out_as_in_a_generator() -> None:
    wflo = WfloWorkflow("empty")

    async def program() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(wflo.execute(lambda: next(iter([]))), 10)
        kept = status(wflo.execution_id)
        assert (kept.status, kept.error["type"]) == ("FAILED", "RuntimeError")

    asyncio.run(program())


def test_cancelled_execution_ends_failed_with_the_reason() -> None:
    wflo = WfloWorkflow("slow")

    async def program() -> None:
        started = asyncio.Event()

        async def work() -> None:
            started.set()
            await asyncio.sleep(60)

        task = asyncio.create_task(wflo.execute(work))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(program())
    kept = status(wflo._newest.run.id if wflo._newest else None)
    assert (kept.status, kept.error) == ("FAILED", {"type": "CancelledError", "message": "The task that ran it was cancelled."})


@pytest.mark.parametrize("ends", [asyncio.CancelledError, TimeoutError])
def test_plain_generator_that_is_cancelled_in_a_piece_is_closed_after_it(ends: type[BaseException]) -> None:
    wflo, go, closed = WfloWorkflow("slow"), threading.Event(), threading.Event()

    async def program() -> None:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def items() -> Iterator[int]:
            try:
                yield 1
                loop.call_soon_threadsafe(started.set)
                go.wait(20)
                yield 2
            finally:
                closed.set()

        async def read() -> None:
            async with asyncio.timeout(0.3 if ends is TimeoutError else None):
                async for _ in await wflo.execute(items):
                    pass

        task = asyncio.create_task(read())
        await started.wait()
        if ends is asyncio.CancelledError:
            task.cancel()
        with pytest.raises(ends):
            await task
        assert not closed.is_set()  # nobody waited for the thread
        go.set()

    asyncio.run(program())
    assert closed.wait(10)
    assert wflo._newest is not None
    kept = status(wflo._newest.run.id)
    assert (kept.status, kept.error["type"]) == ("FAILED", "CancelledError")


KILLED = """
import os, signal, sys, wflo_nb
wflo = wflo_nb.WfloWorkflow("killed", store=sys.argv[1])
def work():
    print(wflo.execution_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
wflo.execute_sync(work)
"""


def test_execution_of_a_killed_process_is_failed_when_the_store_is_opened_again(tmp_path: Any) -> None:
    place = str(tmp_path / "ledger.db")
    done = subprocess.run([sys.executable, "-c", KILLED, place], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = open_store(place)
    kept = store.execution(done.stdout.strip())
    store.close()
    assert (kept.status, kept.error["type"]) == ("FAILED", "ProcessEnded")  # type: ignore[index]


def test_keys_that_stand_as_names_are_masked_and_what_stands_under_them_is_kept() -> None:
    first, second = (f"sk-proj-{letter * 40}" for letter in "ab")
    wflo = WfloWorkflow("by key")
    wflo.execute_sync(lambda quotas: None, {"quotas": {first: 1, second: {"rpm": 2}, "[secret]": 3, "plain": 4}})
    recorded = current().execution(wflo.execution_id or "")
    assert recorded.inputs == {"quotas": {"[secret]": 1, "[secret] 2": {"rpm": 2}, "[secret] 3": 3, "plain": 4}}


def test_inputs_that_are_not_json_are_previewed_masked_and_kept_as_a_snapshot() -> None:
    wflo = WfloWorkflow("inputs")
    given = {"when": datetime.datetime(2026, 1, 2), "api_key": "of no special shape", "note": "plain sk-" + "c3D4" * 10}
    wflo.execute_sync(lambda inputs: {1, 2}, given)
    kept = status(wflo.execution_id)
    assert kept.inputs["preview"]["note"] == "plain [secret]"
    assert kept.inputs["preview"]["api_key"] == "[secret]"
    assert kept.inputs["preview"]["when"] == {"type": "datetime.datetime", "preview": "datetime.datetime(2026, 1, 2, 0, 0)"}
    assert kept.outputs["preview"] == {"type": "set", "preview": "{1, 2}"}
    assert kept.inputs["snapshot"].startswith("snap-")
    from wflo_nb.snapshot.engine import SnapshotEngine

    engine = SnapshotEngine(current(), {}, scope="workflow:inputs:values")
    assert engine.values(kept.outputs["snapshot"])["state"] == {1, 2}
    assert engine.values(kept.inputs["snapshot"])["state"]["when"] == given["when"]
    assert given["api_key"].encode() not in (current().snapshot("workflow:inputs:values", kept.inputs["snapshot"]).manifest)
    assert wflo.list_checkpoints() == []


class Unsayable(str):
    def __len__(self) -> int:
        raise RuntimeError("no length")


@pytest.mark.parametrize("value", [10**5000, {"deep": [10**5000]}, Unsayable("x")], ids=["a number", "inside", "a text"])
def test_what_cannot_be_told_is_given_and_taken_all_the_same(value: Any) -> None:
    wflo = WfloWorkflow("unsayable")
    assert wflo.execute_sync(lambda given: given, value) is value

    def fails(given: Any) -> Iterator[Any]:
        yield given
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        list(wflo.execute_sync(fails, value))
    done, failed = current().read("executions")["status"]
    assert (done, failed) == ("COMPLETED", "FAILED")


def test_what_is_no_workflow_is_refused_in_words_before_anything_is_entered() -> None:
    with pytest.raises(ConfigurationError, match=r"A builtins.int cannot be run as a workflow.*@wflo_nb.adapter"):
        WfloWorkflow("x").execute_sync(3)
    assert current().read("executions")["id"] == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"budget_usd": -1}, "budget_usd=-1"),
        ({"per_agent_budgets": {"a": "lots"}}, r"per_agent_budgets\['a'\]=lots"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"name": ""}, "needs a name"),
    ],
)
def test_wrong_arguments_are_told_at_once(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        WfloWorkflow(**{"name": "w", **wrong})


class MyFlow:
    def begin(self, inputs: str) -> str:
        return inputs.upper()


def test_adapter_says_how_a_class_of_ones_own_is_run(openai_client: Any) -> None:
    @wflo_nb.adapter(MyFlow)
    def run(flow: MyFlow, inputs: Any, session: Any, *, again: int = 1) -> str:
        with session.step("begin"):
            chat(openai_client)
            found = flow.begin(inputs) * again
        session.save("begun", found)
        return found

    class Derived(MyFlow):
        pass

    wflo = WfloWorkflow("mine", budget_usd=1)
    assert asyncio.run(wflo.execute(Derived(), "ab", again=2)) == "ABAB"
    assert [row["step"] for row in ledger_calls()] == ["begin"]
    assert asyncio.run(wflo.rollback_to_last_checkpoint()) == "ABAB"


def test_objects_with_a_run_method_are_run() -> None:
    class Plain:
        def run(self, inputs: int) -> int:
            return inputs + 1

    class Native:
        async def ainvoke(self, inputs: int, plus: int = 0) -> int:
            return inputs + plus

    class Silent:
        def run(self) -> int:
            return 7

    async def program() -> tuple[int, int, int]:
        wflo = WfloWorkflow("run")
        return await wflo.execute(Plain(), 1), await wflo.execute(Native(), 1, plus=4), await wflo.execute(Silent())

    assert asyncio.run(program()) == (2, 5, 7)


def test_documented_program_records_its_true_cost(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    """A tracked call of an async OpenAI client in an async workflow, the first program that anybody writes."""

    @track_llm_call(model="gpt-4o")
    async def ask(client: Any, prompt: str) -> str:
        response = await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": prompt}], max_tokens=50)
        return str(response.choices[0].message.content)

    async def workflow(inputs: dict[str, str]) -> dict[str, str]:
        async with async_openai() as client:
            outline = await ask(client, f"Outline: {inputs['topic']}")
            return {"outline": outline, "text": await ask(client, f"Write: {outline}")}

    async def program() -> str:
        wflo = WfloWorkflow(name="content", budget_usd=10.00)
        try:
            await wflo.execute(workflow, {"topic": "rivers"})
        except BudgetExceededError as e:
            return f"spent ${e.spent_usd:.2f} of ${e.budget_usd:.2f}"
        breakdown = await wflo.get_cost_breakdown()
        return f"{breakdown['total_usd']:.6f} of {breakdown['budget_usd']:.2f}, {breakdown['remaining_usd']:.6f} left"

    said = asyncio.run(program())
    assert provider.spent_nano > 0
    assert said == f"{usd(provider.spent_nano):.6f} of 10.00, {10 - usd(provider.spent_nano):.6f} left"
    assert [row["step"] for row in ledger_calls()] == ["ask", "ask"]


def test_workflow_on_postgresql_has_its_costs_checkpoints_and_versions(
    provider: FakeProvider, async_openai: Callable[[], Any], postgres_url: str
) -> None:
    wflo = WfloWorkflow("team", budget_usd=1, store=postgres_url, per_agent_budgets={"writer": "0.5"})

    @wflo_nb.checkpoint
    async def write(n: int) -> int:
        async with async_openai() as client:
            await chat(client)
        return n

    async def work() -> list[int]:
        with wflo_nb.step("writer"):
            return list(await asyncio.gather(*(write(n) for n in range(6))))

    async def program() -> Any:
        assert await wflo.execute(work) == list(range(6))
        first = await wflo.get_cost_breakdown()
        assert await wflo.resume("write", 6) == list(range(6))
        return first

    costs = asyncio.run(program())
    assert costs["total_usd"] == usd(provider.spent_nano)
    assert costs["by_step"] == {"write": usd(provider.spent_nano)}
    assert provider.requests == 6
    assert sorted(one.version for one in wflo.list_checkpoints())[:6] == [1, 2, 3, 4, 5, 6]
    wflo._place().close()


# -- budgets ----------------------------------------------------------------------------------------------------------------------------


def test_budget_stops_a_workflow_that_swallows_everything(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    wflo = WfloWorkflow("greedy", budget_usd="0.0002")

    async def greedy() -> str:
        async with async_openai() as client:
            for _ in range(20):
                with contextlib.suppress(Exception):
                    await chat(client)
        return "fine"

    async def program() -> Any:
        with pytest.raises(BudgetExceededError) as caught:
            await wflo.execute(greedy)
        return caught.value, await wflo.get_cost_breakdown()

    error, costs = asyncio.run(program())
    assert 0 < provider.requests < 20
    assert provider.spent_nano <= 200_000
    assert error.budget_usd == Decimal("0.0002")
    assert error.partial[0].text.startswith("word0")
    assert costs["total_usd"] == usd(provider.spent_nano)
    assert costs["exceeded"] is True
    assert costs["refused"] == 20 - provider.requests
    kept = status(wflo.execution_id)
    assert (kept.status, kept.error["type"]) == ("FAILED", "BudgetExceededError")


def test_workflow_spends_the_budget_around_it(provider: FakeProvider, openai_client: Any) -> None:
    wflo = WfloWorkflow("inner", budget_usd=1)
    with pytest.raises(BudgetExceededError) as caught, wflo_nb.execution("outer", budget_usd="0.0001"):
        wflo.execute_sync(lambda: [chat(openai_client) for _ in range(9)])
    assert caught.value.budget_usd == Decimal("0.0001")
    assert provider.requests < 9


def test_agents_have_budgets_of_their_own_by_step(provider: FakeProvider, openai_client: Any) -> None:
    wflo = WfloWorkflow("team", budget_usd=1, per_agent_budgets={"researcher": "0.0001", "writer": "0.5"})

    def work() -> str:
        with pytest.raises(BudgetExceededError) as caught, wflo_nb.step("researcher"):
            for _ in range(9):
                with wflo_nb.step("search"):  # a step inside it
                    chat(openai_client)
        assert caught.value.scope == 'step "researcher"'
        with wflo_nb.step("writer"):
            chat(openai_client)
        with pytest.raises(BudgetExceededError), wflo_nb.step("researcher"):
            chat(openai_client)
        return "done"

    assert wflo.execute_sync(work) == "done"
    costs = asyncio.run(wflo.get_cost_breakdown())
    assert costs["total_usd"] == usd(provider.spent_nano) == sum(costs["by_step"].values())
    assert costs["by_step"]["search"] <= Decimal("0.0001")
    assert costs["by_step"]["writer"] > 0
    assert provider.requests < 9
    assert wflo.execution_id
    assert set(current().read("executions")["status"]) == {"COMPLETED", "FAILED"}


def test_step_around_several_items_of_a_generator_keeps_its_name_and_its_budget(
    provider: FakeProvider, openai_client: Any, async_openai: Callable[[], Any]
) -> None:
    def plain(n: int) -> Iterator[int]:
        with wflo_nb.step("writer"):
            for i in range(n):
                chat(openai_client)
                yield i

    async def native(n: int) -> AsyncIterator[int]:
        async with async_openai() as client, wflo_nb.step("writer"):
            for i in range(n):
                await chat(client)
                yield i

    async def read(wflo: WfloWorkflow, n: int) -> None:
        async for _ in await wflo.execute(plain, {"n": n}):
            pass

    capped = WfloWorkflow("capped", budget_usd=1, per_agent_budgets={"writer": 0.0002})
    for run in (lambda n: asyncio.run(read(capped, n)), lambda n: list(capped.execute_sync(native, {"n": n}))):
        run(2)
        before = provider.requests
        with pytest.raises(BudgetExceededError, match='step "writer"'):
            run(20)
        assert provider.requests - before < 20
    assert {row["step"] for row in ledger_calls()} == {"writer"}


def test_budget_of_an_agent_counts_for_its_threads_and_nested_executions(provider: FakeProvider, openai_client: Any) -> None:
    wflo = WfloWorkflow("team", budget_usd=1, per_agent_budgets={"researcher": "0.0001"})

    def hard() -> None:
        with contextlib.suppress(BudgetExceededError), wflo_nb.execution("nested", budget_usd=1):
            for _ in range(5):
                with contextlib.suppress(BudgetExceededError):
                    chat(openai_client)

    def work() -> None:
        with wflo_nb.step("researcher"), ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(hard) for _ in range(2)]:
                future.result()
            thread = threading.Thread(target=hard)
            thread.start()
            thread.join()

    with pytest.raises(BudgetExceededError, match='step "researcher"'):
        wflo.execute_sync(work)
    assert 0 < provider.spent_nano <= 100_000
    assert all(row["step"] == "researcher" for row in ledger_calls())


def test_refusal_of_an_agent_that_its_step_never_showed_comes_out_at_the_edge(openai_client: Any) -> None:
    wflo = WfloWorkflow("team", budget_usd=1, per_agent_budgets={"researcher": 0})

    def work() -> str:
        def late() -> None:
            done.wait(10)
            with contextlib.suppress(BudgetExceededError):
                chat(openai_client)

        done = threading.Event()
        with wflo_nb.step("researcher"):
            thread = threading.Thread(target=late)
            thread.start()
        done.set()  # its step is over already
        thread.join()
        return "fine"

    with pytest.raises(BudgetExceededError, match='step "researcher"'):
        wflo.execute_sync(work)
    kept = status(wflo.execution_id)
    assert (kept.status, kept.error["type"], kept.outputs) == ("FAILED", "BudgetExceededError", "fine")


def test_refusal_of_an_agent_that_was_swallowed_comes_out_at_the_end_of_its_step(openai_client: Any) -> None:
    wflo = WfloWorkflow("team", budget_usd=1, per_agent_budgets={"researcher": 0})

    async def work() -> str:
        try:
            async with wflo_nb.step("researcher"):
                with contextlib.suppress(Exception):
                    await asyncio.to_thread(chat, openai_client)
        except BudgetExceededError:
            return "told"
        return "never told"

    assert asyncio.run(wflo.execute(work)) == "told"
    assert ledger_total() == 0


def test_iterations_are_limited_and_nothing_is_sent_after_the_last(provider: FakeProvider, openai_client: Any) -> None:
    wflo = WfloWorkflow("loop", budget_usd=1, max_iterations=3)

    def forever() -> None:
        while True:
            try:
                with wflo_nb.step("think"):
                    chat(openai_client)
            except WorkflowError:
                with contextlib.suppress(Exception):
                    chat(openai_client)  # it does not give up
                return

    with pytest.raises(WorkflowError, match=r"'loop' was stopped at 'think': its max_iterations=3 are used up"):
        wflo.execute_sync(forever)
    assert provider.requests == 3
    assert status(wflo.execution_id).error["type"] == "WorkflowError"


def test_error_after_the_last_iteration_is_the_workflows_own() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        list(WfloWorkflow("items", max_iterations=1).execute_sync(items))


def test_limit_that_was_swallowed_comes_out_at_the_edge() -> None:
    def work() -> str:
        for _ in range(3):
            with contextlib.suppress(Exception), wflo_nb.step("again"):
                pass
        return "fine"

    with pytest.raises(WorkflowError, match="max_iterations=2"):
        WfloWorkflow("swallow", max_iterations=2).execute_sync(work)


def test_workflow_that_is_cancelled_before_it_has_begun_is_not_left_running() -> None:
    wflo = WfloWorkflow("early", budget_usd=1)

    async def program() -> None:
        for _ in range(3):
            task = asyncio.create_task(wflo.execute(asyncio.sleep, 60))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(program())  # waits for threads at its end
    assert set(current().read("executions")["status"]) <= {"FAILED"}
    assert runtime()._installed == 0


async def _talk() -> AsyncIterator[Any]:
    """Says what it is told."""
    said: Any = "first"
    while said != "end":
        try:
            said = yield said
        except KeyError as error:
            said = f"caught {error}"


def test_what_is_sent_and_thrown_into_a_stream_reaches_the_workflow() -> None:
    def plain() -> Iterator[Any]:
        said: Any = "first"
        while said != "end":
            try:
                said = yield said
            except KeyError as error:
                said = f"caught {error}"

    async def program() -> None:
        for workflow in (plain, _talk):
            stream = await wflo.execute(workflow)
            got = [await anext(stream), await stream.asend("a"), await stream.athrow(KeyError(1)), await anext(stream)]
            assert got == ["first", "a", "caught 1", None]
            with pytest.raises(StopAsyncIteration):
                await stream.asend("end")

    wflo = WfloWorkflow("talk")
    asyncio.run(program())
    for workflow in (plain, _talk):
        stream = wflo.execute_sync(workflow)
        assert [next(stream), stream.send("a"), stream.throw(KeyError(1)), next(stream)] == ["first", "a", "caught 1", None]
        with pytest.raises(StopIteration):
            stream.send("end")
    assert list(current().read("executions")["status"]) == ["COMPLETED"] * 4
    assert runtime()._installed == 0


def test_generator_that_is_stopped_at_its_last_item_is_closed_before_that_is_told() -> None:
    closed: list[str] = []

    def plain() -> Iterator[int]:
        try:
            yield from range(9)
        finally:
            closed.append("plain")

    async def native() -> AsyncIterator[int]:
        try:
            for item in range(9):
                yield item
        finally:
            closed.append("native")

    async def program() -> None:
        for workflow in (plain, native):
            with pytest.raises(WorkflowError, match="max_iterations=2") as caught:
                async for _ in await wflo.execute(workflow):
                    pass
            assert closed.pop() == workflow.__name__, caught

    wflo = WfloWorkflow("stopped", max_iterations=2)
    asyncio.run(program())
    for workflow in (plain, native):
        with pytest.raises(WorkflowError, match="max_iterations=2") as caught:
            list(wflo.execute_sync(workflow))
        assert closed.pop() == workflow.__name__, caught


@pytest.mark.parametrize(
    "decorated", [wflo_nb.step("talk"), wflo_nb.checkpoint, track_llm_call], ids=["step", "checkpoint", "track_llm_call"]
)
def test_what_is_sent_and_thrown_into_a_decorated_stream_reaches_the_function(decorated: Any) -> None:
    async def program() -> None:
        stream: Any = decorated(_talk)()
        got = [await anext(stream), await stream.asend("a"), await stream.athrow(KeyError(1)), await anext(stream)]
        assert got == ["first", "a", "caught 1", None]
        with pytest.raises(StopAsyncIteration):
            await stream.asend("end")

    with wflo_nb.execution():
        asyncio.run(program())


def test_task_that_an_async_workflow_leaves_is_cancelled_in_a_running_loop_too() -> None:
    ended: list[str] = []

    async def leaves_one() -> None:
        async def background() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("cleaned up")

        task = asyncio.create_task(background())
        await asyncio.sleep(0)
        assert not task.done()

    async def program() -> None:
        WfloWorkflow("leaves one").execute_sync(leaves_one)

    asyncio.run(program())
    assert ended == ["cleaned up"]


def test_stream_that_is_still_open_when_the_process_ends_does_not_keep_it(tmp_path: Any) -> None:
    program = """
import sys, wflo_nb
async def talk():
    try:
        yield 1
        yield 2
    finally:
        print("closed")
stream = wflo_nb.WfloWorkflow("talk", store=sys.argv[1]).execute_sync(talk)
print(next(stream))
"""
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path / "s.db")], capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "1\nclosed\n", "")
    store = open_store(tmp_path / "s.db")
    (error,) = store.read("executions")["error"]
    assert "GeneratorExit" in str(error)
    store.close()


def test_workflow_does_not_wait_for_the_threads_of_the_users_loop() -> None:
    @wflo_nb.checkpoint
    async def step() -> int:
        return 1

    async def work() -> int:
        gone_on = threading.Event()
        threads = [asyncio.create_task(asyncio.to_thread(gone_on.wait, 20)) for _ in range(40)]  # more than the loop has
        await asyncio.sleep(0.1)
        answer = await step()
        async with wflo_nb.execution():
            gone_on.set()
        assert all(await asyncio.gather(*threads))
        return int(answer)

    assert asyncio.run(WfloWorkflow("busy").execute(work)) == 1


def test_iterations_of_a_generator_are_its_items(provider: FakeProvider, openai_client: Any) -> None:
    wflo = WfloWorkflow("items", max_iterations=2)

    def items(n: int) -> Iterator[Any]:
        for i in range(n):
            chat(openai_client)
            yield i

    assert list(wflo.execute_sync(items, {"n": 2})) == [0, 1]
    with pytest.raises(WorkflowError, match="max_iterations=2"):
        list(wflo.execute_sync(items, {"n": 3}))
    assert provider.requests == 4


def test_costs_are_split_by_model_step_and_token_class_to_the_last_digit(
    provider: FakeProvider, openai_client: Any, anthropic_client: Any
) -> None:
    wflo = WfloWorkflow("analysis", budget_usd=5)
    provider.behave(cache_read=100, reasoning=4)

    def work() -> None:
        with wflo_nb.step("a"):
            chat(openai_client)
            chat(openai_client, "gpt-4o")
        with wflo_nb.step("b"):
            anthropic_client.messages.create(model="claude-sonnet-4-5", max_tokens=30, messages=PROMPT)
        provider.behave(status=500, billed=True)
        with contextlib.suppress(Exception):
            openai_client.with_options(max_retries=0).chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=5)

    wflo.execute_sync(work)
    costs = asyncio.run(wflo.get_cost_breakdown())
    total = usd(ledger_total())
    assert costs["total_usd"] == total
    assert costs["budget_usd"] == 5
    assert sum(costs["by_model"].values()) == sum(costs["by_step"].values()) == total
    assert sum(one["usd"] for one in costs["by_token_class"].values()) == total
    first, second, third = (line.usage for line in provider.bill[:3])
    tokens = costs["by_token_class"]
    assert tokens["output"]["tokens"] == first.output_tokens + second.output_tokens + third.output_tokens
    assert tokens["cache_read"]["tokens"] == 300
    assert costs["unconfirmed_usd"] == costs["by_step"][""]
    assert abs(tokens["other"]["usd"] - costs["unconfirmed_usd"]) < Decimal("0.00000001")
    assert costs["by_step"]["b"] == usd(provider.bill[2].nano_usd)


def test_costs_of_a_model_without_a_price_are_no_zero(openai_client: Any) -> None:
    def work() -> None:
        chat(openai_client)
        with wflo_nb.step("unpriced"):
            chat(openai_client, "a-model-that-nobody-knows")

    wflo = WfloWorkflow("unpriced", unknown_models="allow", budget_usd=1)
    wflo.execute_sync(work)
    costs = asyncio.run(wflo.get_cost_breakdown())
    assert (costs["calls"], costs["unpriced"]) == (2, 1)
    assert list(costs["by_model"]) == ["gpt-4o-mini"]
    assert list(costs["by_step"]) == [""]
    assert sum(costs["by_model"].values()) == costs["total_usd"] > 0


def test_costs_before_anything_ran_are_no_zero() -> None:
    with pytest.raises(WorkflowError, match="Nothing was executed"):
        asyncio.run(WfloWorkflow("none").get_cost_breakdown())


def test_report_of_costs_by_step(provider: FakeProvider, openai_client: Any) -> None:
    @wflo_nb.step("tool")
    def tool() -> None:
        chat(openai_client)

    with wflo_nb.execution("plain"):
        with wflo_nb.step("agent"):
            chat(openai_client)
            tool()
        chat(openai_client)
    for by in ("step", "node"):
        frame = wflo_nb.report.costs(by=by)
        assert dict(zip(frame[by].fillna("-"), frame["calls"], strict=True)) == {"agent": 1, "tool": 1, "-": 1}
        assert frame["cost_nano"].sum() == provider.spent_nano


def test_one_step_may_be_entered_by_tasks_that_leave_it_in_any_order(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    shared = wflo_nb.step("shared")

    async def agent(name: str, begin: float, end: float) -> None:
        with wflo_nb.step(name):
            await asyncio.sleep(begin)
            async with shared:
                await asyncio.sleep(end - begin)
            async with async_openai() as client:
                await chat(client, max_tokens={"first": 10, "second": 20}[name])

    async def work() -> None:
        await asyncio.gather(agent("first", 0, 0.1), agent("second", 0.05, 0.2))

    wflo = WfloWorkflow("shared", budget_usd=1, per_agent_budgets={"first": 0.5, "second": 0.5})
    asyncio.run(wflo.execute(work))
    assert sorted((row["step"], row["output_tokens"]) for row in ledger_calls()) == [("first", 10), ("second", 20)]


def test_steps_may_be_agents_tasks_and_tools_also_in_threads(provider: FakeProvider, openai_client: Any) -> None:
    @wflo_nb.step("search", kind="tool")
    def search() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(chat, openai_client).result()
        thread = threading.Thread(target=chat, args=(openai_client,))
        thread.start()
        thread.join()

    with wflo_nb.execution("plain"):
        with wflo_nb.step("researcher", kind="agent"), wflo_nb.step("dig", kind="task"):
            chat(openai_client)
            search()
        with wflo_nb.step("helper"):
            search()
        search()
    found = wflo_nb.report.calls()[["step", "agent", "task", "tool"]].astype(object).fillna("-").to_numpy().tolist()
    assert found == [
        ["dig", "researcher", "dig", "-"],
        *[["search", "researcher", "dig", "search"]] * 2,
        *[["search", "helper", "-", "search"]] * 2,
        *[["search", "-", "-", "search"]] * 2,
    ]
    with pytest.raises(ConfigurationError, match="kind='agents' is no kind of step"):
        wflo_nb.step("x", kind="agents")


# -- checkpoints ------------------------------------------------------------------------------------------------------------------------


def test_checkpoints_have_versions_and_states_come_back_as_they_were() -> None:
    wflo = WfloWorkflow("states")

    async def program() -> None:
        state: dict[str, Any] = {"when": datetime.datetime(2026, 1, 2), "seen": {1, 2}, "rows": [1]}
        first = await wflo.checkpoint("draft", state)
        state["rows"].append(2)
        await wflo.checkpoint("draft", state)
        await wflo.checkpoint("final", "text")
        assert (first.name, first.version) == ("draft", 1)
        assert [(one.name, one.version) for one in wflo.list_checkpoints()] == [("draft", 1), ("draft", 2), ("final", 1)]
        assert (await wflo.rollback_to_checkpoint("draft"))["rows"] == [1, 2]
        old = await wflo.rollback_to_checkpoint("draft", version=1)
        assert old == {"when": datetime.datetime(2026, 1, 2), "seen": {1, 2}, "rows": [1]}
        assert await wflo.rollback_to_last_checkpoint() == "text"
        with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint 'draf'. There are: 'draft', 'final'"):
            await wflo.rollback_to_checkpoint("draf")
        with pytest.raises(CheckpointNotFoundError, match="has no version 7, only 1 to 2"):
            await wflo.rollback_to_checkpoint("draft", version=7)

    asyncio.run(program())
    assert len(WfloWorkflow("states").list_checkpoints()) == 3  # another object, as another process
    assert WfloWorkflow("others").list_checkpoints() == []


def test_versions_of_one_name_do_not_race() -> None:
    wflo = WfloWorkflow("race")

    async def program() -> list[Any]:
        return await asyncio.gather(*(wflo.checkpoint("same", n) for n in range(12)))

    taken = asyncio.run(program())
    assert sorted(one.version for one in taken) == list(range(1, 13))

    async def states() -> list[Any]:
        return [await wflo.rollback_to_checkpoint("same", version=one.version) for one in taken]

    assert asyncio.run(states()) == list(range(12))


def test_checkpoint_keeps_the_output_and_not_the_input(openai_client: Any) -> None:
    @wflo_nb.checkpoint
    def grow(items: list[int]) -> list[int]:
        return [*items, 9]

    class Steps:
        @wflo_nb.checkpoint(name="method")
        async def work(self, n: int) -> dict[str, Any]:
            return {"n": n, "when": datetime.datetime(2026, 3, 4)}

        @wflo_nb.checkpoint("items")
        def give(self, n: int) -> Iterator[int]:
            yield from range(n)

    async def work() -> list[Any]:
        return [grow([1]), await Steps().work(3), list(Steps().give(2))]

    async def program() -> None:
        wflo = WfloWorkflow("outputs")
        assert await wflo.execute(work) == [[1, 9], {"n": 3, "when": datetime.datetime(2026, 3, 4)}, [0, 1]]
        assert [one.name for one in wflo.list_checkpoints()] == ["grow", "method", "items"]
        assert await wflo.rollback_to_checkpoint("grow") == [1, 9]
        assert await wflo.rollback_to_checkpoint("method") == {"n": 3, "when": datetime.datetime(2026, 3, 4)}
        assert await wflo.rollback_to_last_checkpoint() == [0, 1]

    asyncio.run(program())
    assert grow([2]) == [2, 9]  # outside of a workflow it is the function it was


def test_step_whose_state_cannot_be_kept_is_paid_and_gives_its_answer(provider: FakeProvider, openai_client: Any) -> None:
    class Stubborn:
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise RuntimeError("no copies")

    @wflo_nb.checkpoint
    def step() -> Any:
        chat(openai_client)
        return {"lock": threading.Lock(), "odd": Stubborn()}

    wflo = WfloWorkflow("odd", budget_usd=1)
    answer = wflo.execute_sync(step)
    assert isinstance(answer["odd"], Stubborn)
    assert status(wflo.execution_id).status == "COMPLETED"
    assert ledger_total() == provider.spent_nano > 0


def test_last_state_of_an_execution_does_not_stay_in_memory() -> None:
    @wflo_nb.checkpoint
    async def big() -> bytes:
        return bytes(100_000)

    async def work() -> int:
        return len(await big())

    wflo = WfloWorkflow("big")
    gc.collect()
    before = sum(isinstance(one, Session) for one in gc.get_objects())
    for _ in range(5):
        asyncio.run(wflo.execute(work))
    gc.collect()
    assert sum(isinstance(one, Session) for one in gc.get_objects()) <= before + 1  # the newest, which the workflow tells about


def test_failing_store_of_checkpoints_is_told_and_harms_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    @wflo_nb.checkpoint
    def step() -> int:
        return 5

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise OSError("disk full")

    wflo = WfloWorkflow("full")
    monkeypatch.setattr("wflo_nb.snapshot.engine.SnapshotEngine.take", broken)
    with pytest.warns(WfloWarning, match=r"No checkpoint 'step' was taken \(OSError: disk full\)"):
        assert wflo.execute_sync(step) == 5
    with pytest.raises(OSError, match="disk full"):
        asyncio.run(wflo.checkpoint("by hand", 1))


def test_checkpoints_can_be_switched_off() -> None:
    @wflo_nb.checkpoint
    def step() -> int:
        return 5

    wflo = WfloWorkflow("off", enable_checkpointing=False)
    assert wflo.execute_sync(step) == 5
    assert wflo.list_checkpoints() == []
    with pytest.raises(WorkflowError, match="enable_checkpointing=False"):
        asyncio.run(wflo.checkpoint("x", 1))


def test_resume_runs_what_comes_after_the_checkpoint_and_pays_nothing_twice(provider: FakeProvider, openai_client: Any) -> None:
    broken = True

    @wflo_nb.checkpoint
    def gather(topic: str) -> dict[str, Any]:
        return {"topic": topic, "notes": chat(openai_client).choices[0].message.content}

    @wflo_nb.checkpoint
    def write(notes: dict[str, Any]) -> str:
        chat(openai_client)
        return f"about {notes['topic']}"

    @wflo_nb.checkpoint
    def review(text: str) -> str:
        if broken:
            raise ConnectionError("no reviewer")
        chat(openai_client)
        return f"{text}, reviewed"

    def work(topics: list[str]) -> list[str]:
        return [review(write(gather(topic))) for topic in topics]

    wflo = WfloWorkflow("resumed", budget_usd=1)
    with pytest.raises(ConnectionError):
        wflo.execute_sync(work, {"topics": ["rivers", "lakes"]})
    assert provider.requests == 2
    broken = False
    first = wflo.execution_id
    assert asyncio.run(wflo.resume("write")) == ["about rivers, reviewed", "about lakes, reviewed"]
    assert provider.requests == 2 + 4  # the review, and the second topic from its beginning
    assert wflo.execution_id != first
    assert asyncio.run(wflo.resume("review", version=2)) == ["about rivers, reviewed", "about lakes, reviewed"]
    assert provider.requests == 6  # also a resumed execution can be resumed
    fresh = WfloWorkflow("resumed", budget_usd=1)
    assert asyncio.run(fresh.resume("gather", 1, workflow=work, inputs={"topics": ["rivers"]})) == ["about rivers, reviewed"]
    assert provider.requests == 8


def test_resumed_steps_that_ran_side_by_side_get_their_own_answers(openai_client: Any) -> None:
    runs: list[int] = []

    @wflo_nb.checkpoint
    async def part(n: int) -> int:
        runs.append(n)
        await asyncio.sleep(0.05 / (n + 1))
        return n * 10

    @wflo_nb.checkpoint
    async def end(parts: list[int]) -> int:
        return sum(parts)

    async def work(order: list[int]) -> list[int]:
        parts = list(await asyncio.gather(*(part(n) for n in order)))
        await end(parts)
        return parts

    async def program() -> None:
        wflo = WfloWorkflow("parts")
        assert await wflo.execute(work, {"order": [0, 1, 2]}) == [0, 10, 20]
        assert await wflo.resume("end", inputs={"order": [2, 0, 1]}) == [20, 0, 10]

    asyncio.run(program())
    assert sorted(runs) == [0, 1, 2]


@pytest.mark.parametrize("how", ["methods", "what cannot be pickled"])
def test_resumed_steps_of_equal_arguments_get_the_answers_of_their_own_calls(how: str) -> None:
    runs: list[str] = []

    class Agent:
        def __init__(self, name: str, delay: float) -> None:
            self.name, self.delay, self.lock = name, delay, threading.Lock()

        @wflo_nb.checkpoint
        async def research(self, topic: str) -> str:
            return await ask(self, topic)

    async def ask(agent: Agent, topic: str) -> str:
        runs.append(agent.name)
        await asyncio.sleep(agent.delay)
        if runs.count(agent.name) < 2 and agent.name == "broken":
            raise ConnectionError
        return f"{agent.name} on {topic}"

    kept = wflo_nb.checkpoint(ask)

    @wflo_nb.checkpoint
    async def merge(parts: list[str]) -> list[str]:
        return parts

    async def patiently(agent: Agent, topic: str) -> str:
        try:
            return str(await (agent.research(topic) if how == "methods" else kept(agent, topic)))
        except ConnectionError:
            return await patiently(agent, topic)

    async def work(topic: str) -> list[str]:
        agents = [Agent("broken", 0.01), Agent("legal", 0.1), Agent("tax", 0.02)]
        return list(await merge(await asyncio.gather(*(patiently(agent, topic) for agent in agents))))

    wflo, right = WfloWorkflow("agents"), ["broken on rivers", "legal on rivers", "tax on rivers"]

    async def program() -> None:
        assert await wflo.execute(work, "rivers") == right
        for _ in range(2):  # also a resumed execution can be resumed
            assert await wflo.resume("merge") == right
        assert sorted(runs) == ["broken", "broken", "legal", "tax"]  # one that failed, and was made again, is the same call
        first = (await asyncio.to_thread(wflo.list_checkpoints))[0]
        assert await wflo.resume(first.name, first.version) == right
        assert len(runs) > 4  # the others had no answer yet, and were not given this one

    asyncio.run(program())


def test_answers_inside_a_step_that_is_not_run_again_are_given_to_nobody() -> None:
    count = 0

    @wflo_nb.checkpoint
    def ask(question: str) -> int:
        nonlocal count
        count += 1
        return count

    @wflo_nb.checkpoint
    def think(question: str) -> int:
        return int(ask(question))

    @wflo_nb.checkpoint
    def end(answers: tuple[int, int]) -> tuple[int, int]:
        return answers

    broken = True

    @wflo_nb.checkpoint
    def outer() -> int:
        answer = ask("again")
        if broken:
            raise ConnectionError
        return int(answer)

    def work(question: str) -> tuple[tuple[int, int], int]:
        return end((think(question), ask(question))), outer()

    wflo = WfloWorkflow("thinking")
    with pytest.raises(ConnectionError):
        wflo.execute_sync(work, "why?")
    broken = False
    assert asyncio.run(wflo.resume("ask")) == ((1, 2), 3)  # what a step has asked for that did not come to its end is not asked again
    assert asyncio.run(wflo.resume("end")) == ((1, 2), 4)
    assert count == 4


async def _later(value: Any) -> Any:
    return value


def _items(*values: Any, end: Any = None) -> Any:
    yield from values
    return end


async def _async_items(*values: Any) -> Any:
    for value in values:
        yield value


async def _drained(value: Any) -> Any:
    """What a caller sees of an answer of any kind, and of what kind it was."""
    if inspect.isawaitable(value):
        return "awaited", await _drained(await value)
    if inspect.isasyncgen(value):
        return "async items", [item async for item in value]
    if inspect.isgenerator(value):
        ends: list[Any] = []

        def through() -> Any:
            ends.append((yield from value))

        return "items", list(through()), ends
    return "value", value


async def _hands_out_items() -> Any:
    return _items(1, 2, end="end")


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda: 5, id="a value"),
        pytest.param(lambda: [1, 2], id="a list"),
        pytest.param(lambda: _later([1, 2]), id="hands out a coroutine"),
        pytest.param(lambda: _items(1, 2, end="end"), id="hands out a generator"),
        pytest.param(lambda: _async_items(1, 2), id="hands out an async generator"),
        pytest.param(functools.partial(_later, [1, 2]), id="a coroutine function"),
        pytest.param(functools.partial(_items, 1, 2, end="end"), id="a generator that returns something"),
        pytest.param(functools.partial(_items, end="end"), id="a generator without an item"),
        pytest.param(functools.partial(_async_items), id="an async generator without an item"),
        pytest.param(_hands_out_items, id="a coroutine that hands out a generator"),
    ],
)
def test_resumed_step_answers_in_the_way_that_it_did(function: Any) -> None:
    runs: list[int] = []
    step = wflo_nb.checkpoint(function, name="step")

    @wflo_nb.checkpoint
    def after() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ConnectionError("once")

    async def work() -> Any:
        seen = await _drained(step())
        after()
        return seen

    async def plain() -> Any:
        return await _drained(function())

    wflo = WfloWorkflow("as it did")
    with pytest.raises(ConnectionError):
        wflo.execute_sync(work)
    assert asyncio.run(wflo.resume("step")) == asyncio.run(plain())


def test_resumed_steps_that_hand_out_generators_of_equal_arguments_are_not_run_again() -> None:
    runs: list[str] = []

    @wflo_nb.checkpoint
    def told(topic: str) -> Iterator[str]:
        def words() -> Iterator[str]:
            runs.append(topic)
            yield f"{topic} {len(runs)}"

        return words()

    @wflo_nb.checkpoint
    def end(words: list[str]) -> list[str]:
        return words

    def work() -> list[str]:
        first = list(told("rivers"))
        gc.collect()
        return list(end(first + list(told("rivers"))))

    wflo = WfloWorkflow("told")
    assert wflo.execute_sync(work) == ["rivers 1", "rivers 2"]
    assert asyncio.run(wflo.resume("end")) == ["rivers 1", "rivers 2"]
    assert len(runs) == 2


def test_checkpoints_of_the_version_before_are_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    @wflo_nb.checkpoint
    def part(topic: str, client: Any = None) -> str:
        runs.append(topic)
        return topic.upper()

    def work(topic: str) -> str:
        return f"{part(topic)} {part('same', threading.Lock())}"

    put = Shelf.put

    def as_before(self: Shelf, name: str, state: Any, **facts: Any) -> Any:
        before = {key: value for key, value in facts.items() if key not in ("call", "around")}
        return put(self, name, state, **{**before, "print_": None if state == "SAME" else facts.get("print_")})

    wflo = WfloWorkflow("before")
    with monkeypatch.context() as patched:
        patched.setattr(Shelf, "put", as_before)
        assert wflo.execute_sync(work, "rivers") == "RIVERS SAME"
    for _ in range(2):
        assert asyncio.run(wflo.resume("part")) == "RIVERS SAME"
    assert runs == ["rivers", "same"]


def test_arguments_with_sets_are_the_same_in_every_process() -> None:
    program = (
        "from wflo_nb.workflow.checkpoints import fingerprint as f\n"
        "names = [f'name {n}' for n in range(50)]\n"
        "print(f(({'a': set(names)}, frozenset([frozenset(names), 1])), {}), f((set(names[1:]),), {}), f((names,), {}))"
    )
    told = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1
    assert len(set(told.pop().split())) > 3


def test_resumed_step_that_is_asked_something_else_is_run(provider: FakeProvider, openai_client: Any) -> None:
    @wflo_nb.checkpoint
    def part(topic: str, client: Any = None) -> str:
        chat(openai_client)
        return topic.upper()

    class Writer:
        def __init__(self) -> None:
            self.count = 0

        @wflo_nb.checkpoint
        def write(self, text: str) -> str:
            self.count += 1  # its own state is no part of what it is asked
            chat(openai_client)
            return text + "!"

    writer = Writer()

    def work(topic: str) -> str:
        return writer.write(part(topic) + part("same", threading.Lock()))

    wflo = WfloWorkflow("asked", budget_usd=1)
    assert wflo.execute_sync(work, "rivers") == "RIVERSSAME!"
    assert asyncio.run(wflo.resume("write")) == "RIVERSSAME!"
    assert provider.requests == 3
    assert asyncio.run(wflo.resume("write", inputs="lakes")) == "LAKESSAME!"
    assert provider.requests == 5  # the part about lakes, and what was written of it


def test_checkpoint_by_hand_cannot_be_resumed_and_the_error_says_what_to_do() -> None:
    wflo = WfloWorkflow("hand")

    async def work() -> None:
        await wflo.checkpoint("mine", 1)

    asyncio.run(wflo.execute(work))
    with pytest.raises(WorkflowError, match=r"taken as a state.*rollback_to_checkpoint\('mine'\)"):
        asyncio.run(wflo.resume("mine"))


def test_checkpoints_of_a_stranger_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    wflo = WfloWorkflow("signed")
    monkeypatch.setenv("WFLO_SNAPSHOT_KEY", "the key of a stranger, not of ours")
    asyncio.run(wflo.checkpoint("x", [1]))
    monkeypatch.delenv("WFLO_SNAPSHOT_KEY")
    with pytest.raises(SignatureError):
        asyncio.run(wflo.rollback_to_checkpoint("x"))
