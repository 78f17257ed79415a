"""When the usage of a stream is final: only after the provider's last word, and only if nothing in the stream contradicts it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from wflo_nb.budget.account import Account
from wflo_nb.capture import gate
from wflo_nb.capture.exchange import Exchange
from wflo_nb.capture.shown import Request
from wflo_nb.model import CallState
from wflo_nb.workflow.runtime import runtime


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    from wflo_nb.store import open_store

    store = open_store(tmp_path_factory.mktemp("last-word") / "x.db")
    yield runtime().new_run("streams", budget_nano=10**15, store=store).account
    store.close()


def event(value: Any, *, null: bool = False, padded: bool = False) -> bytes:
    """One event; with `null`, as servers write it that were asked for a usage: each but the last says that it has none, at its end, or
    before what OpenAI makes all chunks of other lengths with.
    """
    if isinstance(value, bytes):
        return value
    if null and "choices" in value:
        value = {**value, "usage": value.get("usage"), **({"obfuscation": "fjE24R0"} if padded else {})}
    return b"data: " + json.dumps(value, separators=(",", ":") if null else None).encode() + b"\n\n"


def chunk(text: str = "", usage: tuple[int, int] | None = None, *, finish: str | None = None, choice: int | None = 0) -> dict[str, Any]:
    told = {} if usage is None else {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}}
    delta = {"content": text} if text else {}
    return {"model": "gpt-4o", "choices": [] if choice is None else [{"index": choice, "delta": delta, "finish_reason": finish}], **told}


DONE = b"data: [DONE]\n\n"
WORDS = [chunk("word ")] * 20
STOP = chunk(finish="stop")
USED = chunk(usage=(10, 20), choice=None)
GROWING = [chunk("word ", (10, n)) for n in range(1, 21)]


def ended(account: Account, path: str, stream: list[Any], *, how: str = "apart", left: bool = False, **more: Any) -> Exchange:
    """The call after such a stream, which came event by event (`how`: see `HOW`), in one piece, to its end or until its reader left."""
    model = "claude-sonnet-4-5" if "messages" in path else "gpt-4o"
    body = {"model": model, "messages": [], "input": "x", "max_tokens": 900, "max_output_tokens": 900, "stream": True, **more}
    body["stream_options"] = {"include_usage": True}
    exchange = gate.admit(account, Request("127.0.0.1", path, json.dumps(body).encode()))
    assert exchange is not None
    exchange.head(200, "text/event-stream", "")
    pieces = [event(one, null=how.startswith("null"), padded="padding" in how) for one in stream]
    for piece in [b"".join(pieces)] if how == "at once" else pieces:
        assert exchange.feed(piece) == piece, "the user asked for a usage"
    if left:
        exchange.closed()
    exchange.flush()
    exchange.finished()
    return exchange


CHAT = "/v1/chat/completions"
HOW = ["apart", "at once", "null usage in each", "null usage and padding in each"]
LOW = {
    "usage grows, then the connection ends": GROWING,
    "usage grows, then an error": [*GROWING, {"error": {"message": "upstream died"}}],
    "usage grows, then an error and the last word": [*GROWING, {"error": {"message": "upstream died"}}, DONE],
    "usage of the prompt first, no last word": [chunk(usage=(10, 0), choice=None), *WORDS],
    "usage first, then text and the last word": [chunk(usage=(10, 1), choice=None), *WORDS, STOP, DONE],
    "usage first, then an end that holds text": [chunk(usage=(10, 1), choice=None), chunk("all of it", finish="stop")],
    "no output for a text": [*WORDS, STOP, chunk(usage=(10, 0), choice=None), DONE],
    "a broken event": [chunk("a"), b'data: {"broken": \n\n', *WORDS, STOP, USED, DONE],
    "a broken event with braces": [chunk("a"), b'data: {"a" "b"}}{ \n\n', *WORDS, STOP, USED, DONE],
    "bytes that are no event": [chunk("a"), b"\xff\xfe garbage \n\n", *WORDS, STOP, USED, DONE],
    "usage with the end, then text": [*WORDS, chunk("word", (10, 2), finish="stop"), *WORDS, DONE],
    "usage after the end, then text": [*WORDS, STOP, USED, *WORDS * 3, DONE],
    "usage after the end, then text with braces": [*WORDS, STOP, USED, chunk("{"), DONE],
    "two usages, growing": [*WORDS, STOP, chunk(usage=(10, 2), choice=None), chunk(usage=(10, 900), choice=None), DONE],
    "two usages, shrinking": [*WORDS, STOP, chunk(usage=(10, 900), choice=None), chunk(usage=(10, 2), choice=None), DONE],
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("stream", LOW.values(), ids=LOW)
def test_usage_that_may_be_too_low_keeps_the_hold(account: Account, stream: list[Any], how: str) -> None:
    exchange = ended(account, CHAT, stream, how=how)
    assert exchange.call.state is CallState.UNCONFIRMED
    assert exchange.call.cost_nano == exchange.call.reserved_nano


def test_reader_who_leaves_after_an_early_usage_keeps_the_hold(account: Account) -> None:
    exchange = ended(account, CHAT, [chunk(usage=(10, 0), choice=None), *WORDS], left=True)
    assert exchange.call.state is CallState.UNCONFIRMED


FINAL = {
    "OpenAI": [*WORDS, STOP, USED, DONE],
    "without a last word": [*WORDS, STOP, USED],
    "without ends of choices": [*WORDS, USED, DONE],
    "Mistral: in the last chunk": [*WORDS, chunk("word", (10, 20), finish="stop"), DONE],
    "llama.cpp: beside an empty delta": [*WORDS, chunk(usage=(10, 20), finish="stop"), DONE],
    "Groq": [*WORDS, {**STOP, "x_groq": {"usage": {"prompt_tokens": 10, "completion_tokens": 20}}}, DONE],
    "Groq: with a text": [*WORDS, {**chunk("word"), "x_groq": {"usage": {"prompt_tokens": 10, "completion_tokens": 20}}}, DONE],
    "vLLM: in every chunk": [*GROWING, chunk(usage=(10, 20), finish="stop"), USED, DONE],
    "in every chunk but the end": [*GROWING, STOP, DONE],
    "before the end": [*WORDS, USED, STOP, DONE],
    "comments": [b": waiting\n\n", *WORDS, b": ping\n\n", STOP, USED, b": bye\n\n", DONE],
    "texts with braces": [chunk("{"), chunk("}}"), chunk('"usage": {'), STOP, USED, DONE],
    "Azure: a filter speaks last": [*WORDS, STOP, USED, {"model": "", "choices": [{"index": 0, "content_filter_results": {}}]}, DONE],
    "twice the same": [*WORDS, STOP, USED, USED, DONE],
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("stream", FINAL.values(), ids=FINAL)
def test_usage_after_the_last_word_is_the_cost_to_the_nano(account: Account, stream: list[Any], how: str) -> None:
    exchange = ended(account, CHAT, stream, how=how)
    assert (exchange.call.state, exchange.call.reason) == (CallState.SETTLED, None)
    assert exchange.call.cost_nano == 10 * 2_500 + 20 * 10_000


def test_several_choices_are_final_when_all_have_ended(account: Account) -> None:
    both = [chunk("a", (10, 5), choice=0), chunk("b", (10, 5), choice=1), chunk(usage=(10, 10), finish="stop", choice=0)]
    assert ended(account, CHAT, [*both, USED], n=2).call.state is CallState.UNCONFIRMED
    rest = [chunk(usage=(10, 10), finish="stop", choice=1), USED]
    assert ended(account, CHAT, [*both, *rest], n=2).call.cost_nano == 10 * 2_500 + 20 * 10_000
    assert ended(account, CHAT, [*both, rest[0]], n=2, left=True).call.state is CallState.UNCONFIRMED  # each may count its own alone


def response(kind: str, output: int | None) -> dict[str, Any]:
    usage = None if output is None else {"input_tokens": 10, "output_tokens": output, "total_tokens": 10 + output}
    return {"type": kind, "response": {"id": "r", "model": "gpt-4o", "output": [], "usage": usage}}


@pytest.mark.parametrize("left", [True, False])
def test_usage_at_the_beginning_of_a_response_is_not_its_cost(account: Account, left: bool) -> None:
    begun = [response("response.created", 0), *[{"type": "response.output_text.delta", "delta": "w "}] * 20]
    assert ended(account, "/v1/responses", begun, left=left).call.state is CallState.UNCONFIRMED
    assert ended(account, "/v1/responses", [*begun, response("response.completed", None)]).call.state is CallState.UNCONFIRMED
    assert ended(account, "/v1/responses", [*begun, response("response.completed", 20)]).call.cost_nano == 10 * 2_500 + 20 * 10_000


def test_response_that_failed_is_over_with_its_last_word(account: Account) -> None:
    body = {"model": "gpt-4o", "input": "x", "max_output_tokens": 900, "stream": True}
    exchange = gate.admit(account, Request("127.0.0.1", "/v1/responses", json.dumps(body).encode()))
    assert exchange is not None
    exchange.head(200, "text/event-stream", "")
    for kind in ("created", "in_progress", "output_text.delta", "failed"):
        told = {} if "delta" in kind else {"response": {"id": "r", "model": "gpt-4o", "usage": None}}
        exchange.feed(b"data: " + json.dumps({"type": f"response.{kind}", **told}, separators=(",", ":")).encode() + b"\n\n")
    assert exchange.call.state is CallState.UNCONFIRMED  # whether or not anybody reads or closes the rest


def message(output: int, stop: str | None = None) -> bytes:
    told = {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": output}}
    return b"event: message_delta\n" + event(told)


def test_message_is_final_when_it_says_why_it_stopped_or_that_it_did(account: Account) -> None:
    start = {"type": "message_start", "message": {"model": "claude-sonnet-4-5", "usage": {"input_tokens": 10, "output_tokens": 1}}}
    words = [b"event: content_block_delta\n" + event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "w"}})] * 9
    begun = [start, *words, message(5), *words, message(12)]
    stop = b"event: message_stop\n" + event({"type": "message_stop"})
    assert ended(account, "/v1/messages", begun).call.state is CallState.UNCONFIRMED
    assert ended(account, "/v1/messages", [start, *words, stop]).call.state is CallState.UNCONFIRMED
    for end in ([message(20, "end_turn")], [message(20, "end_turn"), message(20, "end_turn"), stop], [message(20), stop]):
        assert ended(account, "/v1/messages", [*begun, *end]).call.cost_nano == 10 * 3_000 + 20 * 15_000


def test_background_response_keeps_its_hold_and_says_what_to_do(account: Account) -> None:
    body = {"model": "gpt-4o", "input": "x", "background": True, "max_output_tokens": 900}
    exchange = gate.admit(account, Request("127.0.0.1", "/v1/responses", json.dumps(body).encode()))
    assert exchange is not None
    exchange.head(200, "application/json", "")
    exchange.feed(json.dumps({"id": "resp_1", "status": "queued", "model": "gpt-4o", "usage": None, "output": []}).encode())
    exchange.finished()
    assert exchange.call.state is CallState.UNCONFIRMED
    assert "resp_1" in (exchange.call.reason or "")


# -- formats of other providers ----------------------------------------------------------------------------------------------

GEMINI = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"


def candidate(text: str | None, usage: tuple[int, int] | None = None, *, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    told: dict[str, Any] = {"index": index, "content": {"parts": [{"text": text}]}, **({"finishReason": finish} if finish else {})}
    counts = {} if usage is None else dict(zip(("promptTokenCount", "candidatesTokenCount"), usage, strict=True))
    return {"candidates": [] if text is None else [told], **({"usageMetadata": counts} if counts else {})}


def generated(account: Account, answer: bytes, *, kind: str = "text/event-stream", count: int = 1, left: bool = False) -> Exchange:
    body = {"contents": [{"parts": [{"text": "x"}]}], "generationConfig": {"maxOutputTokens": 900, "candidateCount": count}}
    exchange = gate.admit(account, Request("generativelanguage.googleapis.com", GEMINI, json.dumps(body).encode()))
    assert exchange is not None
    exchange.head(200, kind, "")
    exchange.feed(answer)
    if left:
        exchange.closed()
    exchange.flush()
    exchange.finished()
    return exchange


SAYING = [candidate("word ", (10, n)) for n in range(1, 5)]
NOT_ENDED = {
    "no end": SAYING,
    "an error": [*SAYING, {"error": {"code": 503, "message": "overloaded"}}],
    "text after the last usage": [*SAYING, candidate("more", finish="STOP")],
    "an error after the end": [*SAYING, candidate("more", (10, 20), finish="STOP"), {"error": {"code": 503}}],
    "no output for a text": [candidate("word", (10, 0)), candidate("more", (10, 0), finish="STOP")],
}
ENDED = {
    "an end": [*SAYING, candidate("", (10, 20), finish="STOP")],
    "usage after the end": [*SAYING, candidate("more", finish="MAX_TOKENS"), candidate(None, (10, 20))],
}


@pytest.mark.parametrize("array", [False, True], ids=["events", "array"])
def test_candidates_are_final_when_each_has_said_why_it_ended(account: Account, array: bool) -> None:
    def told(stream: list[Any], **more: Any) -> Exchange:
        if array:
            return generated(account, json.dumps(stream).encode(), kind="application/json", **more)
        return generated(account, b"".join(map(event, stream)), **more)

    for name, stream in NOT_ENDED.items():
        exchange = told(stream)
        assert (exchange.call.state, exchange.call.cost_nano) == (CallState.UNCONFIRMED, exchange.call.reserved_nano), name
    for name, stream in ENDED.items():
        exchange = told(stream)
        assert exchange.call.usage is not None and exchange.call.usage.output_tokens == 20, name
        assert told(stream, count=2).call.state is CallState.UNCONFIRMED, name
        assert told(stream, left=True).call.state is CallState.UNCONFIRMED, name
    both = [candidate("a", (10, 5), finish="STOP"), candidate("b", (10, 20), finish="STOP", index=1)]
    assert told(both, count=2).call.state is CallState.SETTLED
    refused = told([{"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 10}}])
    assert refused.call.usage is not None and refused.call.usage.output_tokens == 0


def test_usage_of_cohere_counts_at_the_end_of_its_stream(account: Account) -> None:
    units = {"usage": {"billed_units": {"input_tokens": 10, "output_tokens": 20}}}
    text = {"type": "content-delta", "delta": {"message": {"content": {"text": "word"}}}}
    early = {"type": "message-start", "delta": {"usage": {"billed_units": {"input_tokens": 10, "output_tokens": 1}}}}
    end = {"type": "message-end", "delta": {"finish_reason": "COMPLETE", **units}}
    account.book.declare("command-test", input=1, output=1)
    for stream, state in (([early, text], "UNCONFIRMED"), ([early, text, b"nonsense\n\n", end], "UNCONFIRMED"), ([text, end], "SETTLED")):
        body = {"model": "command-test", "messages": [{"role": "user", "content": "x"}], "max_tokens": 900, "stream": True}
        exchange = gate.admit(account, Request("api.cohere.com", "/v2/chat", json.dumps(body).encode()))
        assert exchange is not None
        exchange.head(200, "text/event-stream", "")
        for one in stream:
            exchange.feed(event(one))
        exchange.finished()
        assert exchange.call.state == state
