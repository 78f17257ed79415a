"""Only what is known to be text is bounded by its bytes, only what is known to be a cap bounds an answer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wflo_nb.capture import formats, gate
from wflo_nb.capture.formats.base import Facts
from wflo_nb.capture.shown import Request
from wflo_nb.errors import UnboundedCallError
from wflo_nb.store import open_store
from wflo_nb.workflow.run import Run
from wflo_nb.workflow.runtime import runtime

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def read(path: str, **body: Any) -> Facts:
    format = formats.find(path)
    assert format is not None
    return format.read({"model": "claude-sonnet-4-5" if path == MESSAGES else "gpt-4o", **body})


def given(path: str, *parts: Any) -> Facts:
    said = [{"role": "user", "content": [{"type": "text" if path != RESPONSES else "input_text", "text": "sum it up"}, *parts]}]
    return read(path, **{"input" if path == RESPONSES else "messages": said})


URL = "https://example.org/a"
ELSEWHERE = [
    {"type": "document_url", "document_url": URL},
    {"type": "pdf", "url": URL},
    {"type": "web_page", "url": URL},
    {"image": URL},
    {"document": URL},
    {"url": URL},
    {"type": None, "pdf": URL},
    {"type": "image_url", "image_url": {"url": URL}},
    {"type": "video_url", "video_url": {"url": URL}},
    {"type": "input_audio", "input_audio": {"data": "QUJD"}},
]


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("part", ELSEWHERE, ids=json.dumps)
def test_part_that_is_not_known_to_be_text_is_bounded_by_the_window(path: str, part: dict[str, Any]) -> None:
    facts = given(path, part)
    assert facts.window
    assert facts.media
    assert facts.audio is any(sound in json.dumps(part) for sound in ("audio", "video"))


@pytest.mark.parametrize("item", [{"id": "msg_1"}, {"type": "item_reference", "id": "msg_1"}, {"type": "compaction", "id": "c"}])
def test_item_that_only_names_what_the_provider_keeps_is_bounded_by_the_window(item: dict[str, Any]) -> None:
    assert read(RESPONSES, input=[{"role": "user", "content": "hi"}, item]).window


def test_part_of_unknown_kind_is_refused_where_no_window_is_known(tmp_path: Path) -> None:
    store = open_store(tmp_path / "x.db")
    run = runtime().new_run("unknown", budget_nano=10**12, store=store)
    run.account.book.declare("windowless", input=1, output=1)
    body = {
        "model": "windowless",
        "messages": [{"role": "user", "content": [{"type": "document_url", "document_url": URL}]}],
        "max_tokens": 9,
    }
    with pytest.raises(UnboundedCallError, match="document_url"):
        gate.admit(run.account, Request("127.0.0.1", CHAT, json.dumps(body).encode()))
    store.close()


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"type": "pdf"}'}}
TEXTS: list[tuple[str, list[dict[str, Any]]]] = [
    (CHAT, [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c", "content": "x"}]),
    (CHAT, [{"role": "assistant", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}], "refusal": None}]),
    (CHAT, [{"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}, {"text": "x"}]}]),
    (CHAT, [{"role": "assistant", "content": "x", "reasoning_details": [{"type": "reasoning.text", "text": "x"}]}]),
    (CHAT, [{"role": "assistant", "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}]}]),
    (
        RESPONSES,
        [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": [{"type": "url"}]}]}],
    ),
    (RESPONSES, [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]),
    (RESPONSES, [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]}]),
    (RESPONSES, [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}], "encrypted_content": "x"}]),
    (MESSAGES, [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"type": "pdf", "image": 1}}]}]),
    (MESSAGES, [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]}]}]),
    (MESSAGES, [{"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "x"}]}]),
    (MESSAGES, [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}]),
]


@pytest.mark.parametrize(("path", "said"), TEXTS)
def test_texts_tools_and_thoughts_stay_bounded_by_their_bytes(path: str, said: list[dict[str, Any]]) -> None:
    facts = read(path, **{"input" if path == RESPONSES else "messages": said})
    assert (facts.window, facts.media) == (None, False)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("field", ["enable_search", "web_search_options", "search_parameters", "plugins", "enable_web_search"])
def test_field_that_makes_the_provider_search_has_no_bound(path: str, field: str) -> None:
    assert read(path, messages=[], input="x", **{field: {"x": 1}}).unbounded
    assert read(path, messages=[], input="x", **{field: False}).unbounded is None


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_compaction_has_no_bound(path: str) -> None:
    assert read(path, messages=[], input="x", context_management=[{"type": "compaction", "compact_threshold": 1000}]).unbounded


def test_skills_bring_instructions_that_are_not_in_the_request() -> None:
    assert read(MESSAGES, messages=[], container={"skills": [{"type": "anthropic", "skill_id": "pptx"}]}).window


# -- caps --------------------------------------------------------------------------------------------------------------------

CAPS = [
    (CHAT, {"max_completion_tokens": 10, "max_tokens": 99999.0}, 99999),
    (CHAT, {"max_completion_tokens": 10, "max_tokens": "5000"}, 5000),
    (CHAT, {"max_completion_tokens": 10, "max_tokens": "5e3"}, 5000),
    (CHAT, {"max_completion_tokens": 10, "max_tokens": -1}, None),
    (CHAT, {"max_completion_tokens": 10, "max_tokens": "all"}, None),
    (CHAT, {"max_tokens": 10, "max_output_tokens": 50_000}, 50_000),
    (CHAT, {"max_tokens": 10, "max_tokens_to_sample": 50_000}, 50_000),
    (CHAT, {"max_output_tokens": 10}, None),
    (CHAT, {"max_tokens": 10, "max_output_tokens": None}, 10),
    (RESPONSES, {"max_output_tokens": 10, "max_tokens": 50_000}, 50_000),
    (RESPONSES, {"max_output_tokens": 1e3}, 1000),
    (MESSAGES, {"max_tokens": 1e5}, 100_000),
    (MESSAGES, {"max_tokens": 10, "max_tokens_to_sample": 10_000}, 10_000),
]


@pytest.mark.parametrize(("path", "caps", "most"), CAPS)
def test_every_cap_that_travels_along_counts(path: str, caps: dict[str, Any], most: int | None) -> None:
    assert read(path, messages=[], input="x", **caps).cap == most


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    store = open_store(tmp_path / "x.db")
    yield runtime().new_run("caps", budget_nano=10**8, store=store)
    store.close()


@pytest.mark.filterwarnings("ignore::wflo_nb.errors.WfloWarning")
@pytest.mark.parametrize(
    ("caps", "left"),
    [({"max_output_tokens": 10}, {"max_output_tokens": 10}), ({"max_tokens": -1, "max_new_tokens": 10**9, "n_predict": -1}, {})],
)
def test_no_larger_cap_is_left_beside_the_one_that_is_written(run: Run, caps: dict[str, Any], left: dict[str, Any]) -> None:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], **caps}
    exchange = gate.admit(run.account, Request("127.0.0.1", CHAT, json.dumps(body).encode()))
    assert exchange is not None
    assert exchange.body is not None
    written = exchange.call.cap_written
    expected = dict.fromkeys(caps, written) | {"max_tokens": written} | left
    assert {name: value for name, value in json.loads(exchange.body).items() if name not in ("model", "messages")} == expected


# -- formats of other providers ----------------------------------------------------------------------------------------------

GEMINI, CONVERSE = "/v1beta/models/gemini-2.5-pro:generateContent", "/model/anthropic.claude-sonnet-4-5-v1:0/converse"
COHERE, OLLAMA = "/v2/chat", "/api/chat"


def read_at(path: str, **body: Any) -> Facts:
    format = formats.find(path)
    assert format is not None
    return format.read({"model": "m", **body}, None, path)


def parts_at(path: str, *parts: Any) -> Facts:
    if path == GEMINI:
        return read_at(path, contents=[{"role": "user", "parts": [{"text": "sum it up"}, *parts]}])
    text = {"text": "sum it up"} | ({"type": "text"} if path == COHERE else {})
    return read_at(path, messages=[{"role": "user", "content": [text, *parts]}])


OTHERS = [
    (GEMINI, {"webPage": {"uri": URL}}),
    (GEMINI, {"file_data": {"mime_type": "application/pdf", "file_uri": URL}}),
    (GEMINI, {"functionResponse": {"name": "f", "response": {}, "parts": [{"page": URL}]}}),
    (CONVERSE, {"webPage": {"url": URL}}),
    (CONVERSE, {"toolResult": {"toolUseId": "t", "content": [{"page": URL}]}}),
    (COHERE, {"type": "web_page", "web_page": URL}),
]


@pytest.mark.parametrize(("path", "part"), OTHERS, ids=json.dumps)
def test_part_of_unknown_kind_is_bounded_by_the_window_at_other_providers_too(path: str, part: dict[str, Any]) -> None:
    assert parts_at(path, part).window


KNOWN = [
    (GEMINI, {"text": "x", "thought": True, "thought_signature": "x"}),
    (GEMINI, {"functionCall": {"name": "f", "args": {"parts": [{"name": "bolt"}]}}}),
    (GEMINI, {"function_response": {"name": "f", "response": {"parts": [{"name": "bolt"}]}}}),
    (GEMINI, {"executableCode": {"language": "PYTHON", "code": "1"}}),
    (CONVERSE, {"toolUse": {"toolUseId": "t", "name": "f", "input": {"content": [{"page": 1}], "image": {}}}}),
    (CONVERSE, {"toolResult": {"toolUseId": "t", "content": [{"json": {"content": [{"page": 1}]}}, {"text": "x"}]}}),
    (CONVERSE, {"cachePoint": {"type": "default"}}),
    (CONVERSE, {"reasoningContent": {"reasoningText": {"text": "x", "signature": "x"}}}),
    (COHERE, {"type": "thinking", "thinking": "x"}),
]


@pytest.mark.parametrize(("path", "part"), KNOWN, ids=json.dumps)
def test_text_of_other_providers_stays_bounded_by_its_bytes(path: str, part: dict[str, Any]) -> None:
    assert parts_at(path, part).window is None


OTHER_CAPS = [
    (GEMINI, {"generationConfig": {"maxOutputTokens": "500"}}, 500),
    (GEMINI, {"generationConfig": {"maxOutputTokens": 10, "max_output_tokens": 500}}, 500),
    (GEMINI, {"generationConfig": {"maxOutputTokens": -1}}, None),
    (CONVERSE, {"inferenceConfig": {"maxTokens": 10}, "additionalModelRequestFields": {"max_tokens": 5e2}}, 500),
    (CONVERSE, {"inferenceConfig": {"maxTokens": 10}, "additionalModelRequestFields": {"max_tokens": -1}}, None),
    (CONVERSE, {"inferenceConfig": {"maxTokens": 10}, "additionalModelRequestFields": {"top_k": 1}}, 10),
    (COHERE, {"max_tokens": 10, "max_output_tokens": 500}, 500),
    (OLLAMA, {"options": {"num_predict": 500.0}}, 500),
    (OLLAMA, {"options": {"num_predict": -1}}, None),
    ("/v1/completions", {"max_tokens": 10, "n_predict": 500}, 500),
]


@pytest.mark.parametrize(("path", "body", "most"), OTHER_CAPS)
def test_every_cap_counts_at_other_providers_too_and_ours_is_the_largest_once_written(
    path: str, body: dict[str, Any], most: int | None
) -> None:
    format = formats.find(path)
    assert format is not None
    assert format.read({"model": "m", **body}, None, path).cap == most
    capped = copy.deepcopy({"model": "m", **body})
    format.write_cap(capped, 7, "llm.example.org")
    assert format.read(capped, None, path).cap == 7
