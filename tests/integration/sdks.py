"""The SDKs of further providers as they come from their makers, each asked for a short answer: what the tests of all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wflo_nb.testing import FakeProvider

PROMPT = "Say a few words about rivers, please."


@dataclass(frozen=True)
class Sdk:
    """One interface of one SDK.

    Attributes:
        owner: who answers, for ``WFLO_GATEWAYS``.
        ask: provider, output cap (None for none) and whether to stream → what the SDK gave, as plain values.
        cap: where a request has its cap; nothing where each must name one.
        read, reasoning: what the stand-in may report as cached or as reasoning here.
        streams, writes: whether there are streams, and whether anything is generated.
        free: whether its models cost nothing.
        budget: what pays for an answer of some hundred tokens, in USD.
    """

    name: str
    owner: str
    ask: Callable[[FakeProvider, int | None, bool], Any]
    cap: tuple[str, ...] = ("max_tokens",)
    read: int = 100
    reasoning: int = 0
    streams: bool = True
    writes: bool = True
    free: bool = False
    budget: str = "0.005"

    def __repr__(self) -> str:
        return self.name


def dumped(answer: Any) -> Any:
    """What an SDK gave, without what differs from one call to the next."""
    if hasattr(answer, "model_dump"):
        return answer.model_dump(exclude={"sdk_http_response", "http_headers"})
    if hasattr(answer, "dict"):
        return answer.dict()
    return answer


def gathered(answer: Any, stream: bool) -> Any:
    return [dumped(piece) for piece in answer] if stream else dumped(answer)


# -- google-genai ------------------------------------------------------------------------------------------------------------


def _google(provider: FakeProvider, **options: Any) -> Any:
    from google import genai

    return genai.Client(api_key="test", http_options=genai.types.HttpOptions(base_url=provider.url, **options))


def _gemini(provider: FakeProvider, cap: int | None, stream: bool) -> Any:
    client = _google(provider)
    call = client.models.generate_content_stream if stream else client.models.generate_content
    config = {} if cap is None else {"max_output_tokens": cap}
    return gathered(call(model="gemini-2.5-flash", contents=PROMPT, config=config), stream)


def _gemini_embedding(provider: FakeProvider, _cap: int | None, _stream: bool) -> Any:
    client = _google(provider)  # a temporary one closes itself
    return dumped(client.models.embed_content(model="gemini-embedding-001", contents=["one", "two words"]))


# -- OpenAI, beside chat and responses -----------------------------------------------------------------------------------------


def _openai(provider: FakeProvider) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=provider.openai_url, api_key="test")


def _completion(provider: FakeProvider, cap: int | None, stream: bool) -> Any:
    asked = {} if cap is None else {"max_tokens": cap}
    return gathered(_openai(provider).completions.create(model="gpt-3.5-turbo-instruct", prompt=[PROMPT], stream=stream, **asked), stream)


# -- mistralai, groq -----------------------------------------------------------------------------------------------------------


def _mistral(provider: FakeProvider, cap: int | None, stream: bool) -> Any:
    from mistralai.client import Mistral

    provider.behave(usage_in="last")
    chat = Mistral(api_key="test", server_url=provider.url).chat
    asked = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": cap}
    return gathered((chat.stream if stream else chat.complete)(**asked), stream)


def _fim(provider: FakeProvider, cap: int | None, stream: bool) -> Any:
    from mistralai.client import Mistral

    fim = Mistral(api_key="test", server_url=provider.url).fim
    asked = {"model": "codestral-latest", "prompt": "def rivers(", "suffix": "return longest", "max_tokens": cap}
    return gathered((fim.stream if stream else fim.complete)(**asked), stream)


def _ocr(provider: FakeProvider, _cap: int | None, _stream: bool) -> Any:
    from mistralai.client import Mistral

    provider.behave(pages=3)
    ocr = Mistral(api_key="test", server_url=provider.url).ocr
    document = {"type": "document_url", "document_url": "https://example.org/rivers.pdf"}
    return dumped(ocr.process(model="mistral-ocr-latest", document=document, pages=[0, 1, 2]))


def _groq(provider: FakeProvider, cap: int | None, stream: bool) -> Any:
    from groq import Groq

    provider.behave(usage_in="x_groq")
    client = Groq(base_url=provider.url, api_key="test", max_retries=0)
    asked = {} if cap is None else {"max_completion_tokens": cap}
    messages = [{"role": "user", "content": PROMPT}]
    return gathered(client.chat.completions.create(model="llama-3.3-70b-versatile", messages=messages, stream=stream, **asked), stream)


# -- cohere, ollama ------------------------------------------------------------------------------------------------------------


def _cohere(provider: FakeProvider) -> Any:
    from cohere import ClientV2

    return ClientV2(api_key="test", base_url=provider.url)


def _cohere_chat(provider: FakeProvider, cap: int | None, stream: bool) -> Any:
    client = _cohere(provider)
    asked: dict[str, Any] = {"model": "command-a-03-2025", "messages": [{"role": "user", "content": PROMPT}]}
    if cap is not None:
        asked["max_tokens"] = cap
    return gathered((client.chat_stream if stream else client.chat)(**asked), stream)


def _cohere_embed(provider: FakeProvider, _cap: int | None, _stream: bool) -> Any:
    asked = {"input_type": "search_query", "embedding_types": ["float"], "texts": ["one", "two words"]}
    return dumped(_cohere(provider).embed(model="embed-v4.0", **asked))


def _cohere_rerank(provider: FakeProvider, _cap: int | None, _stream: bool) -> Any:
    return dumped(_cohere(provider).rerank(model="rerank-v3.5", query="rivers", documents=["long"] * 130))


def _ollama_chat(provider: FakeProvider, cap: int | None, stream: bool) -> Any:
    from ollama import Client

    messages = [{"role": "user", "content": PROMPT}]
    return gathered(Client(host=provider.url).chat("llama3.2", messages, stream=stream, options={"num_predict": cap}), stream)


def _ollama_generate(provider: FakeProvider, cap: int | None, stream: bool) -> Any:
    from ollama import Client

    return gathered(Client(host=provider.url).generate("llama3.2", PROMPT, stream=stream, options={"num_predict": cap}), stream)


def _ollama_embed(provider: FakeProvider, _cap: int | None, _stream: bool) -> Any:
    from ollama import Client

    return dumped(Client(host=provider.url).embed("nomic-embed-text", ["one", "two words"]))


# -- Claude in the clouds ------------------------------------------------------------------------------------------------------


def _claude(client: Any, model: str, cap: int | None, stream: bool) -> Any:
    messages = [{"role": "user", "content": PROMPT}]
    with client:
        return gathered(client.messages.create(model=model, messages=messages, max_tokens=cap, stream=stream), stream)


def _on_bedrock(provider: FakeProvider, cap: int | None, stream: bool) -> Any:
    from anthropic import AnthropicBedrock

    client = AnthropicBedrock(api_key="test", aws_region="us-east-1", base_url=provider.url)
    return _claude(client, "us.anthropic.claude-sonnet-4-5-20250929-v1:0", cap, stream)


def _on_vertex(provider: FakeProvider, cap: int | None, stream: bool) -> Any:
    from anthropic import AnthropicVertex

    client = AnthropicVertex(access_token="test", region="global", project_id="p", base_url=f"{provider.url}/v1")
    return _claude(client, "claude-sonnet-4-5@20250929", cap, stream)


SDKS = [
    Sdk("anthropic-bedrock", "aws.bedrock", _on_bedrock, ()),
    Sdk("anthropic-vertex", "gcp.vertex_ai", _on_vertex, ()),
    Sdk("cohere", "cohere", _cohere_chat, read=0),
    Sdk("cohere-embed", "cohere", _cohere_embed, read=0, streams=False, writes=False),
    Sdk("cohere-rerank", "cohere", _cohere_rerank, read=0, streams=False, writes=False),
    Sdk("ollama", "ollama", _ollama_chat, read=0, free=True),
    Sdk("ollama-generate", "ollama", _ollama_generate, read=0, free=True),
    Sdk("ollama-embed", "ollama", _ollama_embed, read=0, streams=False, writes=False, free=True),
    Sdk("openai-completions", "openai", _completion, read=0, budget="0.002", cap=()),  # it has one by itself
    Sdk("mistralai", "mistral_ai", _mistral, budget="0.0005"),
    Sdk("mistralai-fim", "mistral_ai", _fim, budget="0.0008"),
    Sdk("mistralai-ocr", "mistral_ai", _ocr, read=0, streams=False, writes=False),
    Sdk("groq", "groq", _groq, ("max_tokens",), read=0, budget="0.0008"),
    Sdk("google-genai", "gcp.gemini", _gemini, ("generationConfig", "maxOutputTokens"), reasoning=5),
    Sdk("google-genai-embedding", "gcp.gemini", _gemini_embedding, read=0, streams=False, writes=False),
]


# -- in an event loop --------------------------------------------------------------------------------------------------------


async def ask_async(provider: FakeProvider) -> None:
    """One whole and one streamed answer of every asynchronous client that travels over httpx."""
    from cohere import AsyncClientV2
    from groq import AsyncGroq
    from mistralai.client import Mistral
    from ollama import AsyncClient

    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    cohere = AsyncClientV2(api_key="test", base_url=provider.url)
    await cohere.chat(model="command-a-03-2025", messages=messages, max_tokens=50)
    async for _ in cohere.chat_stream(model="command-a-03-2025", messages=messages, max_tokens=50):
        pass
    groq = AsyncGroq(base_url=provider.url, api_key="test")
    await groq.chat.completions.create(model="llama-3.3-70b-versatile", messages=messages)
    async for _ in await groq.chat.completions.create(model="llama-3.3-70b-versatile", messages=messages, stream=True):
        pass
    mistral = Mistral(api_key="test", server_url=provider.url)
    await mistral.chat.complete_async(model="mistral-small-latest", messages=messages)
    async for _ in await mistral.chat.stream_async(model="mistral-small-latest", messages=messages):
        pass
    ollama = AsyncClient(host=provider.url)
    await ollama.chat("llama3.2", messages)
    async for _ in await ollama.chat("llama3.2", messages, stream=True):
        pass
