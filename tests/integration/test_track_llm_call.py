"""`@track_llm_call`: a name for calls that are seen, a meter for those that are not, and never two rows for the same money."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace as Thing
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls, ledger_total
from wflo_nb import BudgetExceededError, Usage, track_llm_call
from wflo_nb.errors import ConfigurationError, UnknownModelError, WfloWarning
from wflo_nb.store import current
from wflo_nb.testing import FakeProvider, price

#: USD per million tokens.
PRICES = {"mine": {"input": 2, "output": 10, "cache_read": 1}}


def thing(value: Any) -> Any:
    """Dicts as objects, the way SDKs give them."""
    if isinstance(value, dict):
        return Thing(**{name: thing(item) for name, item in value.items()})
    return [thing(item) for item in value] if isinstance(value, list) else value


USAGE = Usage(120, 30, cache_read_tokens=20, reasoning_tokens=5)
WRITES = Usage(120, 30, cache_read_tokens=20, cache_write_tokens=40, cache_write_1h_tokens=10)
ANSWERS: dict[str, tuple[dict[str, Any], Usage]] = {
    "openai chat": (
        {
            "model": "mine",
            "usage": {
                "prompt_tokens": 120,
                "completion_tokens": 30,
                "prompt_tokens_details": {"cached_tokens": 20},
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
        },
        USAGE,
    ),
    "openai responses": (
        {
            "model": "mine",
            "usage": {
                "input_tokens": 120,
                "output_tokens": 30,
                "input_tokens_details": {"cached_tokens": 20},
                "output_tokens_details": {"reasoning_tokens": 5},
            },
        },
        USAGE,
    ),
    "anthropic": (
        {
            "model": "mine",
            "usage": {
                "input_tokens": 60,
                "output_tokens": 30,
                "cache_read_input_tokens": 20,
                "cache_creation_input_tokens": 40,
                "cache_creation": {"ephemeral_1h_input_tokens": 10, "ephemeral_5m_input_tokens": 30},
            },
        },
        WRITES,
    ),
    "gemini": (
        {
            "model_version": "mine",
            "usage_metadata": {
                "prompt_token_count": 110,
                "tool_use_prompt_token_count": 10,
                "candidates_token_count": 25,
                "thoughts_token_count": 5,
                "cached_content_token_count": 20,
            },
        },
        USAGE,
    ),
    "gemini over REST": (
        {
            "modelVersion": "mine",
            "usageMetadata": {
                "promptTokenCount": 120,
                "candidatesTokenCount": 25,
                "thoughtsTokenCount": 5,
                "cachedContentTokenCount": 20,
            },
        },
        USAGE,
    ),
    "mistral": ({"model": "mine", "usage": {"prompt_tokens": 120, "completion_tokens": 30, "total_tokens": 150}}, Usage(120, 30)),
    "cohere": ({"usage": {"billed_units": {"input_tokens": 12.0, "output_tokens": 3.0}, "tokens": {"input_tokens": 70}}}, Usage(12, 3)),
    "cohere embed": ({"meta": {"billed_units": {"input_tokens": 12}}}, Usage(12)),
    "ollama": ({"model": "mine", "done": True, "prompt_eval_count": 120, "eval_count": 30}, Usage(120, 30)),
    "bedrock converse": (
        {"usage": {"inputTokens": 60, "outputTokens": 30, "cacheReadInputTokens": 20, "cacheWriteInputTokens": 40}},
        Usage(120, 30, cache_read_tokens=20, cache_write_tokens=40),
    ),
    "langchain": (
        {
            "response_metadata": {"model_name": "mine"},
            "usage_metadata": {
                "input_tokens": 120,
                "output_tokens": 30,
                "input_token_details": {"cache_read": 20},
                "output_token_details": {"reasoning": 5},
            },
        },
        USAGE,
    ),
    "litellm": (
        {
            "model": "mine",
            "usage": {
                "prompt_tokens": 120,
                "completion_tokens": 30,
                "prompt_tokens_details": {"cached_tokens": 20, "cache_creation_tokens": 40},
            },
        },
        Usage(120, 30, cache_read_tokens=20, cache_write_tokens=40),
    ),
}


@pytest.mark.parametrize("shape", [dict, thing], ids=["dict", "object"])
@pytest.mark.parametrize("name", ANSWERS)
def test_usage_is_found_wherever_a_provider_puts_it(name: str, shape: Callable[[Any], Any]) -> None:
    answer, usage = ANSWERS[name]

    @track_llm_call(model="mine", provider="local-library")
    def ask() -> Any:
        return shape(answer)

    with wflo_nb.execution("t", budget_usd=1, prices=PRICES) as run:
        ask()
    (row,) = ledger_calls()
    found = Usage(*(row[field] for field in Usage.__dataclass_fields__))
    assert found == usage
    assert (row["state"], row["step"], row["model"], row["provider"]) == ("SETTLED", "ask", "mine", "local-library")
    assert row["cost_nano"] == run.figures().spent_nano > 0


def test_cost_of_a_metered_call_is_that_of_its_tokens() -> None:
    @track_llm_call
    def ask() -> Any:
        return ANSWERS["openai chat"][0]

    with wflo_nb.execution("t", prices=PRICES):
        ask()
    (row,) = ledger_calls()
    assert row["cost_nano"] == (100 * 2 + 20 * 1 + 30 * 10) * 1000
    assert row["price_source"] == "declared"


class Asker:
    def __init__(self, client: Any = None) -> None:
        self.client = client

    @track_llm_call
    def plain(self) -> Any:
        return self.client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=9)

    @track_llm_call(model="gpt-4o", max_input_tokens=160, max_output_tokens=9)
    def bounded(self) -> Any:
        return self.plain()

    @track_llm_call()
    def streamed(self) -> Iterator[Any]:
        yield from self.client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=9, stream=True)


def test_call_that_is_seen_below_gets_the_name_and_is_counted_once(provider: FakeProvider, openai_client: Any) -> None:
    asker = Asker(openai_client)
    with wflo_nb.execution("t", budget_usd=1):
        asker.plain()
        list(asker.streamed())
        with wflo_nb.step("agent"):
            asker.plain()
    assert [row["step"] for row in ledger_calls()] == ["plain", "streamed", "agent"]
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"] * 3
    assert ledger_total() == provider.spent_nano


def test_call_in_an_event_loop_or_a_thread_below_is_seen_as_well(
    provider: FakeProvider, openai_client: Any, async_openai: Callable[[], Any]
) -> None:
    @track_llm_call
    async def native() -> Any:
        async with async_openai() as client:
            return await client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=9)

    @track_llm_call
    def threaded() -> Any:
        thread = threading.Thread(target=Asker(openai_client).plain)
        thread.start()
        thread.join()
        return {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    async def work() -> None:
        async with wflo_nb.execution("t", budget_usd=1):
            await native()
            threaded()

    asyncio.run(work())
    assert [row["step"] for row in ledger_calls()] == ["native", "plain"]
    assert ledger_total() == provider.spent_nano


def test_bound_of_a_function_whose_calls_are_seen_is_given_back_before_them(provider: FakeProvider, openai_client: Any) -> None:
    asker = Asker(openai_client)
    with wflo_nb.execution("t", budget_usd="0.0013") as run:  # room for one of both holds, not for two
        asker.bounded()
        asker.bounded()
    assert [row["state"] for row in ledger_calls()] == ["RELEASED", "SETTLED", "SETTLED"]
    assert run.figures().calls == 2
    assert run.figures().spent_nano == provider.spent_nano


def test_metered_call_under_a_budget_is_held_beforehand_where_a_bound_is_declared() -> None:
    called = []

    @track_llm_call(model="mine", max_input_tokens=100, max_output_tokens=10)  # at most 300 microdollars
    def ask() -> Any:
        (row,) = [row for row in ledger_calls() if row["state"] == "RESERVED"]
        called.append(row["reserved_nano"])
        return {"usage": {"input_tokens": 50, "output_tokens": 5}}

    with pytest.raises(BudgetExceededError) as caught, wflo_nb.execution("t", budget_usd="0.0005", prices=PRICES) as run:
        for _ in range(9):
            ask()
    assert called == [300_000] * 2  # 150 microdollars are spent by each, and then 200 are left
    assert run.figures().spent_nano == ledger_total() == 300_000
    assert caught.value.requested_usd is not None
    assert caught.value.requested_usd * 10**9 == 300_000


def test_function_without_a_bound_is_not_called_once_nothing_is_left() -> None:
    called = []

    @track_llm_call(model="mine")
    def ask() -> Any:
        called.append(1)
        return {"usage": {"input_tokens": 100, "output_tokens": 10}}  # 300 microdollars

    with pytest.raises(BudgetExceededError), wflo_nb.execution("t", budget_usd="0.0005", prices=PRICES):
        for _ in range(9):
            with contextlib.suppress(BudgetExceededError):
                ask()
    assert len(called) == 2
    assert [row["state"] for row in ledger_calls()] == ["SETTLED"] * 2 + ["REFUSED"] * 7
    assert ledger_total() == 600_000


def test_free_model_goes_on_where_nothing_is_left() -> None:
    @track_llm_call(model="free")
    def ask() -> Any:
        return {"usage": {"input_tokens": 100, "output_tokens": 10}}

    with wflo_nb.execution("t", budget_usd=0, prices={"free": {"input": 0, "output": 0}}):
        ask()
    assert [row["cost_nano"] for row in ledger_calls()] == [0]


def test_model_without_a_price_is_refused_under_a_budget_and_unpriced_without() -> None:
    @track_llm_call(model="nobody-knows-this-model")
    def ask() -> Any:
        return {"usage": {"input_tokens": 100, "output_tokens": 10}}

    with pytest.raises(UnknownModelError), wflo_nb.execution("t", budget_usd=1):
        ask()
    with pytest.warns(WfloWarning, match="no price is known for nobody-knows-this-model"), wflo_nb.execution("t"):
        ask()
    assert [(row["state"], row["cost_nano"]) for row in ledger_calls()] == [("REFUSED", 0), ("SETTLED", None)]


def test_answer_without_usage_is_never_a_call_of_nothing() -> None:
    @track_llm_call(model="mine")
    def mute() -> str:
        return "text"

    @track_llm_call(model="mine", max_input_tokens=100, max_output_tokens=10)
    def bounded() -> str:
        return "text"

    with pytest.warns(WfloWarning, match="mute is tracked as a model call, but what it returned has no usage"):  # noqa: SIM117
        with wflo_nb.execution("t", budget_usd=1, prices=PRICES) as run:
            assert (mute(), bounded()) == ("text", "text")
    assert [(row["state"], row["cost_nano"]) for row in ledger_calls()] == [("UNCONFIRMED", None), ("UNCONFIRMED", 300_000)]
    assert run.figures().unpriced == 1


def test_usage_can_be_made_of_anything() -> None:
    @track_llm_call(model="mine", usage=lambda text: Usage(len(text.split()), 1))
    def words() -> str:
        return "three small words"

    @track_llm_call(model="mine", usage=lambda answer: answer["counts"])
    async def counts() -> Any:
        return {"counts": {"prompt_tokens": 7, "completion_tokens": 2}}

    @track_llm_call(model="mine", usage=lambda answer: answer.nothing)
    def broken() -> str:
        return "paid"

    with wflo_nb.execution("t", prices=PRICES), pytest.warns(WfloWarning, match="usage= of broken failed"):
        assert words() == "three small words"
        asyncio.run(counts())
        assert broken() == "paid"
    assert [(row["input_tokens"], row["output_tokens"]) for row in ledger_calls()] == [(3, 1), (7, 2), (None, None)]


def test_streams_of_every_kind_are_metered_by_their_pieces() -> None:
    start = {"type": "message_start", "message": {"model": "mine", "usage": {"input_tokens": 50, "output_tokens": 1}}}
    delta = {"type": "message_delta", "usage": {"output_tokens": 20}}

    @track_llm_call(model="mine")
    def events() -> Iterator[Any]:
        yield start
        yield {"type": "content_block_delta"}
        yield delta

    @track_llm_call(model="mine")
    async def chunks() -> AsyncIterator[Any]:
        yield thing({"choices": [1], "usage": None})
        yield thing({"choices": [], "model": "mine", "usage": {"prompt_tokens": 50, "completion_tokens": 20}})

    class AIMessageChunk(Thing):
        pass

    @track_llm_call(model="mine")
    def langchain() -> Any:  # hands out a generator
        return (AIMessageChunk(usage_metadata={"input_tokens": n, "output_tokens": 10}) for n in (50, 0))

    async def read() -> list[Any]:
        return [chunk async for chunk in chunks()]

    with wflo_nb.execution("t", budget_usd=1, prices=PRICES):
        assert next(iter(list(events()))) is start
        assert len(asyncio.run(read())) == 2
        assert len(list(langchain())) == 2
        early = events()
        next(early)
        early.close()
    found = [(row["input_tokens"], row["output_tokens"], row["step"]) for row in ledger_calls()]
    assert found == [(50, 20, "events"), (50, 20, "chunks"), (50, 20, "langchain"), (50, 1, "events")]


def test_generator_receives_what_is_sent_and_thrown() -> None:
    @track_llm_call(model="mine", usage=lambda answer: answer)
    def talk() -> Iterator[Any]:
        got = []
        try:
            got.append((yield 1))
            yield 2
        except ValueError as error:
            got.append(str(error))
        return (yield got) or Usage(3, 4)

    with wflo_nb.execution("t", prices=PRICES):
        conversation: Any = talk()
        assert next(conversation) == 1
        assert conversation.send("hello") == 2
        assert conversation.throw(ValueError("oh")) == ["hello", "oh"]
        with pytest.raises(StopIteration) as end:
            conversation.send(None)
    assert end.value.value == Usage(3, 4)
    assert [row["output_tokens"] for row in ledger_calls()] == [4]


def test_call_that_fails_before_its_usage_is_known_keeps_its_hold() -> None:
    @track_llm_call(model="mine", max_input_tokens=100, max_output_tokens=10)
    async def ask() -> Any:
        raise TimeoutError("gone")

    async def work() -> None:
        async with wflo_nb.execution("t", budget_usd=1, prices=PRICES):
            with pytest.raises(TimeoutError):
                await ask()

    asyncio.run(work())
    (row,) = ledger_calls()
    assert (row["state"], row["cost_nano"]) == ("UNCONFIRMED", 300_000)
    assert "TimeoutError" in row["reason"]


def test_tracked_function_inside_another_is_metered_once() -> None:
    @track_llm_call(model="mine")
    def inner() -> Any:
        return {"usage": {"input_tokens": 100, "output_tokens": 10}}

    @track_llm_call(model="mine")
    def outer() -> Any:
        return inner()

    with wflo_nb.execution("t", budget_usd=1, prices=PRICES):
        outer()
    assert [row["step"] for row in ledger_calls()] == ["inner"]


def test_metered_call_is_charged_to_every_budget_around_it() -> None:
    @track_llm_call(model="mine")
    def ask() -> Any:
        return {"usage": {"input_tokens": 100, "output_tokens": 10}}

    with (
        wflo_nb.execution("outer", budget_usd=1, prices=PRICES, team="lab") as outer,
        wflo_nb.execution("inner", budget_usd="0.5") as inner,
    ):
        ask()
    spent = dict(zip(*(current().read("budgets")[column] for column in ("id", "spent_nano")), strict=True))
    assert len(spent) == 3
    assert spent[outer.id] == spent[inner.id] == 300_000
    assert set(spent.values()) == {300_000}


def test_function_outside_of_any_execution_is_what_it_was() -> None:
    @track_llm_call
    def ask(a: int, b: int = 2) -> int:
        """Ask."""
        return a + b

    assert ask(1) == 3
    assert (ask.__name__, ask.__doc__) == ("ask", "Ask.")
    assert asyncio.iscoroutinefunction(track_llm_call(asyncio.sleep))


def test_wrong_bounds_are_told_where_they_stand() -> None:
    with pytest.raises(ConfigurationError, match="max_output_tokens='many'"):
        track_llm_call(max_output_tokens="many")  # type: ignore[arg-type]


def test_price_of_the_stand_in_is_the_price_of_the_table() -> None:
    """A known model needs no declaration: the answer names it."""

    @track_llm_call
    def ask() -> Any:
        return {"model": "gpt-4o-mini", "usage": {"prompt_tokens": 100, "completion_tokens": 10}}

    with wflo_nb.execution("t", budget_usd=1):
        ask()
    assert ledger_total() == price("gpt-4o-mini", Usage(100, 10))


def test_gathered_calls_that_wait_for_money_do_not_keep_those_that_give_it_back() -> None:
    @track_llm_call(model="mine", max_input_tokens=1000, max_output_tokens=1000)
    async def ask() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"model": "mine", "usage": {"prompt_tokens": 10, "completion_tokens": 10}}

    async def program() -> list[Any]:
        prices = {"mine": {"input": 1, "output": 1}}
        async with wflo_nb.execution(budget_usd=0.003, prices=prices, wait=10):  # one at a time
            return await asyncio.gather(*(ask() for _ in range(40)))

    assert len(asyncio.run(program())) == 40
    assert ledger_total() == 40 * 20_000
