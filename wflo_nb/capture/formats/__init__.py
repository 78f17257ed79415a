"""Wire formats: where a request says its model and caps, and where an answer says its usage.

A format is data and small readers; it knows neither money nor HTTP libraries. `find` chooses one by the URL's path, because
gateways, proxies and local servers share paths and not hosts.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from wflo_nb import config
from wflo_nb.capture.formats import (
    anthropic,
    bedrock,
    bedrock_invoke,
    cohere,
    gemini,
    hosts,
    mistral,
    ollama,
    openai,
    openai_completions,
    openai_media,
    openai_responses,
    unmetered,
    vertex,
)
from wflo_nb.capture.formats.base import WireFormat
from wflo_nb.errors import tell

FORMATS: tuple[WireFormat, ...] = (
    *openai.FORMATS,
    *openai_responses.FORMATS,
    *anthropic.FORMATS,
    *gemini.FORMATS,
    *vertex.FORMATS,
    *bedrock.FORMATS,
    *bedrock_invoke.FORMATS,
    *cohere.FORMATS,
    *mistral.FORMATS,
    *ollama.FORMATS,
    *openai_completions.FORMATS,
    *openai_media.FORMATS,
    *unmetered.FORMATS,
)

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
    "ollama.com": "ollama_cloud",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "bedrock-runtime.amazonaws.com": "aws.bedrock",
}

#: Paths of known providers that cost nothing.
FREE_PATHS = (
    "/count_tokens",
    "/count-tokens",
    "/count-tokens:rawPredict",
    "/input_tokens",
    "/moderations",
    "/models",
    "/files",
    "/uploads",
    "/tokenize",
    "/detokenize",
    "/check-api-key",
    ":countTokens",
    ":computeTokens",
    "/cancel",
    "/oauth/token",
    "/traces/ingest",
)


_GATEWAYS = config.Variable("WFLO_GATEWAYS")


def provider_of(host: str) -> str | None:
    """The provider that owns a host, or to whom the user says that it passes calls on (``WFLO_GATEWAYS``); None for any other host."""
    told = _GATEWAYS.get()
    return (_gateways(told).get(hosts.plain(host)) if told else None) or _owner(host)


class Region(NamedTuple):
    """What a host tells of regional surcharges.

    Attributes:
        costs_extra: whether there surely is one for the models that have one, as at the regional hosts of OpenAI
            (``eu.api.openai.com``) and Vertex AI (``us-east5-aiplatform.googleapis.com``, ``aiplatform.eu.rep.googleapis.com``).
        may_cost_extra: False where there surely is none. Elsewhere the region may be set in the account or stand in the path
            (Vertex AI's ``locations/…``), and not in the host.
    """

    costs_extra: bool
    may_cost_extra: bool


#: Hosts of one region or of one part of the world, where some models cost more than at the provider's host for all of it.
_REGIONAL = re.compile(
    r"\.api\.openai\.com$|[a-z0-9]-aiplatform(?:\.[a-z0-9-]+)*\.googleapis\.com$|(?:^|\.)aiplatform\.[a-z0-9-]+\.rep\.googleapis\.com$"
)


@functools.lru_cache(512)
def region_of(host: str) -> Region:
    """The region that a host stands for."""
    name = hosts.plain(host)
    return Region(_REGIONAL.search(name) is not None, name != "api.openai.com")


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
    return next(iter(all_at(path)), None)


@functools.lru_cache(512)
def all_at(path: str) -> tuple[WireFormat, ...]:
    """Every format that may be spoken at a path, the likeliest first: bodies tell them apart. Other packages' where none of ours is."""
    path = path.rstrip("/")
    ours = tuple(f for f in FORMATS if f.speaks_at(path))
    return ours or tuple(f for f in _plugged_in() if f.speaks_at(path))


@functools.cache
def _plugged_in() -> tuple[WireFormat, ...]:
    """The formats of other packages (see `wflo_nb.capture.formats.base`). A broken one is told, and costs nothing but itself."""
    from importlib.metadata import entry_points

    found: list[WireFormat] = []
    for point in entry_points(group="wflo_nb.formats"):
        try:
            told = point.load()
            some = (told,) if isinstance(told, WireFormat) else tuple(told)
            if not all(isinstance(one, WireFormat) for one in some):
                raise TypeError(f"it gives {type(told).__name__}, not WireFormat")  # noqa: TRY301 - told like every other fault
            found.extend(some)
        except Exception as error:
            tell(
                f"The wire format {point.name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}. "
                "Calls that it would read count as calls that cannot be read."
            )
    return tuple(found)


#: Where OpenAI keeps what was said, at no cost: no model runs before a response is asked for, which then counts all of it.
#: https://platform.openai.com/docs/api-reference/conversations. Mistral runs a model at the same paths.
_KEPT = re.compile(r"/conversations(?:/[^/]+(?:/items)?)?$")
_KEEPERS = frozenset({"openai", "azure.ai.openai"})


def is_free(path: str, provider: str) -> bool:
    """Whether a path of a provider is one that costs nothing."""
    path = path.rstrip("/")
    return path.endswith(FREE_PATHS) or (provider in _KEEPERS and _KEPT.search(path) is not None)
