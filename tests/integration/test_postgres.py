"""The same promise with a team's ledger on a PostgreSQL server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT
from wflo_nb.errors import BudgetExceededError, BudgetUnavailableError
from wflo_nb.model import BudgetState, nano_from_usd
from wflo_nb.store import open_store
from wflo_nb.testing import FakeProvider

SHARES_A_BUDGET = """
import sys
from openai import OpenAI
from wflo_nb.budget.budget import Budget
from wflo_nb.errors import BudgetExceededError
from wflo_nb.store import open_store
from wflo_nb.workflow.runtime import runtime
url, dsn = sys.argv[1:]
client, store, process = OpenAI(base_url=url, api_key="x"), open_store(dsn), runtime()
process.install()
run = process.new_run("worker", around=Budget(store, "team:shared", "team"), store=store)
leave = run.enter()
try:
    for _ in range(60):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}], max_tokens=200)
except BudgetExceededError:
    print("refused")
finally:
    leave()
    run.end()
"""


def test_fifty_gathered_calls_never_exceed_the_budget(provider: FakeProvider, async_openai: Callable[[], Any], postgres_url: str) -> None:
    provider.behave(tokens=200, delay=0.02)

    async def work(client: Any) -> None:
        ask = {"model": "gpt-4o", "messages": PROMPT, "max_tokens": 200}
        await asyncio.gather(*(client.chat.completions.create(**ask) for _ in range(50)), return_exceptions=True)

    async def main() -> None:
        async with async_openai() as client:
            with wflo_nb.execution("burst", budget_usd="0.03", store=postgres_url):
                await work(client)

    with pytest.raises(BudgetExceededError) as caught:
        asyncio.run(main())
    store = open_store(postgres_url)
    state = store.budget(caught.value.execution_id or "")
    assert 0 < provider.spent_nano <= nano_from_usd("0.03")
    assert (state.spent_nano, state.held_nano) == (provider.spent_nano, 0)
    store.close()


def test_four_processes_share_one_budget(provider: FakeProvider, postgres_url: str) -> None:
    provider.behave(tokens=200)
    store = open_store(postgres_url)
    cap = nano_from_usd("0.05")
    store.open_budget(BudgetState("team:shared", "team", cap))
    command = [sys.executable, "-c", SHARES_A_BUDGET, provider.openai_url, postgres_url]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    answers = [child.communicate(timeout=120) for child in children]
    assert [out.decode().strip() for out, _ in answers] == ["refused"] * 4, [err.decode()[-500:] for _, err in answers]
    state = store.budget("team:shared")
    assert 0.8 * cap < provider.spent_nano <= cap
    assert (state.spent_nano, state.held_nano) == (provider.spent_nano, 0)
    store.close()


def test_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(wflo_nb.WfloError) as caught:
        wflo_nb.execution(budget_usd=1, store="postgresql://me:secret@127.0.0.1:9/x").__enter__()
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)
    assert not isinstance(caught.value, BudgetUnavailableError)
