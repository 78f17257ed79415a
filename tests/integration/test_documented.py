"""Whole programs as people write them from the documents: each gives what it says, and its numbers are those of the provider's bill."""

from __future__ import annotations

import asyncio
import datetime
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import ledger_calls
from wflo_nb import BudgetExceededError, WfloWorkflow, checkpoint, track_llm_call
from wflo_nb.errors import CheckpointNotFoundError
from wflo_nb.model import usd
from wflo_nb.store import current
from wflo_nb.testing import FakeProvider

MODEL = "gpt-4o-mini"


def rows(query: str, *values: Any) -> list[dict[str, Any]]:
    """Read by SQL, as somebody does who has the database and not this package."""
    store = current()
    store.write_out()
    database = sqlite3.connect(store.location)
    try:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(query, values)]
    finally:
        database.close()


def test_budget_that_is_caught_tells_its_numbers(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    async def essays(inputs: dict[str, str]) -> list[str]:
        async with async_openai() as client:
            asked = [{"role": "user", "content": f"An essay on {inputs['topic']}."}]
            return [str((await client.chat.completions.create(model=MODEL, messages=asked, max_tokens=100)).id) for _ in range(50)]

    async def main() -> str:
        wflo = WfloWorkflow(name="essays", budget_usd=0.0002)
        try:
            await wflo.execute(essays, {"topic": "rivers"})
        except BudgetExceededError as e:
            assert (await wflo.get_cost_breakdown())["exceeded"]
            return f"${e.spent_usd:.6f} of ${e.budget_usd:.4f}"
        return "nothing stopped it"

    assert asyncio.run(main()) == f"${usd(provider.spent_nano):.6f} of $0.0002"
    assert 1 < provider.requests < 50
    assert provider.spent_nano <= 200_000


def test_function_that_is_tracked_is_a_workflow_itself(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    @track_llm_call(model=MODEL)
    async def chat(prompt: str) -> str:
        async with async_openai() as client:
            answer = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=50)
        return str(answer.choices[0].message.content)

    async def main() -> tuple[str, dict[str, Any], str]:
        wflo = WfloWorkflow(name="simple", budget_usd=0.10)
        text = await wflo.execute(chat, {"prompt": "Say hello."})
        return text, await wflo.get_cost_breakdown(), str(wflo.execution_id)

    text, costs, id = asyncio.run(main())
    assert text.startswith("word0")
    assert id.startswith("exec-")
    assert costs["total_usd"] == usd(provider.spent_nano) > 0
    assert (float(costs["budget_usd"]), costs["exceeded"]) == (0.10, False)
    assert costs["remaining_usd"] + costs["total_usd"] == costs["budget_usd"]
    assert costs["by_step"] == {"chat": costs["total_usd"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracked_functions_of_claude_are_counted_once(provider: FakeProvider) -> None:
    from anthropic import AsyncAnthropic

    @track_llm_call(model="claude-sonnet-4-5")
    async def chat(prompt: str) -> str:
        async with AsyncAnthropic(base_url=provider.url, api_key="test") as client:
            asked: Any = [{"role": "user", "content": prompt}]
            answer = await client.messages.create(model="claude-sonnet-4-5", max_tokens=50, messages=asked)
        return str(answer.content[0].text)  # type: ignore[union-attr]

    wflo = WfloWorkflow(name="claude", budget_usd=0.10)
    assert wflo.execute_sync(chat, {"prompt": "Say hello."})
    assert asyncio.run(wflo.get_cost_breakdown())["total_usd"] == usd(provider.spent_nano) > 0
    assert [row["step"] for row in ledger_calls()] == ["chat"]


def test_steps_with_both_decorators_are_tracked_kept_and_rolled_back(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    async def ask(prompt: str) -> str:
        async with async_openai() as client:
            answer = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=20)
        return str(answer.choices[0].message.content)

    @track_llm_call(model=MODEL)
    @checkpoint(name="topic")
    async def find_topic() -> dict[str, Any]:
        return {"topic": await ask("One topic."), "when": datetime.datetime(2026, 5, 6, tzinfo=datetime.UTC)}

    @checkpoint(name="fact")
    @track_llm_call
    async def find_fact(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "fact": await ask(f"A fact about {state['topic']}.")}

    async def both(inputs: dict[str, Any]) -> dict[str, Any]:
        assert inputs == {}
        return await find_fact(await find_topic())

    async def main() -> None:
        wflo = WfloWorkflow(name="steps", budget_usd=0.20, enable_checkpointing=True)
        result = await wflo.execute(both, {})
        assert set(result) == {"topic", "when", "fact"}
        assert await wflo.rollback_to_checkpoint("topic") == {"topic": result["topic"], "when": result["when"]}  # the output, as it was
        assert await wflo.rollback_to_checkpoint("fact") == result
        kept = rows("SELECT step_id, version, execution_id FROM state_snapshots WHERE scope = ? ORDER BY created_at", "workflow:steps")
        assert [(row["step_id"], row["version"], row["execution_id"]) for row in kept] == [
            ("topic", 1, wflo.execution_id),
            ("fact", 1, wflo.execution_id),
        ]
        assert (await wflo.get_cost_breakdown())["total_usd"] == usd(provider.spent_nano)

    asyncio.run(main())
    assert [row["step"] for row in ledger_calls()] == ["topic", "fact"]
    assert {row["state"] for row in ledger_calls()} == {"SETTLED"}  # with a date in the state, and paid once
    assert provider.requests == 2


def agent_loop(client: Any, wflo: WfloWorkflow, rounds: int) -> Callable[[str], Any]:
    """An agent on the synchronous client inside an async loop, which saves its messages by hand in each round."""

    @track_llm_call(model=MODEL)
    async def think(messages: list[Any]) -> Any:
        return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=60)

    async def run(query: str) -> str:
        messages: list[Any] = [{"role": "system", "content": "You research."}, {"role": "user", "content": query}]
        for number in range(1, rounds + 1):
            await wflo.checkpoint(f"round_{number}", {"messages": messages, "round": number, "at": datetime.datetime.now(datetime.UTC)})
            answer = await think(messages)
            await wflo.check_budget()
            messages.append(answer.choices[0].message)  # an object of the SDK's
            messages.append({"role": "user", "content": "Go on."})
        return str(messages[-2].content)

    return run


def test_agent_loop_saves_its_rounds_and_lists_them_while_it_runs(provider: FakeProvider, openai_client: Any) -> None:
    async def main() -> None:
        wflo = WfloWorkflow(name="agent", budget_usd=2.00, max_iterations=10, enable_checkpointing=True, enable_observability=True)
        run = agent_loop(openai_client, wflo, 3)
        text = await wflo.execute(lambda _: run("Rivers"), {})
        assert text.startswith("word0")
        listed = [f"{one['name']} v{one['version']}" for one in wflo.list_checkpoints()]  # in a running loop, and as of dicts
        assert listed == ["round_1 v1", "round_2 v1", "round_3 v1"]
        with pytest.raises(KeyError):
            wflo.list_checkpoints()[0]["nothing"]
        state = await wflo.rollback_to_checkpoint("round_2")
        assert (state["round"], len(state["messages"])) == (2, 4)
        assert state["messages"][2].content == text
        costs = await wflo.get_cost_breakdown()
        assert costs["total_usd"] == usd(provider.spent_nano)
        assert len(str(wflo.get_trace_id())) == 32

    asyncio.run(main())
    assert [row["step"] for row in ledger_calls()] == ["think"] * 3


def test_agent_loop_that_runs_out_of_money_is_taken_up_where_it_was(provider: FakeProvider, openai_client: Any) -> None:
    async def main() -> None:
        wflo = WfloWorkflow(name="agent", budget_usd="0.0002")
        run = agent_loop(openai_client, wflo, 50)
        with pytest.raises(BudgetExceededError) as caught:
            await wflo.execute(lambda _: run("Rivers"), {})
        assert caught.value.spent_usd == usd(provider.spent_nano) <= caught.value.budget_usd
        restored = await wflo.rollback_to_last_checkpoint()
        assert restored.get("round") == provider.requests + 1 > 1
        with pytest.raises(BudgetExceededError):
            await wflo.check_budget()

    asyncio.run(main())


def test_check_of_the_budget_says_nothing_while_there_is_money_and_stops_a_loop_that_swallows(
    provider: FakeProvider, openai_client: Any
) -> None:
    tried: list[int] = []

    async def swallowing(wflo: WfloWorkflow) -> None:
        await wflo.check_budget()
        for number in range(50):
            try:
                openai_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=100)
            except Exception:
                tried.append(number)
            await wflo.check_budget()

    async def main() -> None:
        wflo = WfloWorkflow(name="checked", budget_usd="0.0002")
        await wflo.check_budget()  # before anything ran
        with pytest.raises(BudgetExceededError):
            await wflo.execute(lambda _: swallowing(wflo), {})

    asyncio.run(main())
    assert tried == [provider.requests]  # one refusal, and the loop was over


def test_executions_are_read_by_sql(provider: FakeProvider, openai_client: Any) -> None:
    wflo = WfloWorkflow(name="tracked", budget_usd=0.10)
    seen: list[dict[str, Any]] = []

    def work(topic: str) -> dict[str, str]:
        openai_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": topic}], max_tokens=20)
        seen.extend(rows("SELECT status FROM workflow_executions WHERE id = ?", wflo.execution_id))
        return {"topic": topic}

    wflo.execute_sync(work, {"topic": "rivers"})
    assert [row["status"] for row in seen] == ["RUNNING"]
    (row,) = rows("SELECT * FROM workflow_executions WHERE id = ?", wflo.execution_id)
    assert (row["workflow_definition_id"], row["status"]) == ("tracked", "COMPLETED")
    (cost,) = rows("SELECT cost_total_usd FROM workflow_executions WHERE id = ?", wflo.execution_id)
    assert cost["cost_total_usd"] == f"{usd(provider.spent_nano):.9f}"


def test_costs_are_compared_between_models(provider: FakeProvider, openai_client: Any) -> None:
    def compare(prompt: str) -> None:
        for model in ("gpt-4o-mini", "gpt-4o"):
            openai_client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], max_tokens=20)

    wflo = WfloWorkflow(name="compare", budget_usd=1)
    wflo.execute_sync(compare, {"prompt": "Rivers"})
    costs = asyncio.run(wflo.get_cost_breakdown())
    billed = {line.model: usd(line.nano_usd) for line in provider.bill}
    assert costs["by_model"] == billed
    assert list(costs["by_model"]) == ["gpt-4o", "gpt-4o-mini"]  # the dearest first
    assert sum(one["usd"] for one in costs["by_token_class"].values()) == costs["total_usd"] == sum(billed.values())
    frame = wflo_nb.report.costs(by="workflow")
    assert dict(zip(frame["workflow"], frame["cost_nano"], strict=True)) == {"compare": provider.spent_nano}


def test_rollback_before_any_checkpoint_says_so() -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"has no checkpoint\. Take one with"):
        asyncio.run(WfloWorkflow("empty").rollback_to_last_checkpoint())
