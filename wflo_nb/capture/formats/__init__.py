"""Wire formats: where a request says its model and caps, and where an answer says its usage.

A format is data and small readers; it knows neither money nor HTTP libraries. `find` chooses one by the URL's path, because
gateways, proxies and local servers share paths and not hosts.
"""

from __future__ import annotations

import functools
import os

from wflo_nb import config
from wflo_nb.capture.formats import anthropic, hosts, openai
from wflo_nb.capture.formats.base import WireFormat

FORMATS: tuple[WireFormat, ...] = (*openai.FORMATS, *anthropic.FORMATS)

#: Provider names as OpenTelemetry spells them, by the end of the host name.
PROVIDERS: dict[str, str] = {
    "api.openai.com": "openai",
    "openai.azure.com": "azure.ai.openai",
    "cognitiveservices.azure.com": "azure.ai.openai",
    "api.anthropic.com": "anthropic",
    "api.groq.com": "groq",
    "api.deepseek.com": "deepseek",
    "api.mistral.ai": "mistral_ai",
    "api.x.ai": "x_ai",
    "api.together.xyz": "together",
    "openrouter.ai": "openrouter",
    "api.fireworks.ai": "fireworks",
    "api.perplexity.ai": "perplexity",
    "api.cohere.com": "cohere",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "bedrock-runtime.amazonaws.com": "aws.bedrock",
}

#: Paths of known providers that cost nothing.
FREE_PATHS = (
    "/count_tokens",
    "/input_tokens",
    "/moderations",
    "/models",
    "/files",
    "/uploads",
    "/tokenize",
    ":countTokens",
    "/cancel",
    "/oauth/token",
)


def provider_of(host: str) -> str | None:
    """The provider that owns a host, or to whom the user says that it passes calls on (``WFLO_GATEWAYS``); None for any other host."""
    told = os.environ.get("WFLO_GATEWAYS")
    return (_gateways(told).get(hosts.plain(host)) if told else None) or _owner(host)


@functools.lru_cache(8)
def _gateways(told: str) -> dict[str, str]:
    return dict(config.gateways(told))


@functools.lru_cache(512)
def _owner(host: str) -> str | None:
    host = hosts.plain(host)
    for end, provider in PROVIDERS.items():
        if host == end or host.endswith("." + end):
            return provider
    return hosts.owner(host)


@functools.lru_cache(512)
def find(path: str) -> WireFormat | None:
    """The format spoken at a path, or None."""
    path = path.rstrip("/")
    return next((f for f in FORMATS if path.endswith(f.path)), None)


def is_free(path: str) -> bool:
    """Whether a path of a known provider is one that costs nothing."""
    return path.rstrip("/").endswith(FREE_PATHS)
