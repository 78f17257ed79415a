from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wflo_nb.capture import formats
from wflo_nb.capture.formats.base import Answer
from wflo_nb.model import Usage

CHAT = formats.find("/v1/chat/completions")
RESPONSES = formats.find("/v1/responses")
MESSAGES = formats.find("/v1/messages")
assert CHAT is not None
assert RESPONSES is not None
assert MESSAGES is not None


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("api.openai.com", "openai"),
        ("eu.api.openai.com", "openai"),
        ("my.openai.azure.com", "azure.ai.openai"),
        ("bedrock-runtime.us-east-1.amazonaws.com", "aws.bedrock"),
        ("api.openai.com.evil.example", None),
        ("127.0.0.1", None),
    ],
)
def test_provider_is_known_by_the_end_of_its_host(host: str, provider: str | None) -> None:
    assert formats.provider_of(host) == provider


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("api.openai.com", (False, False)),
        ("eu.api.openai.com", (True, True)),
        ("US-east5-aiplatform.googleapis.com.", (True, True)),
        ("us-east5-aiplatform.mtls.googleapis.com", (True, True)),
        ("aiplatform.eu.rep.googleapis.com", (True, True)),
        ("aiplatform.googleapis.com", (False, True)),
        ("aiplatform.mtls.googleapis.com", (False, True)),
        ("us-east5-aiplatform.googleapis.com.evil.example", (False, True)),
        ("generativelanguage.googleapis.com", (False, True)),
        ("127.0.0.1", (False, True)),
    ],
)
def test_regional_surcharge_is_known_by_the_host(host: str, region: tuple[bool, bool]) -> None:
    assert formats.region_of(host) == region


@pytest.mark.parametrize("path", ["/openai/deployments/x/chat/completions", "/api/v1/chat/completions", "/chat/completions/"])
def test_format_is_found_by_the_end_of_the_path(path: str) -> None:
    assert formats.find(path) is CHAT


def test_largest_cap_counts_when_several_are_stated() -> None:
    assert CHAT.read({"model": "m", "max_tokens": 10, "max_completion_tokens": 500, "messages": []}).cap == 500


@pytest.mark.parametrize("cap", [0, -5, "many", "", "1e999", True, None, 3.5, [5]])
def test_cap_that_is_no_positive_count_is_no_cap(cap: object) -> None:
    assert CHAT.read({"model": "m", "max_tokens": cap, "messages": []}).cap is None


@pytest.mark.parametrize("field", ["previous_response_id", "conversation", "prompt"])
def test_context_kept_at_the_provider_needs_the_whole_window(field: str) -> None:
    assert RESPONSES.read({"model": "m", "input": "x", field: "abc"}).window


def test_anthropic_stream_adds_both_sides_and_counts_growing_output_once() -> None:
    answer = Answer(streaming=True)
    start = {"input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3, "output_tokens": 1}
    MESSAGES.fold(answer, {"type": "message_start", "message": {"model": "claude-x", "usage": start}})
    assert answer.usage() is None
    MESSAGES.fold(answer, {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 7}})
    MESSAGES.fold(answer, {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 12}})
    assert answer.usage() == Usage(18, 12, 5, 3)
    assert answer.truncated
    assert answer.model == "claude-x"


def test_chat_usage_that_grows_in_every_chunk_is_final_only_at_the_end() -> None:
    answer = Answer(streaming=True)
    CHAT.fold(answer, {"choices": [{"index": 0}], "usage": {"prompt_tokens": 4, "completion_tokens": 1}})
    assert answer.usage() is None
    CHAT.fold(answer, {"choices": [{"index": 0, "finish_reason": "stop"}], "usage": {"prompt_tokens": 4, "completion_tokens": 9}})
    assert answer.usage() == Usage(4, 9)


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": "4"}, {"prompt_tokens": -1}, {"prompt_tokens": True}, {"completion_tokens": 4}, {"prompt_tokens": 1.5}]
)
def test_usage_that_is_no_count_is_a_problem_and_never_a_zero(usage: dict[str, Any]) -> None:
    answer = Answer()
    CHAT.fold(answer, {"choices": [], "usage": usage})
    assert answer.usage() is None
    assert answer.problem


def test_usage_is_asked_for_once_and_only_in_streams() -> None:
    body: dict[str, Any] = {"stream": True, "stream_options": {"x": 1}}
    assert CHAT.ask_usage(body)
    assert body["stream_options"] == {"x": 1, "include_usage": True}
    assert not CHAT.ask_usage(body)
    assert not CHAT.ask_usage({"stream": False})


def test_cap_that_could_not_be_read_does_not_overrule_the_one_that_is_written() -> None:
    for host in ("api.openai.com", "127.0.0.1"):
        body: dict[str, Any] = {"max_completion_tokens": 4000.0, "max_tokens": None}
        CHAT.write_cap(body, 300, host)
        assert list(body.values()) == [300]


def test_only_the_event_that_brings_usage_is_extra() -> None:
    azure_filter_results = b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}],"usage":null}\n\n'
    assert not CHAT.is_extra(azure_filter_results)
    assert CHAT.is_extra(b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n')


def test_reasoning_that_is_reported_beside_the_output_is_paid_output() -> None:
    beside, within = Answer(), Answer()
    reasoning = {"completion_tokens_details": {"reasoning_tokens": 94}}
    CHAT.fold(beside, {"choices": [], "usage": {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135, **reasoning}})
    CHAT.fold(within, {"choices": [], "usage": {"prompt_tokens": 32, "completion_tokens": 103, "total_tokens": 135, **reasoning}})
    assert beside.usage() == within.usage() == Usage(32, 103, reasoning_tokens=94)


# -- usage that cannot all be true -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "why"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 14}, "14 tokens in total"),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": "15"}, "total_tokens"),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": -1}, "in total"),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 11}}, "11 cached tokens of 10"),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 5}},
            "11 cached tokens of 10",
        ),
        ({"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 6}}, "6 reasoning tokens of 5"),
        ({"prompt_tokens": 0, "completion_tokens": 5}, "no input tokens"),
        ({"prompt_tokens": 10, "completion_tokens": -5}, "-5"),
        ({"prompt_tokens": 10.0, "completion_tokens": 5}, "10.0"),
        ({"prompt_tokens": 10, "completion_tokens": "5"}, "'5'"),
        ({"prompt_tokens": 10, "completion_tokens": 10**30}, "output_tokens"),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": "none"}}, "cache_read_tokens='none'"),
    ],
)
def test_usage_that_contradicts_itself_is_not_believed(usage: dict[str, Any], why: str) -> None:
    answer = Answer()
    CHAT.fold(answer, {"choices": [], "usage": usage})
    assert answer.usage() is None
    assert why in (answer.problem or "")


@pytest.mark.parametrize(
    ("usage", "why"),
    [
        ({"input_tokens": 0, "output_tokens": 5}, "no input tokens"),
        ({"input_tokens": -1, "output_tokens": 5, "cache_read_input_tokens": 9}, "input_tokens=-1"),
        ({"input_tokens": 5, "output_tokens": 5, "cache_creation": {"ephemeral_1h_input_tokens": 9}}, "9 one-hour cache writes of 0"),
        ({"input_tokens": 5, "output_tokens": None}, ""),
    ],
)
def test_anthropic_usage_that_contradicts_itself_is_not_believed(usage: dict[str, Any], why: str) -> None:
    answer = Answer()
    MESSAGES.fold(answer, {"usage": usage})
    assert answer.usage() is None
    assert why in (answer.problem or "")


def test_empty_input_is_believed_where_nothing_costs_anything() -> None:
    answer = Answer(paid=False)
    CHAT.fold(answer, {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 5}})
    assert answer.usage() == Usage(0, 5)


def test_cached_input_of_anthropic_stands_beside_the_input_and_is_no_contradiction() -> None:
    answer = Answer()
    MESSAGES.fold(answer, {"usage": {"input_tokens": 0, "output_tokens": 5, "cache_read_input_tokens": 900}})
    assert answer.usage() == Usage(900, 5, 900)


@pytest.mark.parametrize("order", [(1, 1), (None, 1), (1, None), (1, None, 1)])
def test_usage_sent_twice_or_null_first_counts_once(order: tuple[int | None, ...]) -> None:
    answer = Answer(streaming=True, finished={0})
    for there in order:
        CHAT.fold(answer, {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5} if there else None})
    assert answer.usage() == Usage(10, 5)


def test_usage_that_shrinks_counts_at_its_largest() -> None:
    answer = Answer(streaming=True)
    for read, written in ((10, 5), (8, 7)):
        choice = {"index": 0, "finish_reason": "stop"}
        CHAT.fold(answer, {"choices": [choice], "usage": {"prompt_tokens": read, "completion_tokens": written}})
    assert answer.usage() == Usage(10, 7)


@pytest.mark.parametrize(
    ("given", "bounded"), [("text", True), (["a", "b"], True), ([1, 2], True), ([[1, 2]], True), ([{"image": "https://x"}], False)]
)
def test_embeddings_of_something_else_than_text_have_no_bound(given: Any, bounded: bool) -> None:
    embeddings = formats.find("/v1/embeddings")
    assert embeddings is not None
    assert (embeddings.read({"model": "m", "input": given}).unbounded is None) is bounded


def test_embeddings_total_counts_where_it_is_larger() -> None:
    embeddings = formats.find("/v1/embeddings")
    assert embeddings is not None
    answer = Answer()
    embeddings.fold(answer, {"usage": {"prompt_tokens": 10, "total_tokens": 12}})
    assert answer.usage() == Usage(12)


@pytest.mark.parametrize(
    ("host", "model", "field"),
    [
        ("api.openai.com", "gpt-3.5-turbo", "max_completion_tokens"),
        ("eu.api.openai.com", "gpt-4o", "max_completion_tokens"),
        ("api.openai.com.evil.example", "gpt-4o", "max_tokens"),
        ("my.openai.azure.com", "gpt-4o", "max_tokens"),
        ("my.openai.azure.com", "o3-mini", "max_completion_tokens"),
        ("gateway.example", "openai/gpt-5-mini", "max_completion_tokens"),
        ("gateway.example", "gpt-6-sol", "max_completion_tokens"),
        ("127.0.0.1", "gpt-4o", "max_tokens"),
        ("api.mistral.ai", "mistral-large-latest", "max_tokens"),
    ],
)
def test_cap_goes_into_the_field_that_host_and_model_accept(host: str, model: str, field: str) -> None:
    body: dict[str, Any] = {"model": model, "max_tokens": 0, "max_completion_tokens": None}
    CHAT.write_cap(body, 300, host)
    assert body == {"model": model, field: 300}


# -- bodies of any shape -----------------------------------------------------------------------------------------------------

FIELDS = """
    model messages input content role type text image_url url source data detail input_audio audio file file_id tools function name max_uses
    max_tool_calls max_tokens max_completion_tokens max_output_tokens n best_of modalities prediction prompt_cache_options ttl
    prompt_cache_breakpoint web_search_options plugins models system cache_control context_management mcp_servers usage server_tool_use
    prompt_tokens completion_tokens total_tokens input_tokens output_tokens prompt_tokens_details cached_tokens choices response output
    action delta message cache_creation service_tier speed stream stream_options instructions extra_body prompt reasoning
    contents parts inlineData fileData mimeType cachedContent generationConfig maxOutputTokens candidateCount responseModalities
    googleSearch requests instances options num_predict images context query documents texts inputs connectors thinking token_budget
    pages document inferenceConfig maxTokens additionalModelRequestFields toolConfig systemTool performanceConfig latency guardrailConfig
    serviceTier bytes textGenerationConfig inputText anthropic_version schemaVersion max_gen_len usageMetadata promptTokenCount
    candidates billed_units meta metadata inputTokens outputTokens cacheDetails done eval_count predictions embeddings statistics
    groundingMetadata usage_info
"""
NAMES = st.sampled_from(FIELDS.split())
WORDS = st.sampled_from(
    [
        *("", "text", "image", "image_url", "input_image", "input_audio", "document", "file", "base64", "reasoning", "function"),
        *("web_search", "web_search_20250305", "gpt-4o", "claude-sonnet-4-5", "12h", "data:image/png;base64,AAAA"),
        *("message_start", "response.completed"),
    ]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 10**6), st.floats(allow_nan=False), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(body=st.dictionaries(NAMES, VALUES, max_size=7), seller=st.sampled_from([None, "openai", "anthropic"]))
def test_no_shape_of_a_request_breaks_its_reading(body: dict[str, Any], seller: str | None) -> None:
    for format in formats.FORMATS:
        facts = format.read(body, seller)
        assert facts.choices >= 1
        assert facts.rounds >= 1
        assert facts.cap is None or facts.cap > 0
        assert facts.extra_input >= 0 <= facts.inline
        if format.texts is not None:
            skeleton, texts = format.texts(body)
            assert all(isinstance(text, str) for text in texts)
            assert isinstance(skeleton, dict)


@settings(max_examples=300, deadline=None)
@given(body=st.dictionaries(NAMES, VALUES, max_size=7), seller=st.sampled_from([None, "openai", "gcp.gemini"]))
def test_cap_written_into_a_body_of_any_shape_is_the_one_that_counts(body: dict[str, Any], seller: str | None) -> None:
    path = "/model/us.anthropic.claude-sonnet-4-5-20250929-v1:0/converse"
    for format in formats.FORMATS:
        facts = format.read(body, seller, path) if format.recognises(body) else None
        if facts is None or facts.cap is not None or facts.unbounded or not facts.produces:
            continue
        capped = copy.deepcopy(body)
        format.write_cap(capped, 321, "llm.example.org")
        assert format.read(capped, seller, path).cap == 321


@settings(max_examples=400, deadline=None)
@given(events=st.lists(st.dictionaries(NAMES, VALUES, max_size=6), max_size=4), streaming=st.booleans())
def test_no_shape_of_an_answer_is_read_as_usage_that_it_does_not_hold(events: list[dict[str, Any]], streaming: bool) -> None:
    for format in formats.FORMATS:
        answer = Answer(streaming=streaming)
        for event in events:
            try:
                format.fold(answer, event)
            except (TypeError, AttributeError, KeyError, ValueError):
                answer.problem = "not as documented"
        usage = answer.usage()
        if usage is not None:
            assert usage.input_tokens > 0 <= usage.output_tokens
            assert usage.cache_read_tokens + usage.cache_write_tokens <= usage.input_tokens
            assert usage.reasoning_tokens <= usage.output_tokens
