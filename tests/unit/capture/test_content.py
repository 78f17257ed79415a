"""What a call asks and answers, as messages of the GenAI conventions: text, calls of tools, endings, and nothing that is secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.capture.test_payloads import ANSWERED, load
from wflo_nb import events
from wflo_nb.capture import content, formats
from wflo_nb.events import CallContent


@pytest.fixture(autouse=True)
def told() -> Iterator[list[CallContent]]:
    found: list[CallContent] = []
    undo = events.follow_content(found.append)
    yield found
    undo()
    assert not events.readers


def ask(path: str, body: dict[str, Any], *answers: Any) -> None:
    format = next(one for one in formats.all_at(path) if one.recognises(body))
    content.tell("call-1", format, body, answers)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "content": words}


@pytest.mark.parametrize("name", [name for name in ANSWERED if "said" in load(name).meta])
def test_answers_of_every_format_are_messages(name: str, told: list[CallContent]) -> None:
    case = load(name)
    answers = case.response if isinstance(case.response, list) else [case.response]
    content.tell("call-1", case.format(), case.request, answers)
    (found,) = told
    assert found.asked and all(message["parts"] for message in found.asked)
    assert "\n\n".join(p["content"] for m in found.answered for p in m["parts"] if p["type"] == "text") == case.meta["said"]
    assert {message["role"] for message in found.answered} == {"assistant"}
    json.dumps([found.instructions, found.asked, found.answered])


CALL = {"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Rome"}}
RESULT = {"type": "tool_call_response", "id": "c1", "response": "sunny"}
QUESTION = {"role": "user", "parts": [text("How is it in Rome?")]}
ASKED = [QUESTION, {"role": "assistant", "parts": [CALL]}, {"role": "tool", "parts": [RESULT]}]
ANSWERED_BY_A_CALL = [{"role": "assistant", "parts": [CALL], "finish_reason": "tool_call"}]

OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TOOLS: dict[str, tuple[str, dict[str, Any], list[Any], list[Any], str]] = {
    "chat": (
        "/v1/chat/completions",
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "How is it in Rome?"},
                {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            ],
        },
        [
            {
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
                        "finish_reason": "tool_calls",
                    }
                ]
            }
        ],
        [
            {
                "choices": [
                    {"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}]}}
                ]
            },
            {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        ],
        "tool",
    ),
    "responses": (
        "/v1/responses",
        {
            "model": "m",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "How is it in Rome?"}]},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'},
                {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            ],
        },
        [
            {
                "object": "response",
                "status": "completed",
                "output": [{"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'}],
            }
        ],
        [
            {"type": "response.created", "response": {"object": "response", "status": "in_progress", "output": []}},
            {
                "type": "response.completed",
                "response": {
                    "object": "response",
                    "status": "completed",
                    "output": [{"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'}],
                },
            },
        ],
        "tool",
    ),
    "messages": (
        "/v1/messages",
        {
            "model": "m",
            "max_tokens": 9,
            "messages": [
                {"role": "user", "content": "How is it in Rome?"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}]},
            ],
        },
        [
            {
                "type": "message",
                "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}}],
                "stop_reason": "tool_use",
            }
        ],
        [
            {"type": "message_start", "message": {"content": []}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "c1", "name": "weather", "input": {}}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"city": '}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '"Rome"}'}},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        ],
        "user",
    ),
    "gemini": (
        "/v1beta/models/m:generateContent",
        {
            "contents": [
                {"role": "user", "parts": [{"text": "How is it in Rome?"}]},
                {"role": "model", "parts": [{"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Rome"}}}]},
                {"role": "user", "parts": [{"functionResponse": {"id": "c1", "name": "weather", "response": "sunny"}}]},
            ]
        },
        [
            {
                "candidates": [
                    {
                        "content": {"parts": [{"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Rome"}}}]},
                        "finishReason": "TOOL_CALL",
                    }
                ]
            }
        ],
        [],
        "user",
    ),
    "converse": (
        "/model/m/converse",
        {
            "messages": [
                {"role": "user", "content": [{"text": "How is it in Rome?"}]},
                {"role": "assistant", "content": [{"toolUse": {"toolUseId": "c1", "name": "weather", "input": {"city": "Rome"}}}]},
                {"role": "user", "content": [{"toolResult": {"toolUseId": "c1", "content": "sunny"}}]},
            ]
        },
        [
            {
                "output": {"message": {"content": [{"toolUse": {"toolUseId": "c1", "name": "weather", "input": {"city": "Rome"}}}]}},
                "stopReason": "tool_use",
            }
        ],
        [
            {"contentBlockStart": {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "c1", "name": "weather"}}}},
            {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"toolUse": {"input": '{"city": "Rome"}'}}}},
            {"messageStop": {"stopReason": "tool_use"}},
        ],
        "user",
    ),
    "cohere": (
        "/v2/chat",
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "How is it in Rome?"},
                {"role": "assistant", "tool_calls": [OPENAI_CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            ],
        },
        [{"message": {"role": "assistant", "tool_calls": [OPENAI_CALL]}, "finish_reason": "TOOL_CALL"}],
        [
            {
                "type": "tool-call-start",
                "index": 0,
                "delta": {"message": {"tool_calls": {"id": "c1", "function": {"name": "weather", "arguments": ""}}}},
            },
            {"type": "tool-call-delta", "index": 0, "delta": {"message": {"tool_calls": {"function": {"arguments": '{"city": "Rome"}'}}}}},
            {"type": "message-end", "delta": {"finish_reason": "TOOL_CALL"}},
        ],
        "tool",
    ),
}


@pytest.mark.parametrize("name", TOOLS)
def test_calls_of_tools_are_told_in_whole_answers_and_in_streams(name: str, told: list[CallContent]) -> None:
    path, body, whole, stream, role = TOOLS[name]
    ask(path, body, *whole)
    assert told[0].asked == [*ASKED[:2], {**ASKED[2], "role": role}]
    assert told[0].answered == ANSWERED_BY_A_CALL
    if stream:
        ask(path, body, *stream)
        assert told[1].answered == ANSWERED_BY_A_CALL


def test_what_looks_like_a_key_or_stands_under_the_name_of_one_is_taken_out(
    told: list[CallContent], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, password, known = "sk-" + "a1B2" * 10, "of no special shape", "what-only-this-process-knows"
    monkeypatch.setenv("TEAM_PASSWORD", known)
    arguments = json.dumps({"password": password, "query": f"use {key}"})
    call = {"id": "c1", "type": "function", "function": {"name": "login", "arguments": arguments}}
    messages = [
        {"role": "system", "content": f"Your key is {key}."},
        {"role": "user", "content": f"It is {known}."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": f"welcome {key}"},
    ]
    answer = {"choices": [{"index": 0, "message": {"content": f"I used {key}.", "tool_calls": [call]}, "finish_reason": "stop"}]}
    ask("/v1/chat/completions", {"model": "m", "messages": messages}, answer)
    (found,) = told
    said = json.dumps([found.asked, found.answered])
    assert not [secret for secret in (key, password, known) if secret in said]
    assert found.asked[0]["parts"] == [text("Your key is [secret].")]
    assert found.asked[2]["parts"][0]["arguments"] == {"password": "[secret]", "query": "use [secret]"}
    assert found.answered[0]["parts"][0] == text("I used [secret].")


def test_instructions_stand_beside_the_conversation_and_pictures_are_only_named(told: list[CallContent]) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    body = {"model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "Be brief."}]}
    ask("/v1/messages", {**body, "messages": [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]})
    (found,) = told
    assert found.instructions == [text("Be brief.")]
    assert found.asked == [{"role": "user", "parts": [{"type": "image"}, text("What is it?")]}]
    assert found.answered == []


def test_long_conversations_keep_their_end(told: list[CallContent]) -> None:
    messages = [{"role": "user", "content": str(number) * 10_000} for number in range(9)]
    ask("/v1/chat/completions", {"model": "m", "messages": messages})
    (found,) = told
    assert [message["parts"][0]["content"][0] for message in found.asked] == ["4", "5", "6", "7", "8"]
    assert found.left_out == 4


@pytest.mark.parametrize(
    "junk", [None, 3, "x", [], {}, [[]], [None], {"a": {"b": []}}, [{"role": 3, "content": {"x": 1}}], [{"content": [[1]]}]]
)
def test_bodies_of_any_shape_harm_nobody_and_are_quoted_in_no_log(
    junk: Any, told: list[CallContent], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    chat, bodies = formats.find("/v1/chat/completions"), [{"messages": junk, "private": "words"}, {"input": junk}, {"system": junk}]
    assert chat is not None
    for body in bodies:
        content.tell("call-1", chat, body, [junk, {"choices": junk}, {"candidates": junk}, {"message": junk}, {"type": junk}])
    assert "words" not in caplog.text
    assert len(told) + caplog.text.count("could not be read") == len(bodies)


def test_reader_that_fails_harms_nobody_and_is_told_without_what_it_read(caplog: pytest.LogCaptureFixture) -> None:
    def fail(found: CallContent) -> None:
        raise ValueError(str(found))

    undo = events.follow_content(fail)
    ask("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "private words"}]})
    undo()
    assert "failed (ValueError)" in caplog.text
    assert "private words" not in caplog.text
