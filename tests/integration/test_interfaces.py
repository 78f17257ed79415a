"""Interfaces beside chat: what is billed by characters, images or pages, and what cannot be bounded at all."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import AnthropicVertex
from google import genai

import wflo_nb
from tests.integration.conftest import current, ledger_calls, ledger_total
from wflo_nb.budget.explanation import explain
from wflo_nb.errors import BudgetExceededError, UnboundedCallError, UnknownModelError, UnsupportedFormatError
from wflo_nb.model import Usage
from wflo_nb.pricing.book import PriceBook
from wflo_nb.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore::wflo_nb.errors.WfloWarning")


def meta(row: dict[str, Any]) -> dict[str, Any]:
    return json.loads(row["meta"] or "{}")


def test_speech_is_billed_by_the_characters_of_its_text(provider: FakeProvider, openai_client: Any) -> None:
    with wflo_nb.execution("t", budget_usd=1):
        sound = openai_client.audio.speech.create(model="tts-1", voice="alloy", input="The river runs to the sea.")
    assert sound.content == b"\xff\xf3sound"
    (row,) = ledger_calls()
    assert row["state"] == "SETTLED"
    assert row["cost_nano"] == row["reserved_nano"] == provider.spent_nano == 26 * 15_000
    assert meta(row)["uses"] == {"character": 26}
    with pytest.raises(BudgetExceededError), wflo_nb.execution("t", budget_usd="0.0003"):
        openai_client.audio.speech.create(model="tts-1", voice="alloy", input="The river runs to the sea.")
    assert provider.requests == 1


def test_images_of_a_token_model_are_bounded_by_their_number(
    provider: FakeProvider, openai_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=openai")
    provider.behave(tokens=6240)
    with wflo_nb.execution("t", budget_usd=1):
        openai_client.images.generate(model="gpt-image-1", prompt="a river", n=3)
    (row,) = ledger_calls()
    assert provider.spent_nano == row["cost_nano"] <= row["reserved_nano"]
    assert row["cost_nano"] > 3 * 6240 * 40_000
    with pytest.raises(UnboundedCallError, match="not limited by its request"), wflo_nb.execution("t", budget_usd=1):
        openai_client.images.generate(model="gpt-image-2", prompt="a river")
    assert provider.requests == 1


def test_recording_of_unknown_length_is_refused_under_a_budget_in_clear_words(openai_client: Any, provider: FakeProvider) -> None:
    with pytest.raises(UnboundedCallError, match="length of a recording is not stated"), wflo_nb.execution("t", budget_usd=1):
        openai_client.audio.transcriptions.create(model="whisper-1", file=("a.mp3", b"ID3" + bytes(300)))
    assert provider.requests == 0


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_batches_are_refused_under_a_budget_and_recorded_without_one(
    provider: FakeProvider, openai_client: Any, anthropic_client: Any, kind: str
) -> None:
    def create() -> None:
        if kind == "openai":
            openai_client.batches.create(input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h")
        else:
            params = {"model": "claude-sonnet-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
            anthropic_client.messages.batches.create(requests=[{"custom_id": "1", "params": params}])

    with pytest.raises(UnsupportedFormatError, match="starts a batch"), wflo_nb.execution("t", budget_usd=1):
        create()
    assert provider.requests == 0
    with wflo_nb.execution("t"), pytest.raises(Exception, match="nothing at"):
        create()
    assert [row["state"] for row in ledger_calls()] == ["REFUSED", "SETTLED"]
    assert ledger_calls()[1]["cost_nano"] is None


def mistral(provider: FakeProvider) -> Any:
    from mistralai.client import Mistral

    return Mistral(api_key="test", server_url=provider.url)


ORDERS: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "a video": (
        lambda openai, _: openai.videos.create(model="sora-2", prompt="a river", seconds="8"),
        "which orders a video: it is billed",
    ),
    "a video from a picture": (
        lambda openai, _: openai.videos.create(model="sora-2", prompt="a river", input_reference=("a.png", b"png")),
        "which orders a video",
    ),
    "an edited picture": (
        lambda openai, _: openai.images.edit(model="gpt-image-1", image=("a.png", b"png"), prompt="a wider river"),
        "make them from words alone, or outside the budget",
    ),
    "a conversation": (
        lambda _, mistral: mistral.beta.conversations.start(model="mistral-medium-latest", inputs="hi"),
        "which goes on with a conversation",
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_what_nothing_bounds_is_refused_in_words_that_say_what_to_do(provider: FakeProvider, openai_client: Any, order: str) -> None:
    ask, words = ORDERS[order]
    with pytest.raises((UnsupportedFormatError, UnboundedCallError), match=words) as caught, wflo_nb.execution("t", budget_usd=1):
        ask(openai_client, mistral(provider))
    assert "outside the budget" in str(caught.value)
    assert provider.requests == 0
    (row,) = ledger_calls()
    assert row["state"] == "REFUSED"
    assert explain(current(), row["id"]).steps
    with wflo_nb.execution("t"), pytest.raises(Exception, match=r"nothing at|Connection error"):  # sent, where no budget applies
        ask(openai_client.with_options(max_retries=0), mistral(provider))
    (_, noted) = ledger_calls()
    assert noted["state"] != "REFUSED"
    assert noted["cost_nano"] is None or noted["state"] != "SETTLED"  # never $0 for what may be paid


def test_agent_at_mistral_is_refused_until_its_price_is_declared_and_priced_by_its_model_without_a_budget(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=mistral_ai")
    provider.behave(tokens=20)

    def ask(cap: int = 50) -> Any:
        return mistral(provider).agents.complete(agent_id="ag:1:writer", messages=[{"role": "user", "content": "hi"}], max_tokens=cap)

    with pytest.raises(UnknownModelError, match="ag:1:writer"), wflo_nb.execution("t", budget_usd=1):
        ask()
    assert provider.requests == 0
    price = {"ag:1:writer": {"input": 3, "output": 9, "max_input_tokens": 32_000}}
    with wflo_nb.execution("t", budget_usd=1, prices=price) as run:
        ask()
    (_, row) = ledger_calls()
    usage = provider.bill[0].usage
    assert (row["state"], row["api"], row["model"], row["answered_model"]) == ("SETTLED", "agents", "ag:1:writer", "mistral-small-latest")
    assert row["cost_nano"] == usage.input_tokens * 3_000 + usage.output_tokens * 9_000
    assert row["reserved_nano"] >= 32_000 * 3_000  # what the agent is told is not in the request: as much as its model can read
    assert run.figures().spent_nano == row["cost_nano"]
    with wflo_nb.execution("t"):
        ask()
    assert ledger_calls()[2]["cost_nano"] == provider.bill[1].nano_usd > 0


@pytest.mark.parametrize("version", ["v1", "deployment"])
def test_azure_is_read_at_both_its_paths(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    from openai import AzureOpenAI, OpenAI

    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=azure.ai.openai")
    messages: Any = [{"role": "user", "content": "hi"}]
    with wflo_nb.execution("t", budget_usd=1):
        if version == "deployment":
            client = AzureOpenAI(azure_endpoint=provider.url, api_key="test", api_version="2024-10-21")
            client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_tokens=50)
        else:
            client = OpenAI(base_url=f"{provider.url}/openai/v1", api_key="test")
            client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_tokens=50)
    (row,) = ledger_calls()
    assert (row["state"], row["provider"], row["model"]) == ("SETTLED", "azure.ai.openai", "gpt-4o-mini")
    assert row["cost_nano"] == provider.spent_nano > 0


@pytest.mark.parametrize(
    ("path", "body"), [("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}), ("embeddings", {"input": ["hi"]})]
)
def test_deployment_in_the_path_stands_for_the_model(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=azure.ai.openai")
    model = "gpt-4o-mini" if "chat" in path else "text-embedding-3-small"
    url = f"{provider.url}/openai/deployments/{model}/{path}?api-version=2024-10-21"
    with wflo_nb.execution("t", budget_usd=1):
        httpx.post(url, json=body)
    (row,) = ledger_calls()
    assert (row["state"], row["model"]) == ("SETTLED", model)
    assert row["cost_nano"] == provider.spent_nano > 0
    with pytest.raises(BudgetExceededError), wflo_nb.execution("t", budget_usd=0):
        httpx.post(url, json=body)
    assert provider.requests == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_llama_at_vertex_is_openais_format(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    from openai import OpenAI

    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=gcp.vertex_ai")
    client = OpenAI(base_url=f"{provider.url}/v1/projects/p/locations/us-central1/endpoints/openapi", api_key="test")
    messages: Any = [{"role": "user", "content": "hi"}]
    with wflo_nb.execution("t", budget_usd="0.01"):
        answer: Any = client.chat.completions.create(model="meta/llama-3.3-70b-instruct-maas", messages=messages, stream=stream)
        assert all(chunk.choices for chunk in answer) if stream else answer.choices
    (row,) = ledger_calls()
    usage = provider.bill[0].usage
    assert (row["state"], row["provider"]) == ("SETTLED", "gcp.vertex_ai")
    assert row["cost_nano"] == (usage.input_tokens + usage.output_tokens) * 720
    assert provider.bodies[-1]["max_tokens"] == row["cap_written"] > 0


def test_counting_tokens_is_free_and_no_call(
    provider: FakeProvider, anthropic_client: Any, openai_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=anthropic")
    with wflo_nb.execution("t", budget_usd=0), pytest.raises(Exception, match="nothing at"):
        anthropic_client.messages.count_tokens(model="claude-sonnet-4-5", messages=[{"role": "user", "content": "x"}])
    assert provider.requests == 1
    assert ledger_calls() == []


def test_counting_tokens_for_claude_on_vertex_is_free_and_no_call(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=gcp.vertex_ai")
    provider.next(raw=b'{"input_tokens": 7}')
    client = AnthropicVertex(access_token="t", region="global", project_id="p", base_url=f"{provider.url}/v1", max_retries=0)
    with wflo_nb.execution("t", budget_usd=0):
        counted = client.messages.count_tokens(model="claude-sonnet-4-5@20250929", messages=[{"role": "user", "content": "x"}])
    assert counted.input_tokens == 7
    assert ledger_calls() == []


@pytest.mark.parametrize(("owner", "free"), [("openai", True), ("mistral_ai", False)])
def test_keeping_a_conversation_is_free_where_no_model_runs(
    provider: FakeProvider, openai_client: Any, monkeypatch: pytest.MonkeyPatch, owner: str, free: bool
) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", f"127.0.0.1={owner}")
    said: Any = [{"type": "message", "role": "user", "content": "hi"}]
    keepers = openai_client.conversations
    asks = [
        lambda: keepers.create(items=said),
        lambda: keepers.update("conv_1", metadata={"a": "b"}),
        lambda: keepers.items.create("conv_1", items=said),
    ]
    for ask in asks:
        with wflo_nb.execution("t", budget_usd=0), pytest.raises(Exception, match="nothing at" if free else "no wire format reads"):
            ask()
    assert provider.requests == (3 if free else 0)
    assert len(ledger_calls()) == (0 if free else 3)


def test_cost_that_a_gateway_states_is_kept_beside_ours(provider: FakeProvider, openai_client: Any) -> None:
    stated = json.loads((Path(__file__).parents[1] / "data/formats/openrouter-chat/response.json").read_text())
    with wflo_nb.execution("t"), httpx.Client(transport=httpx.HTTPTransport()) as client:
        provider.next(raw=json.dumps(stated).encode())
        client.post(f"{provider.openai_url}/chat/completions", json={"model": "openai/gpt-4o", "messages": []})
    (row,) = ledger_calls()
    assert meta(row)["provider_cost_usd"] == "0.00095"
    assert row["cost_nano"] > 0


def test_stream_as_one_growing_array_is_settled_by_its_last_usage(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=gcp.gemini")
    with wflo_nb.execution("t", budget_usd=1):
        answer = httpx.post(
            f"{provider.url}/v1beta/models/gemini-2.5-flash:streamGenerateContent",
            json={"contents": [{"parts": [{"text": "hello"}]}], "generationConfig": {"maxOutputTokens": 20}},
        )
    assert len(answer.json()) == 21
    (row,) = ledger_calls()
    assert (row["state"], row["output_tokens"]) == ("SETTLED", 20)
    assert row["cost_nano"] == provider.spent_nano == ledger_total()


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gemini-2.0-flash", "gemini-2.5-pro"])
def test_audio_that_gemini_keeps_is_held_and_billed_at_the_dearest_cached_rate(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=gcp.gemini")
    usage: dict[str, Any] = {"promptTokenCount": 500_010, "cachedContentTokenCount": 500_000, "candidatesTokenCount": 10}
    usage["promptTokensDetails"] = [{"modality": "AUDIO", "tokenCount": 500_000}, {"modality": "TEXT", "tokenCount": 10}]
    usage["cacheTokensDetails"] = [{"modality": "AUDIO", "tokenCount": 500_000}]
    candidate = {"content": {"parts": [{"text": "x"}], "role": "model"}, "finishReason": "STOP", "index": 0}
    provider.next(raw=json.dumps({"candidates": [candidate], "modelVersion": model, "usageMetadata": usage}).encode())
    client = genai.Client(api_key="k", http_options={"base_url": provider.url})
    with wflo_nb.execution("t", budget_usd=5):
        client.models.generate_content(
            model=model, contents="What is said?", config={"cached_content": "cachedContents/1", "max_output_tokens": 100}
        )
    (row,) = ledger_calls()
    cost = PriceBook().find("gcp.gemini", model).cost(Usage(500_010, 10, 500_000), media=True).nano_usd
    assert row["cost_nano"] == cost <= row["reserved_nano"]
    assert cost < 200_000_000, "not as if it were not cached"


TEXT, HEARD = {"modality": "TEXT", "tokenCount": 500_010}, {"modality": "AUDIO", "tokenCount": 9}


@pytest.mark.parametrize(
    ("details", "media"),
    [
        ({"promptTokensDetails": [TEXT]}, False),
        ({"promptTokensDetails": [TEXT], "cacheTokensDetails": [TEXT]}, False),
        ({"promptTokensDetails": [TEXT, HEARD]}, True),
        ({"promptTokensDetails": [TEXT], "cacheTokensDetails": [HEARD]}, True),
        ({"promptTokensDetails": [{**TEXT, "tokenCount": 500_009}]}, True),
        ({"promptTokensDetails": [{**TEXT, "modality": ["TEXT"]}]}, True),
        ({"promptTokensDetails": [TEXT, {**TEXT, "tokenCount": "many"}]}, True),
        ({"promptTokensDetails": [None]}, True),
        ({"promptTokensDetails": TEXT}, True),
        ({"promptTokensDetails": [TEXT], "cacheTokensDetails": 3}, True),
        ({}, True),
    ],
)
def test_what_gemini_keeps_is_billed_as_text_where_the_answer_accounts_for_all_of_it(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, details: dict[str, Any], media: bool
) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=gcp.gemini")
    usage = {"promptTokenCount": 500_010, "cachedContentTokenCount": 500_000, "candidatesTokenCount": 10, **details}
    provider.next(raw=json.dumps({"candidates": [{"finishReason": "STOP"}], "usageMetadata": usage}).encode())
    body = {"cachedContent": "cachedContents/1", "contents": [{"parts": [{"text": "hello"}]}], "generationConfig": {"maxOutputTokens": 20}}
    with wflo_nb.execution("t", budget_usd=5):
        httpx.post(f"{provider.url}/v1beta/models/gemini-2.5-flash:generateContent", json=body)
    (row,) = ledger_calls()
    cost = PriceBook().find("gcp.gemini", "gemini-2.5-flash").cost(Usage(500_010, 10, 500_000), media=media)
    assert (row["state"], row["cost_nano"]) == ("SETTLED", cost.nano_usd)


def test_search_of_an_older_gemini_is_held_and_billed_once(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=gcp.gemini")
    provider.behave(searches=3)
    body = {"contents": [{"parts": [{"text": "hello"}]}], "tools": [{"google_search": {}}], "generationConfig": {"maxOutputTokens": 20}}
    with wflo_nb.execution("t", budget_usd=2):
        httpx.post(f"{provider.url}/v1beta/models/gemini-2.5-flash:generateContent", json=body)
        with pytest.raises(UnboundedCallError, match="pays for every search"):
            httpx.post(f"{provider.url}/v1beta/models/gemini-3.5-flash:generateContent", json=body)
    settled, refused = ledger_calls()
    assert settled["cost_nano"] == provider.spent_nano > 35_000_000
    assert refused["state"] == "REFUSED"
    assert provider.requests == 1


def test_claude_on_vertex_has_its_model_in_the_path(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=gcp.vertex_ai")
    where = f"{provider.url}/v1/projects/p/locations/global/publishers/anthropic/models/claude-sonnet-4-5@20250929"
    body = {"anthropic_version": "vertex-2023-10-16", "max_tokens": 9, "messages": [{"role": "user", "content": "hi there"}]}
    with wflo_nb.execution("t", budget_usd=1):
        httpx.post(f"{where}:rawPredict", json=body)
        httpx.post(f"{where}:streamRawPredict", json={**body, "stream": True})
    assert [(row["model"], row["provider"], row["state"]) for row in ledger_calls()] == [
        ("claude-sonnet-4-5@20250929", "gcp.vertex_ai", "SETTLED")
    ] * 2
    assert ledger_total() == provider.spent_nano > 0


def test_claude_in_a_region_of_vertex_costs_more(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    host, real = "us-east5-aiplatform.googleapis.com", socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *a, **k: real("127.0.0.1" if name in (host, host.encode()) else name, *a, **k))
    url, model = f"http://{host}:{provider.host.rpartition(':')[2]}/v1", "claude-haiku-4-5@20251001"
    client = AnthropicVertex(access_token="t", region="us-east5", project_id="p", base_url=url, max_retries=0)
    with wflo_nb.execution("t", budget_usd=1):
        client.messages.create(model=model, max_tokens=1000, messages=[{"role": "user", "content": "hi there"}])
    (row,) = ledger_calls()
    usage, price = provider.bill[0].usage, PriceBook().find("gcp.vertex_ai", model)
    assert row["cost_nano"] == price.cost(usage, regional=True).nano_usd > price.cost(usage).nano_usd
    assert row["reserved_nano"] >= row["cost_nano"]


def test_local_models_are_never_blocked_by_a_spent_budget(provider: FakeProvider, openai_client: Any) -> None:
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(BudgetExceededError), wflo_nb.execution("t", budget_usd="0.00000001"):
        with pytest.raises(BudgetExceededError):
            openai_client.chat.completions.create(model="gpt-4o", messages=body["messages"])
        lines = httpx.post(f"{provider.url}/api/chat", json=body).text.splitlines()
    assert len(lines) == 21
    assert "options" not in provider.bodies[-1]  # there is nothing to cap
    assert [(row["state"], row["provider"]) for row in ledger_calls()] == [("REFUSED", "openai"), ("SETTLED", "ollama")]
    assert ledger_total() == 0


def test_local_model_with_a_declared_price_is_bounded_and_billed(provider: FakeProvider) -> None:
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "hi there"}]}
    with wflo_nb.execution("t", budget_usd=1, prices={"llama3.2": {"input": 1, "output": 2}}):
        httpx.post(f"{provider.url}/api/chat", json=body)
    (row,) = ledger_calls()
    assert row["cost_nano"] == (row["input_tokens"] * 1 + 20 * 2) * 1000
    assert provider.bodies[-1]["options"]["num_predict"] == row["cap_written"]


def test_models_of_ollama_that_run_elsewhere_have_no_price(provider: FakeProvider) -> None:
    body = {"model": "gpt-oss:120b-cloud", "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(UnknownModelError), wflo_nb.execution("t", budget_usd=1):
        httpx.post(f"{provider.url}/api/chat", json=body)
    assert provider.requests == 0


CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
CONVERSE = {"messages": [{"role": "user", "content": [{"text": "hello there"}]}]}
INVOKE = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 30, "messages": [{"role": "user", "content": "hello there"}]}
LLAMA = {"prompt": "hello there"}


@pytest.mark.parametrize(
    ("path", "body", "cap"),
    [
        (f"/model/{CLAUDE}/converse", CONVERSE, ("inferenceConfig", "maxTokens")),
        (f"/model/{CLAUDE.replace(':', '%3A')}/converse-stream", CONVERSE, ("inferenceConfig", "maxTokens")),
        (f"/model/{CLAUDE}/invoke", INVOKE, None),
        (f"/model/{CLAUDE}/invoke-with-response-stream", INVOKE, None),
        ("/model/us.meta.llama3-3-70b-instruct-v1:0/invoke", LLAMA, None),
        ("/model/us.meta.llama3-3-70b-instruct-v1:0/invoke-with-response-stream", LLAMA, None),
    ],
)
def test_bedrock_with_a_key_instead_of_a_signature(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], cap: tuple[str, ...] | None
) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=aws.bedrock")
    bare = httpx.post(provider.url + path, json=body).content
    with wflo_nb.execution("t", budget_usd=1):
        assert httpx.post(provider.url + path, json=body).content == bare
    (row,) = ledger_calls()
    assert (row["state"], row["provider"]) == ("SETTLED", "aws.bedrock")
    assert row["cost_nano"] == provider.bill[-1].nano_usd > 0
    assert bool(row["stream"]) == ("stream" in path)
    if cap is not None:
        value: Any = provider.bodies[-1]
        for key in cap:
            value = value[key]
        assert value == row["cap_written"] > 0
    with pytest.raises(BudgetExceededError), wflo_nb.execution("t", budget_usd="0.000001"):
        httpx.post(provider.url + path, json=body)
    assert provider.requests == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat", {"message": "hello, support"}),
        ("/api/chat", {"messages": [], "room": 3}),
        ("/v1/rerank", {"query": "q", "documents": []}),
        ("/model/churn/invoke", {"rows": [1, 2]}),
        ("/v1/ocr", {"file": "a.png"}),
        ("/batches", {"items": []}),
        ("/users/me:predict", {"instances": []}),
    ],
)
def test_paths_that_other_services_use_as_well_are_left_alone(provider: FakeProvider, path: str, body: dict[str, Any]) -> None:
    with wflo_nb.execution("t", budget_usd=0):
        httpx.post(provider.url + path, json=body)
    assert len(provider.bodies) == 1
    assert ledger_calls() == []


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1/videos",
        "https://api.openai.com/v1/images/edits",
        "https://generativelanguage.googleapis.com/v1beta/interactions",
        "https://generativelanguage.googleapis.com/v1beta/models/veo-3:predictLongRunning",
        "https://api.mistral.ai/v1/conversations",
        "https://api.cohere.com/v1/embed-jobs",
        "https://bedrock-runtime.us-east-1.amazonaws.com/model/stability.sd3-5-large-v1:0/invoke",
        "https://bedrock-runtime.eu-central-1.amazonaws.com/async-invoke",
    ],
)
def test_unknown_path_of_a_known_provider_is_refused_and_says_what_to_do(url: str) -> None:
    with pytest.raises(UnsupportedFormatError, match="no wire format reads"), wflo_nb.execution("t", budget_usd=1):
        httpx.post(url, json={"taskType": "anything"})
    (row,) = ledger_calls()
    told = explain(current(), row["id"])
    assert any("wflo_nb.formats" in word for step in told.steps for word in step)


def test_answer_that_comes_later_keeps_its_hold(provider: FakeProvider, openai_client: Any) -> None:
    queued = {"id": "resp_1", "object": "response", "created_at": 1, "status": "queued", "model": "gpt-4o", "output": [], "usage": None}
    provider.next(raw=json.dumps({**queued, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}).encode())
    with wflo_nb.execution("t", budget_usd=1):
        openai_client.responses.create(model="gpt-4o", input="hello", background=True, max_output_tokens=50)
    (row,) = ledger_calls()
    assert row["state"] == "UNCONFIRMED"
    assert row["cost_nano"] == row["reserved_nano"] > 0


def test_model_that_is_billed_by_the_page_is_never_free_by_its_tokens(provider: FakeProvider, openai_client: Any) -> None:
    asked: dict[str, Any] = {"model": "mistral-ocr-latest", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    with wflo_nb.execution("t"):
        openai_client.chat.completions.create(**asked)
    (row,) = ledger_calls()
    assert (row["state"], row["cost_nano"]) == ("SETTLED", None)
    with pytest.raises(UnboundedCallError, match="billed by the page"), wflo_nb.execution("t", budget_usd=1):
        openai_client.chat.completions.create(**asked)
    assert provider.requests == 1


@pytest.mark.parametrize(("told", "kept"), [("2.85e-06", "2.85e-06"), ("0.0013", "0.0013"), ("None", None), ("-1", None), ("<b>", None)])
def test_cost_that_a_litellm_proxy_states_in_a_header_is_kept_beside_ours(
    provider: FakeProvider, openai_client: Any, told: str, kept: str | None
) -> None:
    provider.behave(headers=(("x-litellm-response-cost", told),))
    with wflo_nb.execution("t"):
        openai_client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    (row,) = ledger_calls()
    assert meta(row).get("provider_cost_usd") == kept
    assert row["cost_nano"] == provider.spent_nano


def test_counts_of_bedrock_that_stand_in_headers_alone_settle_a_call(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "127.0.0.1=aws.bedrock")
    counts = (("x-amzn-bedrock-input-token-count", "8"), ("x-amzn-bedrock-output-token-count", "2"))
    provider.behave(raw=b'{"outputs": [{"text": "Hey", "stop_reason": "stop"}]}', headers=counts)
    with wflo_nb.execution("t", budget_usd=1):
        httpx.post(f"{provider.url}/model/mistral.mistral-large-2407-v1:0/invoke", json={"prompt": "hello", "max_tokens": 20})
    (row,) = ledger_calls()
    assert (row["state"], row["input_tokens"], row["output_tokens"]) == ("SETTLED", 8, 2)
    assert row["cost_nano"] == 8 * 2000 + 2 * 6000
