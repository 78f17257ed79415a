"""Never above the budget: the true bill is the provider's, not ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls, ledger_total
from wflo_nb.budget.budget import Budget
from wflo_nb.budget.reconcile import reconcile, unconfirmed
from wflo_nb.errors import (
    BudgetExceededError,
    BudgetUnavailableError,
    ConfigurationError,
    StoreUnavailableError,
    UnboundedCallError,
    UnknownModelError,
    WfloWarning,
)
from wflo_nb.model import CallState, Usage, nano_from_usd
from wflo_nb.store import open_store
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime


def chat(client: Any, cap: int | None = 200, **extra: Any) -> Any:
    caps = {} if cap is None else {"max_tokens": cap}
    return client.chat.completions.create(model="gpt-4o", messages=PROMPT, **caps, **extra)


def true_share(provider: FakeProvider, budget: object) -> float:
    return provider.spent_nano / nano_from_usd(budget)


def test_sequential_calls_stop_before_the_budget_and_name_the_numbers(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=200)
    with pytest.raises(BudgetExceededError) as caught, wflo_nb.execution("seq", budget_usd="0.02") as run:
        for _ in range(100):
            chat(openai_client)
    error = caught.value
    assert 0.8 < true_share(provider, "0.02") <= 1
    assert error.spent_usd == Decimal(provider.spent_nano).scaleb(-9) == run.spent_usd
    assert (error.budget_usd, error.held_usd, error.model) == (Decimal("0.02"), 0, "gpt-4o")
    assert error.requested_usd > error.budget_usd - error.spent_usd
    assert error.execution_id == run.id
    assert "$0.02" in str(error)
    assert ledger_total() == provider.spent_nano


def test_fifty_gathered_calls_never_exceed_the_budget(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    provider.behave(tokens=200, delay=0.02)

    async def work() -> list[Any]:
        async with async_openai() as client:
            with wflo_nb.execution("burst", budget_usd="0.03"):
                return await asyncio.gather(*(chat(client) for _ in range(50)), return_exceptions=True)

    with pytest.raises(BudgetExceededError):
        asyncio.run(work())
    assert 0 < true_share(provider, "0.03") <= 1
    assert ledger_total() == provider.spent_nano
    refused = [r for r in ledger_calls() if r["state"] == "REFUSED"]
    assert len(refused) + provider.requests == 50


def test_sixteen_threads_never_exceed_the_budget(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=200)
    refusals: list[BudgetExceededError] = []

    def work() -> None:
        for _ in range(10):
            try:
                chat(openai_client)
            except BudgetExceededError as error:
                refusals.append(error)

    with pytest.raises(BudgetExceededError), wflo_nb.execution("threads", budget_usd="0.05"):
        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 0 < true_share(provider, "0.05") <= 1
    assert ledger_total() == provider.spent_nano
    assert len(refusals) == 160 - provider.requests


def test_stream_that_would_cross_the_budget_is_not_sent(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=4000)
    with pytest.raises(BudgetExceededError), wflo_nb.execution("stream", budget_usd="0.01"):
        list(chat(openai_client, cap=4000, stream=True))
    assert provider.requests == 0


@pytest.mark.filterwarnings("ignore:A call to gpt-4o names no output limit")
def test_stream_without_a_cap_gets_one_that_the_budget_can_pay(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=16_000)
    with pytest.warns(wflo_nb.errors.WfloWarning, match="cut off at"), wflo_nb.execution("stream", budget_usd="0.01") as run:
        openai_client.chat.completions.create(model="gpt-4o", messages=PROMPT)
    (row,) = ledger_calls()
    assert provider.bodies[0]["max_tokens"] == row["cap_written"] < 1000
    assert 0.5 < true_share(provider, "0.01") <= 1
    assert run.spent_usd == Decimal(provider.spent_nano).scaleb(-9)


no_limit_told = pytest.mark.filterwarnings("ignore:A call to gpt-4o names no output limit")


def written_fairly(provider: FakeProvider, budget: object) -> None:
    """The caps written into five requests are alike, and together they are worth most of the budget."""
    caps = [body["max_tokens"] for body in provider.bodies[-5:]]
    assert max(caps) < 2 * min(caps), caps
    held = sum(row["reserved_nano"] for row in ledger_calls() if row["budget_id"])
    assert 0.8 * nano_from_usd(budget) < held <= nano_from_usd(budget)
    assert true_share(provider, budget) <= 1


@no_limit_told
@pytest.mark.parametrize("stream", [False, True])
def test_gathered_calls_without_caps_share_what_is_left(provider: FakeProvider, async_openai: Callable[[], Any], stream: bool) -> None:
    async def work() -> None:
        async with async_openai() as client:
            await chat(client)  # the SDK's first call takes longer
            provider.behave(delay=0.5)  # no call is over before all have asked
            with wflo_nb.execution("burst", budget_usd="0.05"):
                await asyncio.gather(*(chat(client, cap=None, stream=stream) for _ in range(5)))

    asyncio.run(work())
    assert provider.requests == 6
    written_fairly(provider, "0.05")


@no_limit_told
def test_threads_without_caps_share_what_is_left(provider: FakeProvider, openai_client: Any) -> None:
    chat(openai_client)
    provider.behave(delay=0.5)
    with wflo_nb.execution("threads", budget_usd="0.05"):
        threads = [threading.Thread(target=chat, args=(openai_client, None)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert provider.requests == 6
    written_fairly(provider, "0.05")


@no_limit_told
def test_calls_without_caps_share_what_a_budget_around_them_has_left(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    async def work() -> None:
        async with async_openai() as client:
            await chat(client)
            provider.behave(delay=0.5)
            with wflo_nb.execution(budget_usd="0.05"), wflo_nb.execution(budget_usd=5):
                await asyncio.gather(*(chat(client, cap=None) for _ in range(5)))

    asyncio.run(work())
    written_fairly(provider, "0.05")


def test_budget_of_zero_allows_no_paid_call(provider: FakeProvider, openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd=0):
        chat(openai_client)
    assert provider.requests == 0


@pytest.mark.parametrize("bad", ["abc", -1, "nan", "inf", "2 usd", True])
def test_budget_that_is_no_amount_is_refused_with_an_example(bad: object) -> None:
    with pytest.raises(ConfigurationError, match="budget_usd="):
        wflo_nb.execution(budget_usd=bad)


def test_refusal_that_was_swallowed_forty_times_sends_nothing_and_comes_out_at_the_edge(provider: FakeProvider, openai_client: Any) -> None:
    def swallow() -> None:
        try:
            chat(openai_client)
        except Exception:
            return

    provider.behave(tokens=200)
    with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd="0.005"):
        for _ in range(40):
            swallow()
        sent = provider.requests
        for _ in range(40):
            swallow()
        assert provider.requests == sent == 1


def test_refusal_is_an_error_that_the_sdk_neither_retries_nor_wraps(provider: FakeProvider, openai_client: Any) -> None:
    from openai import OpenAIError

    with pytest.raises(BudgetExceededError) as caught, wflo_nb.execution(budget_usd=0):
        chat(openai_client)
    assert isinstance(caught.value, OpenAIError)
    assert caught.value.__cause__ is None
    assert [r["state"] for r in ledger_calls()] == ["REFUSED"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_anthropic_is_refused_once_and_directly(provider: FakeProvider, anthropic_client: Any) -> None:
    with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd="0.0001"):
        anthropic_client.messages.create(model="claude-sonnet-4-5", max_tokens=500, messages=PROMPT)
    assert [r["state"] for r in ledger_calls()] == ["REFUSED"]
    assert provider.requests == 0


def test_unknown_model_is_refused_under_a_budget_and_never_recorded_as_free(provider: FakeProvider, openai_client: Any) -> None:
    ask = {"model": "my-own-model-7b", "messages": PROMPT, "max_tokens": 10}
    with pytest.raises(UnknownModelError, match="wflo price"), wflo_nb.execution(budget_usd=1):
        openai_client.chat.completions.create(**ask)
    assert provider.requests == 0
    with wflo_nb.execution() as run:
        openai_client.chat.completions.create(**ask)
    assert run.figures().unpriced == 1
    row = ledger_calls()[-1]
    assert (row["state"], row["cost_nano"]) == ("SETTLED", None)
    assert "no price" in row["reason"]


def test_declared_price_is_used_to_the_nano(provider: FakeProvider, openai_client: Any) -> None:
    prices = {"my-own-model-7b": {"input": "0.123", "output": "4.567"}}
    with wflo_nb.execution(budget_usd=1, prices=prices) as run:
        openai_client.chat.completions.create(model="my-own-model-7b", messages=PROMPT, max_tokens=10)
    usage = provider.bill[0].usage
    pico = usage.input_tokens * 123_000 + usage.output_tokens * 4_567_000
    assert run.figures().spent_nano == -(-pico // 1000)


def test_tool_billed_per_use_is_refused_under_a_budget(provider: FakeProvider, openai_client: Any) -> None:
    with pytest.raises(UnboundedCallError, match="web_search"), wflo_nb.execution(budget_usd=1):
        openai_client.responses.create(model="gpt-4o", input="x", tools=[{"type": "web_search"}])
    assert provider.requests == 0


def test_block_inside_another_one_spends_the_outer_budget_too(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=200)
    with pytest.raises(BudgetExceededError) as caught, wflo_nb.execution("outer", budget_usd="0.01") as outer:
        for _ in range(20):
            with wflo_nb.execution("inner", budget_usd="5"):
                chat(openai_client)
    assert caught.value.budget_usd == Decimal("0.01")
    assert true_share(provider, "0.01") <= 1
    assert outer.figures().spent_nano == provider.spent_nano
    assert outer.account.store.budget(outer.id).spent_nano == provider.spent_nano


def test_raising_the_budget_lets_calls_through_again(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=200)
    with wflo_nb.execution(budget_usd="0.005") as run:
        chat(openai_client)
        with pytest.raises(BudgetExceededError):
            chat(openai_client)
        run.set_budget(nano_from_usd("0.01"))
        chat(openai_client)
    assert provider.requests == 2


def test_stop_sends_nothing_more(provider: FakeProvider, openai_client: Any) -> None:
    with pytest.raises(BudgetExceededError, match="you stopped"), wflo_nb.execution(budget_usd=1) as run:
        chat(openai_client)
        run.stop()
        chat(openai_client)
    assert provider.requests == 1


def test_cancelled_calls_give_nothing_back_that_may_have_been_billed(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    provider.behave(tokens=200, delay=0.5)

    async def work() -> None:
        async with async_openai() as client:
            tasks = [asyncio.create_task(chat(client)) for _ in range(5)]
            await asyncio.sleep(0.3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with wflo_nb.execution(budget_usd=1) as run:
        asyncio.run(work())
    figures = run.figures()
    assert figures.held_nano == 0
    assert figures.in_flight == 0
    assert figures.spent_nano == figures.unconfirmed_nano >= provider.spent_nano > 0


def test_cap_around_several_executions_lets_them_go_on_once_it_is_raised(provider: FakeProvider, openai_client: Any) -> None:
    process = runtime()
    notebook = Budget(process.store, "nb:kernel-1", "notebook")
    notebook.set_cap(0)
    process.install()
    run = process.new_run("plain cell", around=notebook)
    leave = run.enter()
    try:
        with pytest.raises(BudgetExceededError, match="notebook budget of"):
            chat(openai_client)
        notebook.set_cap(nano_from_usd(1))
        chat(openai_client)
        assert run.end() is None
    finally:
        leave()
        process.uninstall()
    assert notebook.state().spent_nano == provider.spent_nano > 0


def test_store_that_failed_for_a_moment_without_a_cap_takes_what_it_missed_and_holds_the_cap_that_comes_later(
    provider: FakeProvider, openai_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.behave(tokens=100)
    process = runtime()
    store = process.store
    notebook = Budget(store, "nb:kernel-2", "notebook")

    def down(*args: Any, **kwargs: Any) -> Any:
        raise StoreUnavailableError("the disk is away")

    process.install()
    run = process.new_run("plain cell", around=notebook)
    leave = run.enter()
    try:
        with monkeypatch.context() as patched, pytest.warns(WfloWarning, match="not recorded until") as told:
            for step in ("transact", "reserve"):
                patched.setattr(store._db, step, down)
            chat(openai_client)
            patched.undo()
            chat(openai_client)  # within the moment in which the store is left alone
        assert len(told) == 1 and provider.requests == 2 and run.figures().spent_nano == provider.spent_nano
        notebook.set_cap(provider.spent_nano + 1)
        with pytest.raises(BudgetExceededError, match="notebook budget of"):
            chat(openai_client)
    finally:
        leave()
        run.end()
        process.uninstall()
    assert provider.requests == 2
    assert notebook.state().spent_nano == ledger_total(store) == store.execution(run.id).cost_nano == provider.spent_nano > 0


def test_what_a_store_missed_that_is_back_is_written_when_the_process_ends(provider: FakeProvider, tmp_path: Path) -> None:
    body = """
        import sys, wflo_nb
        from openai import OpenAI
        from wflo_nb.errors import StoreUnavailableError
        from wflo_nb.store import current
        def down(*args, **kwargs):
            raise StoreUnavailableError("the disk is away")
        store, client = current(), OpenAI(base_url=sys.argv[1], api_key="test")
        with wflo_nb.execution("script"):
            store._db.book = down
            for _ in range(3):
                client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
            del store._db.book
    """
    environment = {**os.environ, "WFLO_STORE": str(tmp_path / "ledger.db")}
    subprocess.run([sys.executable, "-c", textwrap.dedent(body), provider.openai_url], env=environment, check=True, capture_output=True)
    with contextlib.closing(open_store(tmp_path / "ledger.db")) as store:
        assert ledger_total(store) == provider.spent_nano > 0
        assert [row["state"] for row in ledger_calls(store)] == ["SETTLED"] * 3


def test_cap_that_comes_while_the_store_is_away_refuses_until_it_is_back(
    provider: FakeProvider, openai_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = runtime()
    store = process.store
    notebook = Budget(store, "nb:kernel-3", "notebook")

    def down(*args: Any, **kwargs: Any) -> Any:
        raise StoreUnavailableError("the disk is away")

    process.install()
    run = process.new_run("plain cell", around=notebook)
    leave = run.enter()
    try:
        chat(openai_client)
        with monkeypatch.context() as patched:
            patched.setattr(store, "reserve_now", down)
            patched.setattr(store, "reserve", down)
            patched.setattr(store, "reserve_now", down)
            with pytest.warns(WfloWarning, match="not recorded until"):
                chat(openai_client)
            notebook.set_cap(nano_from_usd(5))
            with pytest.raises(BudgetUnavailableError, match="the disk is away"):
                chat(openai_client)
        chat(openai_client)
    finally:
        leave()
        run.end()
        process.uninstall()
    assert provider.requests == 3
    assert notebook.state().spent_nano == ledger_total(store) == provider.spent_nano and notebook.state().held_nano == 0


def test_nothing_of_unknown_price_is_sent_once_the_money_is_gone_but_what_is_free_is(provider: FakeProvider, openai_client: Any) -> None:
    def ask(model: str) -> Any:
        return openai_client.chat.completions.create(model=model, messages=PROMPT, max_tokens=200)

    free = {"my-free": {"input": 0, "output": 0}}
    with (
        pytest.raises(BudgetExceededError),
        wflo_nb.execution(budget_usd="0.0001", unknown_models="allow", prices=free, wait=0) as run,
    ):
        ask("nobody-knows-it")
        for model in ("gpt-4o", "nobody-knows-it"):
            with pytest.raises(BudgetExceededError):
                ask(model)
        ask("my-free")
    assert [body["model"] for body in provider.bodies] == ["nobody-knows-it", "my-free"]
    assert run.figures().refused == 2


def test_call_in_flight_names_its_price_table(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution(budget_usd=1) as run:
        stream = chat(openai_client, stream=True)
        (held,) = run.account.store.calls(CallState.RESERVED)
        stream.close()
    price = run.account.book.find(None, "gpt-4o")
    assert (held.call.price_source, held.call.price_date) == (price.source, price.date)


def test_block_inside_a_cap_cannot_allow_what_the_cap_refuses(provider: FakeProvider, openai_client: Any) -> None:
    def ask(model: str) -> None:
        openai_client.chat.completions.create(model=model, messages=PROMPT, max_tokens=200)

    with wflo_nb.execution(budget_usd=1), wflo_nb.execution(unknown_models="allow"), pytest.raises(UnknownModelError):
        ask("nobody-knows-it")
    free = {"gpt-4o": {"input": 0, "output": 0}}
    with pytest.raises(BudgetExceededError), wflo_nb.execution(budget_usd=0), wflo_nb.execution(prices=free):
        ask("gpt-4o")
    assert provider.requests == 0
    with wflo_nb.execution(), wflo_nb.execution(budget_usd=0, unknown_models="allow", prices=free):  # nothing around it is capped
        ask("nobody-knows-it")
        ask("gpt-4o")
    assert provider.requests == 2


def test_cap_holds_by_its_own_prices_and_by_those_that_a_block_inside_it_declares(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=200)
    cheap, dear = ({"gpt-4o": {"input": usd, "output": usd}} for usd in ("0.01", 100))
    with (
        pytest.raises(BudgetExceededError) as caught,
        wflo_nb.execution("outer", budget_usd="0.02") as outer,
        wflo_nb.execution(prices=cheap) as inner,
    ):
        while True:
            chat(openai_client)
    assert outer.figures().spent_nano == inner.figures().spent_nano == provider.spent_nano <= 20_000_000
    assert caught.value.bound.price_source != "declared"
    with wflo_nb.execution("outer", budget_usd=1) as outer, wflo_nb.execution(prices=dear) as inner:
        chat(openai_client)
        price = inner.account.price(None, "gpt-4o")
    assert price.source == "declared" and outer.figures().spent_nano > 200 * 100_000


@pytest.mark.parametrize("rates", [3, (1, 2), {"inpt": 1, "output": 2}, {"input": 1}])
def test_a_price_of_another_shape_says_how_to_write_one(rates: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"of mine is not understood. Write prices=\{'mine': \{'input'"):
        wflo_nb.execution("shape", prices={"mine": rates}).__enter__()


def test_run_without_a_budget_cannot_be_given_one_later() -> None:
    with wflo_nb.execution() as run, pytest.raises(ConfigurationError, match="started without a budget"):
        run.set_budget(5)


@pytest.mark.parametrize("nano", [-5, True, 1.5, "x", 2**63])
def test_budget_that_is_no_whole_number_of_nano_dollars_is_not_set(nano: Any) -> None:
    with wflo_nb.execution(budget_usd=1) as run:
        with pytest.raises(ConfigurationError, match="whole number of nano-USD"):
            run.set_budget(nano)
        run.set_budget(7)
        assert run.account.store.budget(run.id).cap_nano == 7


@pytest.mark.parametrize(
    ("extra", "at"),
    [
        ({"service_tier": "priority"}, {"service_tier": "priority"}),
        ({"service_tier": "default"}, {}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, {}),
    ],
)
def test_call_that_broke_is_reconciled_at_the_tier_that_it_asked_for(
    provider: FakeProvider, openai_client: Any, extra: dict[str, Any], at: dict[str, Any]
) -> None:
    provider.behave(status=500)
    usage = Usage(100_000, 1000)
    with wflo_nb.execution(budget_usd=1) as run, pytest.raises(openai.InternalServerError):
        openai_client.with_options(max_retries=0).chat.completions.create(
            **{"model": "gpt-4o", "messages": PROMPT, "max_tokens": 9, **extra}
        )
    (entry,) = unconfirmed(run.account.store)
    assert bool(entry.call.meta) is bool(at), "ordinary calls pay nothing for it"
    price = run.account.book.find(entry.call.provider, "gpt-4o")
    after = reconcile(run.account.store, entry.call.id, usage=usage)
    assert after.cost_nano == price.cost(usage, **at).nano_usd
    assert price.cost(usage, service_tier="priority").nano_usd > price.cost(usage).nano_usd


def test_most_uses_of_tools_count_where_only_tokens_are_known(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(status=500)
    tools = {"tools": [{"type": "web_search"}], "max_tool_calls": 3}
    with wflo_nb.execution(budget_usd=5) as run, pytest.raises(openai.InternalServerError):
        openai_client.with_options(max_retries=0).responses.create(model="gpt-4o", input="hi", max_output_tokens=20, **tools)
    (entry,) = unconfirmed(run.account.store)
    price = run.account.book.find(entry.call.provider, "gpt-4o")
    after = reconcile(run.account.store, entry.call.id, usage=Usage(1000, 10))
    assert after.cost_nano == price.cost(Usage(1000, 10)).nano_usd + entry.call.meta["asked"]["uses_nano"]
    assert entry.call.meta["asked"]["uses_nano"] >= 3 * 10_000_000


def test_user_is_told_once_that_the_money_decides_the_length_of_answers(provider: FakeProvider, openai_client: Any) -> None:
    with pytest.warns(WfloWarning, match="names no output limit") as told, wflo_nb.execution(budget_usd="0.1"):
        for _ in range(3):
            chat(openai_client, cap=None)
    assert len(told) == 1
    assert str(provider.bodies[0]["max_tokens"]) in str(told[0].message)
    assert told[0].filename == "wflo_nb"  # not a line of our code, which would be printed below the message


def test_answer_as_long_as_the_model_allows_needs_no_telling(provider: FakeProvider, openai_client: Any) -> None:
    with warnings.catch_warnings(), wflo_nb.execution(budget_usd=5):
        warnings.simplefilter("error")
        chat(openai_client, cap=None)
    assert provider.bodies[0]["max_tokens"] == 16_384
