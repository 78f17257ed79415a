"""The frameworks themselves over real sockets. Each file needs its framework, so each is run by a recipe that makes its environment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import ledger_calls, ledger_total
from wflo_nb import WfloWorkflow
from wflo_nb.testing import FakeProvider


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    """No thread of a framework or of ours is left behind by a test, but for the workers of pools that live as long as the process."""
    pools = ("wflo-ledger", "wflo-waiting", "wflo-noting", "asyncio_", "ThreadPoolExecutor", "CrewAI", "litellm-logging")
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon and not thread.name.startswith(pools):
            thread.join(10)
            assert not thread.is_alive(), thread


@pytest.fixture
def openai_environment(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> FakeProvider:
    """Frameworks that read their provider from the environment find ours."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.setenv(name, provider.openai_url)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    return provider


def sums_up(provider: FakeProvider) -> bool:
    """Whether the ledger says what the provider's own bill says."""
    assert ledger_total() == provider.spent_nano > 0
    return True


def agrees(provider: FakeProvider) -> int:
    """How many calls there were: as many in the ledger as at the provider, of the same tokens and cost."""
    usages = [line.usage for line in provider.bill]
    billed = sorted((u.input_tokens, u.output_tokens, line.nano_usd) for u, line in zip(usages, provider.bill, strict=True))
    assert sorted((row["input_tokens"], row["output_tokens"], row["cost_nano"]) for row in ledger_calls()) == billed
    assert {row["state"] for row in ledger_calls()} == {"SETTLED"}
    assert len(billed) == provider.requests > 0
    return len(billed)


def alone() -> bool:
    """Whether nothing is left of what was begun in this event loop."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not others, others
    return True


def steps() -> list[Any]:
    """The labels of the calls, in their order."""
    return [row["step"] for row in ledger_calls()]


def twice_at_once(agent: Any) -> list[tuple[str | None, int]]:
    """Execution id and number of calls of two executions of one workflow object that run at the same time."""
    wflo = WfloWorkflow("both", budget_usd=1)

    async def one(topic: str) -> tuple[str | None, int]:
        await wflo.execute(agent, topic)
        return wflo.execution_id, (await wflo.get_cost_breakdown())["calls"]

    async def program() -> list[tuple[str | None, int]]:
        return await asyncio.gather(one("rivers"), one("lakes"))

    return asyncio.run(program())


def cancelled_in_its_call(provider: FakeProvider, agent: Any) -> str:
    """The id of an execution that was cancelled while its first call was under way; nothing was left in its event loop."""
    provider.behave(delay=0.5)
    return cancelled_when_it_asks(provider, agent)


def cancelled_when_it_asks(provider: FakeProvider, agent: Any) -> str:
    """The same, with the provider as it is."""
    wflo = WfloWorkflow("slow", budget_usd=1)

    async def program() -> None:
        task = asyncio.create_task(wflo.execute(agent, "go"))
        while not provider.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert alone()

    asyncio.run(program())
    return str(wflo.execution_id)
