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
        cap: where a request has its cap.
        read, reasoning: what the stand-in may report as cached or as reasoning here.
        streams, writes: whether there are streams, and whether anything is generated.
        free: whether its models cost nothing.
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


SDKS = [
    Sdk("google-genai", "gcp.gemini", _gemini, ("generationConfig", "maxOutputTokens"), reasoning=5),
    Sdk("google-genai-embedding", "gcp.gemini", _gemini_embedding, read=0, streams=False, writes=False),
]
