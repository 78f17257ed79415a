"""What Amazon Bedrock is asked for beside the model and the messages: in headers, in fields of the model's own, in other forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import wflo_nb
from tests.integration.conftest import ledger_calls
from wflo_nb.capture import formats
from wflo_nb.capture.formats.base import Answer
from wflo_nb.errors import UnboundedCallError
from wflo_nb.model import Usage
from wflo_nb.pricing.book import PriceBook
from wflo_nb.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore")

NOVA = "amazon.nova-pro-v1:0"
NOVA_2 = "us.amazon.nova-2-lite-v1:0"
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
PROMPT = [{"role": "user", "content": [{"text": "hello"}]}]
ASKED: dict[str, Any] = {"messages": PROMPT, "inferenceConfig": {"maxTokens": 3000}}
ASKED_OF_CLAUDE = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 3000, "messages": [{"role": "user", "content": "hello"}]}
NOVA_SAID = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hi"}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 40, "outputTokens": 3000, "totalTokens": 3040},
}
CLAUDE_SAID = {
    "type": "message",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 40, "output_tokens": 3000, "service_tier": "standard"},
}
AT_PRIORITY = (("x-amzn-bedrock-service-tier", "priority"),)
GUARDED = {"guardrailIdentifier": "g", "guardrailVersion": "1"}


@pytest.fixture
def client(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> Any:
    import boto3

    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=aws.bedrock")
    keys = {"aws_access_key_id": "AKIDTEST", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    return boto3.client("bedrock-runtime", endpoint_url=provider.url, **keys)


def invoke(client: Any, model: str, body: dict[str, Any], **more: Any) -> None:
    client.invoke_model(modelId=model, body=json.dumps(body), **more)["body"].read()


def refused(provider: FakeProvider, call: Callable[[], Any], why: str) -> None:
    """The call is refused in these words under a budget."""
    with pytest.raises(UnboundedCallError, match=why), wflo_nb.execution(budget_usd=1):
        call()
    assert provider.requests == 0


# -- wishes in headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "body", "said"), [(NOVA, ASKED, NOVA_SAID), (CLAUDE, ASKED_OF_CLAUDE, CLAUDE_SAID)])
def test_priority_that_a_header_asks_for_is_held_and_billed(
    provider: FakeProvider, client: Any, model: str, body: dict[str, Any], said: dict[str, Any]
) -> None:
    provider.next(raw=json.dumps(said).encode(), headers=AT_PRIORITY)
    with wflo_nb.execution(budget_usd=1):
        invoke(client, model, body, serviceTier="priority")
    (row,) = ledger_calls()
    true = PriceBook().find("aws.bedrock", model).cost(Usage(40, 3000), service_tier="priority").nano_usd
    assert row["reserved_nano"] >= row["cost_nano"] == true
    assert json.loads(row["meta"])["asked"] == {"tier": "priority"}


def test_tier_in_the_header_of_an_answer_outweighs_claudes_own_word() -> None:
    format, answer = formats.all_at(f"/model/{CLAUDE}/invoke")[0], Answer()
    assert format.told is not None
    format.told(answer, "x-amzn-bedrock-service-tier", "priority")
    format.fold(answer, CLAUDE_SAID)
    assert (answer.service_tier, answer.usage()) == ("priority", Usage(40, 3000))


@pytest.mark.parametrize(
    ("wish", "why"), [(GUARDED, "a guardrail is billed"), ({"performanceConfigLatency": "optimized"}, "optimised latency has a price")]
)
@pytest.mark.parametrize(("model", "body"), [(NOVA, ASKED), (CLAUDE, ASKED_OF_CLAUDE), ("openai.gpt-oss-20b-1:0", ASKED_OF_CLAUDE)])
def test_what_has_no_bound_is_refused_when_a_header_asks_for_it(
    provider: FakeProvider, client: Any, wish: dict[str, str], why: str, model: str, body: dict[str, Any]
) -> None:
    body = {name: value for name, value in body.items() if model == CLAUDE or name != "anthropic_version"}
    refused(provider, lambda: invoke(client, model, body, **wish), why)


def test_headers_that_cost_nothing_change_nothing(provider: FakeProvider, client: Any) -> None:
    rows = []
    for more in ({}, {"trace": "ENABLED", "performanceConfigLatency": "standard", "serviceTier": "default"}):
        provider.next(raw=json.dumps(NOVA_SAID).encode())
        with wflo_nb.execution(budget_usd=1):
            invoke(client, NOVA, ASKED, **more)
        rows.append(ledger_calls()[-1])
    assert [row["state"] for row in rows] == ["SETTLED", "SETTLED"]
    assert rows[0]["reserved_nano"] == rows[1]["reserved_nano"]
    assert provider.bodies == [ASKED, ASKED]


@pytest.mark.usefixtures("client")
def test_headers_of_a_request_by_http_are_heeded(provider: FakeProvider) -> None:
    url, wish = f"{provider.url}/model/{NOVA}/invoke", {"X-Amzn-Bedrock-GuardrailIdentifier": "g"}
    refused(provider, lambda: httpx.post(url, json=ASKED, headers=wish), "a guardrail is billed")


def test_tool_that_runs_at_the_provider_is_refused_in_a_body_of_nova(provider: FakeProvider, client: Any) -> None:
    tools = {"tools": [{"systemTool": {"name": "nova_grounding"}}]}
    refused(provider, lambda: client.converse(modelId=NOVA_2, messages=PROMPT, toolConfig=tools), "a tool runs at the provider")
    refused(provider, lambda: invoke(client, NOVA_2, {**ASKED, "toolConfig": tools}), "a tool runs at the provider")


# -- Claude's own fields in converse -----------------------------------------------------------------------------------------


def converse(client: Any, tier: str = "default", **own: Any) -> None:
    asked = {"inferenceConfig": {"maxTokens": 100}, "serviceTier": {"type": tier}}
    client.converse(modelId=CLAUDE, messages=PROMPT, additionalModelRequestFields=own, **asked)


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "compaction runs"),
        ({"mcp_servers": [{"type": "url", "url": "https://mcp.example"}]}, "MCP servers run"),
        ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, "code_execution_20250825 runs"),
    ],
)
def test_what_has_no_bound_is_refused_among_claudes_own_fields(provider: FakeProvider, client: Any, own: dict[str, Any], why: str) -> None:
    refused(provider, lambda: converse(client, **own), why)


def test_claudes_fast_mode_is_bounded_as_such(provider: FakeProvider, client: Any) -> None:
    with wflo_nb.execution(budget_usd=5):
        converse(client, speed="fast")
        invoke(client, CLAUDE, {**ASKED_OF_CLAUDE, "speed": "fast"})
        converse(client, top_k=5)
    *fast, usual = ledger_calls()
    assert [json.loads(row["meta"])["asked"] for row in fast] == [{"tier": "fast"}] * 2
    assert "tier" not in (usual["meta"] or "")


def test_context_and_rounds_of_claudes_own_fields_are_held(provider: FakeProvider, client: Any) -> None:
    search = {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}]}
    skills = {"container": {"skills": [{"type": "anthropic", "skill_id": "pdf"}]}}
    for own in (search, skills):
        with wflo_nb.execution(budget_usd=20):
            converse(client, **own)
    searched, skilled = ledger_calls()
    window = 200_000 * 3_300  # nano-USD: its price of input in this region
    assert searched["reserved_nano"] > 4 * window + 2 * 10_000_000
    assert skilled["reserved_nano"] > window


# -- forms of bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "body", "cap"),
    [
        ("us.meta.llama4-maverick-17b-instruct-v1:0", {"prompt": "Once"}, 512),
        ("us.meta.llama4-maverick-17b-instruct-v1:0", {"prompt": "Once", "max_gen_len": 2000}, 2000),
        ("us.meta.llama4-maverick-17b-instruct-v1:0", {"prompt": "Once", "max_tokens": 3000}, 3000),
        ("amazon.titan-text-express-v1", {"inputText": "Once"}, 512),
        ("amazon.titan-text-express-v1", {"inputText": "Once", "textGenerationConfig": {"topP": 1}}, 512),
        ("amazon.titan-text-express-v1", {"inputText": "Once", "textGenerationConfig": {"maxTokenCount": 100}}, 100),
    ],
)
def test_llama_and_titan_write_no_more_than_without_a_budget(
    provider: FakeProvider, client: Any, model: str, body: dict[str, Any], cap: int
) -> None:
    with wflo_nb.execution(budget_usd=5):
        invoke(client, model, body)
    (row,) = ledger_calls()
    price = PriceBook().find("aws.bedrock", model)
    most = len(json.dumps(body)) + 64
    assert provider.bodies == [body]
    assert row["reserved_nano"] == price.upper_bound(most, cap, service_tier="default")


@pytest.mark.parametrize("cap", [None, 0, "many"])
def test_cap_of_llama_that_is_none_is_written_anew(provider: FakeProvider, client: Any, cap: object) -> None:
    with wflo_nb.execution(budget_usd=5):
        invoke(client, "us.meta.llama4-maverick-17b-instruct-v1:0", {"prompt": "Once", "max_gen_len": cap})
    (row,) = ledger_calls()
    assert provider.bodies == [{"prompt": "Once", "max_gen_len": row["cap_written"]}]


EMBEDS = "amazon.nova-2-multimodal-embeddings-v1:0"
TEXT = {"truncationMode": "END", "value": "hello"}


def embedding(**what: Any) -> dict[str, Any]:
    asked = {"embeddingPurpose": "GENERIC_INDEX", "embeddingDimension": 1024, **what}
    return {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": asked}


def test_embedding_of_a_text_by_nova_is_sent_as_it_is_and_billed_by_its_input(provider: FakeProvider, client: Any) -> None:
    said = b'{"embeddings": [{"embeddingType": "TEXT", "embedding": [0.1]}]}'
    provider.next(raw=said, headers=(("x-amzn-bedrock-input-token-count", "3"),))
    with wflo_nb.execution(budget_usd=1):
        invoke(client, EMBEDS, embedding(text=TEXT))
    (row,) = ledger_calls()
    assert provider.bodies == [embedding(text=TEXT)]
    assert (row["state"], row["input_tokens"], row["output_tokens"]) == ("SETTLED", 3, 0)
    assert row["cost_nano"] == PriceBook().find("aws.bedrock", EMBEDS).cost(Usage(3, 0)).nano_usd


def test_embedding_by_nova_that_is_not_counted_costs_what_was_held(provider: FakeProvider, client: Any) -> None:
    provider.next(raw=b'{"embeddings": [{"embeddingType": "TEXT", "embedding": [0.1]}]}')
    with wflo_nb.execution(budget_usd=1):
        invoke(client, EMBEDS, embedding(text=TEXT))
    (row,) = ledger_calls()
    assert (row["state"], row["cost_nano"]) == ("UNCONFIRMED", row["reserved_nano"])


@pytest.mark.parametrize(
    "body",
    [
        embedding(image={"format": "png", "source": {"bytes": "AAAA"}}),
        embedding(audio={"format": "mp3", "source": {"bytes": "AAAA"}}),
        embedding(text=TEXT, video={"format": "mp4", "source": {"bytes": "AAAA"}}),
        embedding(text={"truncationMode": "END", "source": {"s3Location": {"uri": "s3://b/a.txt"}}}),
        {"taskType": "SEGMENTED_EMBEDDING", "segmentedEmbeddingParams": {"text": TEXT}},
        {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": None},
    ],
)
def test_embedding_by_nova_of_what_is_no_text_is_refused(provider: FakeProvider, client: Any, body: dict[str, Any]) -> None:
    refused(provider, lambda: invoke(client, EMBEDS, body), "images, audio, video and texts from elsewhere")


@pytest.mark.parametrize(("model", "each"), [("cohere.rerank-v3-5:0", 2_000_000), ("amazon.rerank-v1:0", 1_000_000)])
def test_reranking_is_billed_by_the_searches_that_a_request_comes_to(provider: FakeProvider, client: Any, model: str, each: int) -> None:
    for documents in (["Carson City"] * 3, ["Carson City"] * 250):
        provider.next(raw=b'{"results": [{"index": 0, "relevance_score": 0.9}]}')
        with wflo_nb.execution(budget_usd=1):
            invoke(client, model, {"api_version": 2, "query": "What is the capital?", "documents": documents})
    rows = ledger_calls()
    assert [row["state"] for row in rows] == ["SETTLED", "SETTLED"]
    assert [row["cost_nano"] for row in rows] == [row["reserved_nano"] for row in rows] == [each, 3 * each]


def test_reranking_by_a_model_that_is_not_billed_by_searches_is_never_free(provider: FakeProvider, client: Any) -> None:
    asked = {"query": "What is the capital?", "documents": ["Carson City"]}
    refused(provider, lambda: invoke(client, CLAUDE, asked), "no price is known for the use of search")
    with wflo_nb.execution():
        invoke(client, CLAUDE, asked)
    row = ledger_calls()[-1]
    assert (row["state"], row["cost_nano"]) == ("UNCONFIRMED", row["reserved_nano"])
