"""Calls at hosts of every spelling, and at hosts that nobody knows: what is evidently a call to a model is never sent unseen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from wflo_nb.budget.account import Account
from wflo_nb.capture import formats, gate
from wflo_nb.capture.shown import Request, concerns
from wflo_nb.errors import UnsupportedFormatError, WfloError
from wflo_nb.store import open_store
from wflo_nb.workflow.run import Run
from wflo_nb.workflow.runtime import runtime


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    store = open_store(tmp_path / "x.db")
    yield runtime().new_run("evident", budget_nano=10**12, store=store)
    store.close()


HOSTS = {
    "us-central1-aiplatform.googleapis.com": "gcp.vertex_ai",
    "aiplatform.eu.rep.googleapis.com": "gcp.vertex_ai",
    "bedrock-runtime.us-east-1.amazonaws.com": "aws.bedrock",
    "bedrock-runtime-fips.us-east-1.amazonaws.com": "aws.bedrock",
    "bedrock-runtime.us-east-1.api.aws": "aws.bedrock",
    "bedrock-runtime.cn-north-1.amazonaws.com.cn": "aws.bedrock",
    "vpce-0a1-b2.bedrock-runtime.us-east-1.vpce.amazonaws.com": "aws.bedrock",
    "bedrock-agent-runtime.us-east-1.amazonaws.com": "aws.bedrock",
    "API.OpenAI.com": "openai",
    "api.openai.com.": "openai",
    "mine.services.ai.azure.com": "azure.ai.inference",
    "api.cohere.ai": "cohere",
    "api.replicate.com": "replicate",
    "router.huggingface.co": "huggingface",
    "api.voyageai.com": "voyage",
    "dashscope-intl.aliyuncs.com": "dashscope",
    "api.cerebras.ai": "cerebras",
    "api.sambanova.ai": "sambanova",
    "integrate.api.nvidia.com": "nvidia",
    "api.studio.nebius.com": "nebius",
    "api.novita.ai": "novita",
    "api.hyperbolic.xyz": "hyperbolic",
    "api.jina.ai": "jina",
    "s3.us-east-1.amazonaws.com": None,
    "storage.googleapis.com": None,
    "api.openai.com.example.org": None,
    "notapi.openai.com": None,
}


@pytest.mark.parametrize(("host", "provider"), HOSTS.items())
def test_provider_is_known_in_every_region_zone_and_spelling(host: str, provider: str | None) -> None:
    assert formats.provider_of(host) == provider


def test_gateway_is_known_in_every_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", "llm.example.org=openai")
    assert formats.provider_of("LLM.example.org.") == "openai"


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n'
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--x--\r\n'
)
NAMED = json.dumps({"model": "some-model-of-theirs", "prompt": "x"}).encode()
UNREAD = {
    "/v1/publishers/google/models/gemini-2.5-pro:generateContent": b"{}",
    "/v1beta/models/gemini-2.5-pro:streamGenerateContent": b"{}",
    "/v1/publishers/anthropic/models/claude-sonnet-4-5:rawPredict": b"{}",
    "/v1/publishers/anthropic/models/claude-sonnet-4-5:streamRawPredict": b"{}",
    "/model/anthropic.claude-v2/converse": b"{}",
    "/model/anthropic.claude-v2/converse-stream": b"{}",
    "/gateway/model/arn:aws:bedrock:us-east-1:1:inference-profile/x/invoke": b"{}",
    "/model/anthropic.claude-v2/invoke-with-response-stream": b"{}",
    "/v1/publishers/meta/models/llama-4:rawPredict": b"{}",
    "/v1/completions": json.dumps({"model": "some-model-of-theirs"}).encode(),
    "/v1/images/edits": FORM,
    "/v1/audio/speech": NAMED,
    "/v1/videos": NAMED,
    "/v1/rerank": NAMED,
    "/v1/ocr": NAMED,
}


def admit(account: Account, path: str, body: bytes) -> None:
    assert concerns("POST", "llm.example.org", path)
    assert gate.admit(account, Request("llm.example.org", path, body)) is None


@pytest.mark.parametrize(("path", "body"), UNREAD.items())
def test_evident_call_at_an_unknown_host_is_refused_under_a_budget_and_noted_without(tmp_path: Path, path: str, body: bytes) -> None:
    store = open_store(tmp_path / "x.db")
    with pytest.raises(UnsupportedFormatError, match="cannot be bounded"):
        admit(runtime().new_run("limited", budget_nano=0, store=store).account, path, body)
    free = runtime().new_run("free", store=store)
    admit(free.account, path, body)
    assert free.account.figures.unpriced == 1
    store.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/responses", b'{"answers": [1, 2]}'), ("/model/7/invoked", b"{}"), ("/v1/rerank", b"no JSON"), ("/audio/speech", b"[]")],
)
def test_other_services_at_such_paths_are_left_alone(run: Run, path: str, body: bytes) -> None:
    assert gate.admit(run.account, Request("llm.example.org", path, body)) is None
    assert run.account.figures.calls == 0


def test_evident_call_that_costs_nothing_passes(run: Run) -> None:
    run.account.book.declare("some-model-of-theirs", input=0, output=0)
    admit(run.account, "/v1/rerank", NAMED)


@pytest.mark.parametrize("body", [{"prompt": {"id": "pmpt_1"}, "tools": []}, {"model": "gpt-4o", "previous_response_id": "resp_1"}])
def test_response_whose_input_is_kept_at_the_provider_is_a_call(run: Run, body: dict[str, object]) -> None:
    shown = Request("llm.example.org", "/v1/responses", json.dumps(body).encode())
    if "model" in body:
        exchange = gate.admit(run.account, shown)
        assert exchange is not None
        assert exchange.call.reserved_nano > 0
        return
    with pytest.raises(WfloError):
        gate.admit(run.account, shown)
