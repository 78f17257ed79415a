"""Every call of the SDKs is seen, with all its tokens and its exact cost, and the user's code receives what it would have received."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT, ledger_calls, ledger_total
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime


def chat(client: Any, **extra: Any) -> Any:
    return client.chat.completions.create(model="gpt-4o-mini", messages=PROMPT, **extra)


def test_chat_is_recorded_with_every_token_class_and_the_exact_cost(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(tokens=40, reasoning=15, cache_read=1024)
    with wflo_nb.execution("t") as run:
        answer = chat(openai_client)
    (row,) = ledger_calls()
    (billed,) = provider.bill
    assert answer.usage.completion_tokens == 40
    assert row["state"] == "SETTLED"
    assert (row["provider"], row["api"], row["model"]) == ("openai", "chat", "gpt-4o-mini")
    assert row["input_tokens"] == billed.usage.input_tokens
    assert (row["output_tokens"], row["reasoning_tokens"], row["cache_read_tokens"]) == (40, 15, 1024)
    assert row["cost_nano"] == billed.nano_usd == provider.spent_nano
    assert row["execution_id"] == run.id
    assert row["price_source"]
    assert row["price_date"]
    assert row["latency_ms"] > 0
    assert row["http_status"] == 200


def test_stream_without_usage_asked_gets_recorded_and_shows_the_user_nothing_new(provider: FakeProvider, openai_client: Any) -> None:
    bare = [chunk.model_dump() for chunk in chat(openai_client, stream=True)]
    with wflo_nb.execution("t"):
        watched = [chunk.model_dump() for chunk in chat(openai_client, stream=True)]
    assert watched == bare
    (row,) = ledger_calls()
    assert row["state"] == "SETTLED"
    assert row["cost_nano"] == provider.bill[1].nano_usd
    assert row["stream"] in (True, 1)
    assert row["ttft_ms"] > 0


def test_the_streaming_helpers_of_the_sdk_are_seen(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution("t", budget_usd=1):
        with openai_client.responses.stream(model="gpt-4o-mini", input="hello") as stream:
            assert stream.get_final_response().output_text.startswith("word0 word1")
        with openai_client.chat.completions.stream(model="gpt-4o-mini", messages=PROMPT) as stream:
            assert stream.get_final_completion().choices[0].message.content.startswith("word0 word1")
    rows = ledger_calls()
    assert [(row["api"], row["state"]) for row in rows] == [("responses", "SETTLED"), ("chat", "SETTLED")]
    assert ledger_total() == provider.spent_nano


def test_raw_bytes_of_a_stream_are_the_same_with_and_without_us(provider: FakeProvider, openai_client: Any) -> None:
    def raw() -> bytes:
        with openai_client.chat.completions.with_streaming_response.create(model="gpt-4o-mini", messages=PROMPT, stream=True) as response:
            return b"".join(response.iter_bytes())

    bare = raw()
    with wflo_nb.execution("t"):
        assert raw() == bare


def test_usage_that_the_user_asked_for_stays_in_the_stream(openai_client: Any) -> None:
    with wflo_nb.execution("t"):
        chunks = list(chat(openai_client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 20


@pytest.mark.parametrize("stream", [False, True])
def test_responses_interface(provider: FakeProvider, openai_client: Any, stream: bool) -> None:
    provider.behave(cache_read=100, reasoning=5)
    with wflo_nb.execution("t"):
        answer = openai_client.responses.create(model="gpt-4o", input="hello", stream=stream)
        if stream:
            list(answer)
    (row,) = ledger_calls()
    assert (row["api"], row["cache_read_tokens"], row["reasoning_tokens"]) == ("responses", 100, 5)
    assert row["cost_nano"] == provider.spent_nano


def test_embeddings(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution("t"):
        openai_client.embeddings.create(model="text-embedding-3-small", input=["one two", "three"])
    (row,) = ledger_calls()
    assert row["cost_nano"] == provider.spent_nano > 0
    assert row["output_tokens"] in (0, None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["create", "stream", "create-stream"])
def test_anthropic_messages_with_cache_reads_and_both_kinds_of_writes(provider: FakeProvider, anthropic_client: Any, how: str) -> None:
    provider.behave(cache_read=500, cache_write=300, cache_write_1h=100)
    asked = {"model": "claude-sonnet-4-5", "max_tokens": 64, "messages": PROMPT}
    with wflo_nb.execution("t"):
        if how == "stream":
            with anthropic_client.messages.stream(**asked) as stream:
                stream.get_final_message()
        else:
            answer = anthropic_client.messages.create(**asked, stream=how == "create-stream")
            if how == "create-stream":
                list(answer)
    (row,) = ledger_calls()
    (billed,) = provider.bill
    assert row["state"] == "SETTLED"
    assert (row["cache_read_tokens"], row["cache_write_tokens"]) == (500, 300)
    assert row["input_tokens"] == billed.usage.input_tokens
    assert row["cost_nano"] == billed.nano_usd


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_async_clients_of_both_sdks(provider: FakeProvider, async_openai: Callable[[], Any]) -> None:
    from anthropic import AsyncAnthropic

    async def work() -> None:
        async with async_openai() as client, AsyncAnthropic(base_url=provider.url, api_key="x") as other, wflo_nb.execution("t"):
            await client.chat.completions.create(model="gpt-4o", messages=PROMPT)
            async for _ in await client.chat.completions.create(model="gpt-4o", messages=PROMPT, stream=True):
                pass
            await client.responses.create(model="gpt-4o", input="x")
            await client.embeddings.create(model="text-embedding-3-small", input="x")
            await other.messages.create(model="claude-sonnet-4-5", max_tokens=30, messages=PROMPT)
            async with other.messages.stream(model="claude-sonnet-4-5", max_tokens=30, messages=PROMPT) as stream:
                await stream.get_final_message()

    asyncio.run(work())
    rows = ledger_calls()
    assert [r["state"] for r in rows] == ["SETTLED"] * 6
    assert ledger_total() == provider.spent_nano


def test_calls_outside_any_execution_are_left_alone(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution("t"):
        pass
    chat(openai_client)
    assert ledger_calls() == []
    assert provider.requests == 1


def test_threads_pools_and_tasks_charge_the_execution_that_started_them(provider: FakeProvider, openai_client: Any) -> None:
    pool = ThreadPoolExecutor(2)
    pool.submit(int).result()  # a worker that is older than the execution
    with wflo_nb.execution("outer") as run:
        thread = threading.Thread(target=chat, args=(openai_client,))
        thread.start()
        thread.join()
        list(pool.map(lambda _: chat(openai_client), range(3)))

        async def work() -> None:
            await asyncio.gather(*(asyncio.to_thread(chat, openai_client) for _ in range(3)))

        asyncio.run(work())
    pool.shutdown()
    assert [r["execution_id"] for r in ledger_calls()] == [run.id] * 7


def test_late_call_of_a_thread_is_charged_to_the_execution_that_started_it(provider: FakeProvider, openai_client: Any) -> None:
    go, done = threading.Event(), threading.Event()

    def late() -> None:
        go.wait(10)
        chat(openai_client)
        done.set()

    with wflo_nb.execution("first", budget_usd=1) as first:
        threading.Thread(target=late).start()
    with wflo_nb.execution("second") as second:
        go.set()
        assert done.wait(10)
        chat(openai_client)
    assert [r["execution_id"] for r in ledger_calls()] == [first.id, second.id]


def test_each_retry_of_an_sdk_is_a_call_of_its_own(provider: FakeProvider, openai_client: Any) -> None:
    provider.next(status=429, retry_after_ms=1)
    provider.next(status=503, retry_after_ms=1, billed=True)
    with wflo_nb.execution("t"):
        chat(openai_client, max_tokens=100)
    assert [r["state"] for r in ledger_calls()] == ["RELEASED", "UNCONFIRMED", "SETTLED"]
    assert ledger_total() >= provider.spent_nano


def test_answer_of_another_model_is_priced_by_the_model_it_names(provider: FakeProvider, openai_client: Any) -> None:
    provider.behave(answered_model="gpt-4o")
    with wflo_nb.execution("t"):
        chat(openai_client)
    (row,) = ledger_calls()
    usage = provider.bill[0].usage
    assert row["answered_model"] == "gpt-4o"
    assert row["cost_nano"] == usage.input_tokens * 2500 + usage.output_tokens * 10_000


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_capture_leaves_no_trace_when_it_is_no_longer_wanted(library: str) -> None:
    http = importlib.import_module(library)

    def doors() -> list[Any]:
        return [
            http.HTTPTransport.handle_request,
            http.AsyncHTTPTransport.handle_async_request,
            threading.Thread.start,
            ThreadPoolExecutor.submit,
        ]

    before = doors()
    with wflo_nb.execution("a"), wflo_nb.execution("b"):
        assert all(now is not was for now, was in zip(doors(), before, strict=True))
    assert runtime().restore() == []
    assert doors() == before


def test_server_that_does_not_know_stream_options_is_asked_again_as_the_user_wrote(provider: FakeProvider, openai_client: Any) -> None:
    provider.next(status=400)
    with wflo_nb.execution("t"):
        assert len(list(chat(openai_client, stream=True))) > 1
    assert [("stream_options" in body) for body in provider.bodies] == [True, False]
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED"
    assert "no usage" in row["reason"]


IMPORTS_LATE = """
import sys, wflo_nb
with wflo_nb.execution("late") as run:
    from openai import OpenAI
    client = OpenAI(base_url=sys.argv[1], api_key="x")
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}], max_tokens=5)
print(run.figures().spent_nano)
"""


def test_sdk_that_is_imported_inside_the_block_is_seen(provider: FakeProvider) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS_LATE, provider.openai_url], capture_output=True, text=True, check=True)
    assert int(done.stdout) == provider.spent_nano > 0


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_plain_http_clients_of_both_libraries_are_seen_and_refused(provider: FakeProvider, library: str) -> None:
    http = importlib.import_module(library)
    ask = {"model": "gpt-4o", "messages": PROMPT, "max_tokens": 50}
    with pytest.raises(wflo_nb.BudgetExceededError), wflo_nb.execution(budget_usd="0.002") as run:
        for _ in range(9):
            assert http.post(f"{provider.openai_url}/chat/completions", json=ask).json()["usage"]["completion_tokens"] == 20
    assert 0 < provider.requests < 9
    assert run.figures().spent_nano == provider.spent_nano


def test_key_in_an_error_message_is_not_kept(provider: FakeProvider) -> None:
    key = "sk-" + "a1B2" * 10
    with pytest.raises(ValueError, match="sk-"), wflo_nb.execution("leaks") as run:
        raise ValueError(f"401 for key {key}: " + "long " * 200)
    kept = run.account.execution.error
    assert kept is not None
    assert kept["type"] == "ValueError"
    assert key not in str(kept)
    assert "401 for key [secret]" in str(kept["message"])
    assert len(str(kept["message"])) < 400
