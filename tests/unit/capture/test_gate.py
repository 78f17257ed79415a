"""What the gate makes of a request, before anything is sent."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.unit.capture import pictures
from wflo_nb.capture import bounds, exact, gate
from wflo_nb.capture.bounds import Reckoning
from wflo_nb.capture.exchange import Exchange
from wflo_nb.capture.shown import Request
from wflo_nb.errors import BudgetExceededError, UnboundedCallError, UnsupportedFormatError
from wflo_nb.store import Store, open_store
from wflo_nb.workflow.run import Run
from wflo_nb.workflow.runtime import runtime


def calls(store: Store) -> list[dict[str, Any]]:
    """Rows of llm_calls, read from the file itself."""
    store.write_out()
    database = sqlite3.connect(store.location)
    try:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM llm_calls")]
    finally:
        database.close()


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)])
def test_packed_request_is_bounded_by_what_is_in_it(tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    ask = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello world " * 1000}], "max_tokens": 1}
    body = json.dumps(ask).encode()
    store = open_store(tmp_path / "x.db")
    account = runtime().new_run("packed", budget_nano=10**12, store=store).account
    plain = gate.admit(account, Request("127.0.0.1", "/v1/chat/completions", body))
    packed = gate.admit(account, Request("127.0.0.1", "/v1/chat/completions", pack(body), encoding))
    assert plain is not None
    assert packed is not None
    assert packed.call.reserved_nano == plain.call.reserved_nano
    store.close()


def test_cap_that_is_written_fits_into_the_window_beside_the_input(tmp_path: Path) -> None:
    store = open_store(tmp_path / "x.db")
    run = runtime().new_run("window", budget_nano=10**12, store=store)
    run.account.book.declare("shared-window", input=1, output=1, max_input_tokens=8192, max_output_tokens=8192)
    for words, least in ((1, 7000), (400, 5000), (2000, 2000)):
        body = json.dumps({"model": "shared-window", "messages": [{"role": "user", "content": "word " * words}]}).encode()
        exchange = gate.admit(run.account, Request("127.0.0.1", "/v1/chat/completions", body))
        assert exchange is not None
        assert exchange.call.cap_written is not None
        assert least < exchange.call.cap_written <= 8192 - words
    store.close()


# -- what cannot be read -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    store = open_store(tmp_path / "x.db")
    yield runtime().new_run("gate", budget_nano=10**12, store=store)
    store.close()


def ask(run: Run, body: object, host: str = "api.openai.com", path: str = "/v1/chat/completions") -> Exchange:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    exchange = gate.admit(run.account, Request(host, path, raw))
    assert exchange is not None
    return exchange


HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 100}
BROKEN = b'{"model": "gpt-4o", "messages": ['
FORM = b"to=someone%40example.org&text=hello"
DEEP = b'{"model": "gpt-4o", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("path", "content", "encoding"),
    [
        ("/v1/chat/completions", BROKEN, ""),
        ("/v1/chat/completions", FORM, ""),
        ("/v1/chat/completions", DEEP, ""),
        ("/v1/chat/completions", b'{"model": "gpt-4o", "prompt": "not the format of this path"}', ""),
        ("/v1/messages", BROKEN, ""),
        ("/v1/responses", BROKEN, ""),
        ("/v1/embeddings", b"", ""),
        ("/v1/messages", gzip.compress(BROKEN)[:20], "gzip"),
        ("/v1/messages", b"whatever", "br"),
    ],
)
def test_call_that_cannot_be_read_is_refused_under_a_budget_wherever_it_goes(run: Run, path: str, content: bytes, encoding: str) -> None:
    with pytest.raises(UnsupportedFormatError, match="cannot be bounded"):
        gate.admit(run.account, Request("gateway.example", path, content, encoding))
    assert run.figures().refused == 1


@pytest.mark.parametrize("field", ["messages", "metadata"])
def test_request_nested_too_deeply_is_refused_and_holds_nothing(run: Run, field: str) -> None:
    sent = refused = 0
    for depth in (200, 450, 900, 960, 980, 5000):
        deep = b"[" * depth + '"é"'.encode() + b"]" * depth
        raw = b'{"model": "gpt-4o", "messages": [], "max_tokens": 5}'.replace(b"[]", deep) if field == "messages" else b""
        raw = raw or b'{"model": "gpt-4o", "messages": [], "stream": true, "' + field.encode() + b'": ' + deep + b"}"
        try:
            sent += ask(run, raw).call.reserved_nano
        except (UnsupportedFormatError, UnboundedCallError, RecursionError):
            refused += 1
    run.account.ledger.tidy()
    assert refused >= 1
    assert run.figures().held_nano == sent > 0


def test_call_that_cannot_be_read_is_recorded_as_unmetered_without_a_budget(tmp_path: Path) -> None:
    store = open_store(tmp_path / "y.db")
    run = runtime().new_run("free", store=store)
    assert gate.admit(run.account, Request("gateway.example", "/v1/chat/completions", BROKEN)) is None
    assert run.figures().unpriced == 1
    store.close()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v3/example.org/messages", FORM),
        ("/v3/example.org/messages", b"--boundary\r\ncontent-disposition: form-data"),
        ("/forms/7/responses", b'{"answers": [1, 2]}'),
        ("/messages", b'{"text": "hello"}'),
        ("/messages", b"[1, 2]"),
    ],
)
def test_other_services_at_the_same_paths_are_none_of_our_business(run: Run, path: str, content: bytes) -> None:
    assert gate.admit(run.account, Request("mail.example", path, content)) is None
    assert run.figures().calls == run.figures().refused == 0


# -- how a bound came about --------------------------------------------------------------------------------------------------

SECRET = "the password is swordfish"
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pictures.png(1024, 1024)}"}}
SEARCH = {"tools": [{"type": "web_search"}], "max_tool_calls": 2}
ASKS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("chat/completions", "bytes", {}, {"output_tokens": 100, "output_by": "the cap in the request", "rounds": 1}),
    ("chat/completions", "bytes", {"n": 3, "max_completion_tokens": None}, {"output_tokens": 768, "output_by": "the least worth a call"}),
    ("chat/completions", "bytes", {"model": "gpt-5.4"}, {"surcharge_mille": 1000, "tiers": "priority included"}),
    ("chat/completions", "image formula", {"messages": [{"role": "user", "content": [IMAGE]}]}, {"image_tokens": 797}),
    ("responses", "window", {"input": SECRET, **SEARCH}, {"rounds": 4, "uses": 2, "use_nano": 10_000_000, "tools": "web_search"}),
    ("responses", "window", {"input": SECRET, "conversation": "c"}, {"input_tokens": 128_000}),
    ("embeddings", "bytes", {"input": SECRET, "model": "text-embedding-3-small"}, {"output_tokens": 0}),
]


@pytest.mark.parametrize(("path", "found", "changes", "numbers"), ASKS)
@pytest.mark.parametrize("host", ["api.openai.com", "eu.api.openai.com"])
def test_refusal_carries_the_arithmetic_of_its_bound(
    tmp_path: Path, host: str, path: str, found: str, changes: dict[str, Any], numbers: dict[str, Any]
) -> None:
    store = open_store(tmp_path / "z.db")
    run = runtime().new_run("poor", budget_nano=1, store=store)
    body = {**HELLO, "messages": [{"role": "user", "content": SECRET}], "max_output_tokens": 100, **changes}
    with pytest.raises(BudgetExceededError) as caught:
        ask(run, body, host, f"/v1/{path}")
    bound = caught.value.bound
    assert isinstance(bound, Reckoning)
    assert bound.input_by == found
    assert {name: getattr(bound, name) for name in numbers} == {
        **numbers,
        **({"surcharge_mille": 1100} if numbers.get("surcharge_mille") and host != "api.openai.com" else {}),
    }
    # Anybody can reckon it again.
    tokens = bound.input_tokens * bound.input_rate_pico + bound.output_tokens * bound.output_rate_pico + bound.call_pico
    assert -(-tokens * bound.surcharge_mille // 1_000_000) + bound.uses * bound.use_nano == bound.total_nano
    assert Decimal(bound.total_nano).scaleb(-9) == caught.value.requested_usd
    assert re.fullmatch(r"(genai-prices|litellm) [\d.]+", bound.price_source)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", bound.price_date)
    # The record of the call says the same, in numbers and short words, and nothing of the request.
    (call,) = calls(store)
    assert call["state"] == "REFUSED"
    assert json.loads(call["meta"])["bound"] == bound.plain()
    assert all(isinstance(value, int | str) for value in bound.plain().values())
    assert "swordfish" not in call["meta"]
    assert pickle.loads(pickle.dumps(caught.value)).bound == bound
    store.close()


def test_call_without_a_bound_says_what_to_state_and_what_could_be_reckoned(run: Run) -> None:
    with pytest.raises(UnboundedCallError, match="state max_tool_calls") as caught:
        ask(run, {"model": "gpt-4o", "input": "x", "tools": [{"type": "web_search"}]}, path="/v1/responses")
    assert caught.value.bound.input_rate_pico == 4_250_000
    with pytest.raises(UnboundedCallError, match=r"no rate for audio is known.*wflo price gpt-4o-audio-preview"):
        audio = {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}}
        ask(run, {"model": "gpt-4o-audio-preview", "messages": [{"role": "user", "content": [audio]}]})
    run.account.book.declare("gpt-4o-audio-preview", input=40, output=80)
    assert ask(run, {"model": "gpt-4o-audio-preview", "messages": [{"role": "user", "content": [audio]}]})


def test_arithmetic_is_not_kept_for_calls_that_are_sent(run: Run) -> None:
    assert ask(run, HELLO).call.meta == {}


# -- narrower bounds ---------------------------------------------------------------------------------------------------------


def test_priority_counts_unless_the_user_says_that_no_account_defaults_to_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = ask(run, HELLO).call.reserved_nano
    named = ask(run, {**HELLO, "service_tier": "default"}).call.reserved_nano
    monkeypatch.setenv("WFLO_SERVICE_TIER", "default")
    assert usual > 1.6 * named
    assert ask(run, HELLO).call.reserved_nano < ask(run, {**HELLO, "service_tier": "auto"}).call.reserved_nano < named
    for asked in ("priority", "ultrafast"):
        assert ask(run, {**HELLO, "service_tier": asked}).call.reserved_nano > named


def test_gateway_that_the_user_names_counts_and_costs_like_its_provider(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {**HELLO, "messages": [{"role": "user", "content": [IMAGE]}]}
    unknown = ask(run, body, "llm.example.org").call
    monkeypatch.setenv("WFLO_GATEWAYS", "llm.example.org=openai")
    named = ask(run, body, "llm.example.org").call
    assert (unknown.provider, named.provider) == ("openai", "openai")
    assert named.reserved_nano < unknown.reserved_nano / 10
    with pytest.raises(UnsupportedFormatError):  # what cannot be read there may cost money, as at the provider
        gate.admit(run.account, Request("llm.example.org", "/v1/images/generations", b"{}"))


class Words:
    """A tokenizer that makes one token of every word, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def encode_ordinary(self, text: str) -> list[str]:
        self.shown.append(text)
        return text.split()


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Words:
    made = Words()
    monkeypatch.setattr(exact, "_tokenizer", lambda: made)
    return made


LONG = "many words of no great length " * 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}], "model": "gpt-4.1-2025-04-14"}),
        ("responses", {"input": LONG}),
        ("responses", {"input": [{"role": "user", "content": LONG}], "instructions": LONG}),
    ],
)
def test_texts_are_counted_exactly_only_when_their_bytes_do_not_fit(tmp_path: Path, words: Words, path: str, body: dict[str, Any]) -> None:
    store = open_store(tmp_path / "w.db")
    body = {"model": "gpt-4o", "max_completion_tokens": 100, "max_output_tokens": 100, **body}
    rich = runtime().new_run("rich", budget_nano=10**12, store=store)
    by_bytes = ask(rich, body, path=f"/v1/{path}").call.reserved_nano
    assert words.shown == []
    poor = runtime().new_run("poor", budget_nano=by_bytes - 1, store=store)
    by_words = ask(poor, body, path=f"/v1/{path}").call.reserved_nano
    assert words.shown == [LONG] * (2 if "instructions" in body else 1)
    assert by_words < by_bytes / 2
    counted = sum(len(text.split()) for text in words.shown)
    assert by_words > counted * 4_250 + 100 * 17_000 if body["model"] == "gpt-4o" else counted
    store.close()


@pytest.mark.parametrize(
    ("host", "changes"),
    [
        ("127.0.0.1", {}),  # another server may count as it likes
        ("api.openai.com", {"model": "gpt-5.4"}),  # whose tokenizer is not known
        ("api.openai.com", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]}),
    ],
)
def test_tokenizer_decides_nothing_where_it_is_not_surely_the_models(
    tmp_path: Path, words: Words, host: str, changes: dict[str, Any]
) -> None:
    store = open_store(tmp_path / "w.db")
    body = {**HELLO, "messages": [{"role": "user", "content": LONG}], **changes}
    held = ask(runtime().new_run("rich", budget_nano=10**12, store=store), body, host).call.reserved_nano
    with pytest.raises(BudgetExceededError):
        ask(runtime().new_run("poor", budget_nano=held - 1, store=store), body, host)
    assert words.shown == []
    store.close()


def test_call_that_does_not_fit_by_its_tokenizer_either_is_refused_by_its_count(tmp_path: Path, words: Words) -> None:
    store = open_store(tmp_path / "w.db")
    body = {**HELLO, "messages": [{"role": "user", "content": LONG}]}
    with pytest.raises(BudgetExceededError) as caught:
        ask(runtime().new_run("poor", budget_nano=1_000_000, store=store), body)
    assert caught.value.bound.input_by == "tokenizer"
    assert caught.value.bound.input_tokens < 3_000
    assert len(words.shown) == 1
    store.close()


class Panic(BaseException):
    """What native code raises when it gives up."""


def test_tokenizer_that_fails_leaves_the_bytes_as_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def encode_ordinary(self, _text: str) -> list[str]:
            raise Panic

    store = open_store(tmp_path / "w.db")
    monkeypatch.setattr(exact, "_tokenizer", Broken)
    with pytest.raises(BudgetExceededError) as caught:
        ask(runtime().new_run("poor", budget_nano=1, store=store), HELLO)
    assert caught.value.bound.input_by == "bytes"
    store.close()


@pytest.mark.parametrize("text", ["x" + " " * 500 + "y", "\t\n" * 3000, "word " * 250_000])
def test_texts_that_no_tokenizer_should_be_given_are_not(tmp_path: Path, words: Words, text: str) -> None:
    store = open_store(tmp_path / "w.db")
    with pytest.raises(BudgetExceededError):
        ask(runtime().new_run("poor", budget_nano=1, store=store), {**HELLO, "messages": [{"role": "user", "content": text}]})
    assert words.shown == []
    store.close()


def test_vocabulary_is_taken_from_a_file_of_the_right_content_and_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import base64
    import hashlib

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    url, data = "https://example.org/words.tiktoken", base64.b64encode(b"hello") + b" 0\n" + base64.b64encode(b" world") + b" 1\n"
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(FileNotFoundError):
        exact._vocabulary(url, digest)
    (tmp_path / hashlib.sha1(url.encode()).hexdigest()).write_bytes(data)
    assert exact._vocabulary(url, digest) == {b"hello": 0, b" world": 1}
    with pytest.raises(FileNotFoundError):
        exact._vocabulary(url, "0" * 64)


def test_request_that_cannot_be_written_again_gives_its_money_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_body: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(bounds, "encoded", fail)
    with pytest.raises(MemoryError):
        ask(run, {**HELLO, "max_completion_tokens": None})
    run.account.ledger.tidy()
    assert run.figures().held_nano == run.figures().in_flight == 0
    run.account.store.retire()  # ends of calls are on the disk a moment later
    assert [call["state"] for call in calls(run.account.store)] == ["RELEASED"]


def admitted_as_signed(run: Run, **body: object) -> Exchange:
    raw = json.dumps({"model": "gpt-4o", "messages": HELLO["messages"], "stream": True, **body}).encode()
    exchange = gate.admit(run.account, Request("api.openai.com", "/v1/chat/completions", raw, signed=True))
    assert exchange is not None
    return exchange


def test_signed_request_is_not_written_again_and_holds_the_longest_answer(run: Run) -> None:
    exchange = admitted_as_signed(run)
    assert exchange.body is None and not exchange.injected and exchange.call.cap_written is None
    assert exchange.call.reserved_nano >= 16_384 * 10_000
    assert admitted_as_signed(run, max_completion_tokens=100).call.reserved_nano < 16_384 * 10_000


def test_refusal_of_a_signed_request_reckons_with_the_longest_answer(tmp_path: Path) -> None:
    store = open_store(tmp_path / "x.db")
    with pytest.raises(BudgetExceededError) as caught:
        admitted_as_signed(runtime().new_run("poor", budget_nano=10**7, store=store))
    assert caught.value.bound.output_tokens == 16_384 and caught.value.bound.output_by == "the longest answer of the model"
    assert caught.value.bound.total_nano == caught.value.requested_usd * 10**9
    store.close()


def test_signed_request_whose_answer_may_be_of_any_length_is_refused(run: Run) -> None:
    run.account.book.declare("mine", input=1, output=1)
    with pytest.raises(UnboundedCallError, match=r"signed.*State a limit in the request"):
        admitted_as_signed(run, model="mine")
    assert admitted_as_signed(run, model="mine", max_tokens=100).call.reserved_nano > 0
