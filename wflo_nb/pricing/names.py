"""The many spellings of providers and models, brought to the keys of the price table. Pure text, no prices."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Spellings → the table's provider. Names are compared in lower case with ``-``, ``.`` and spaces as ``_``.
_PROVIDERS = {
    "aws": "bedrock",
    "aws_bedrock": "bedrock",
    "amazon_bedrock": "bedrock",
    "bedrock_converse": "bedrock",
    "bedrock_mantle": "bedrock",
    "azure_ai": "azure",
    "azure_ai_openai": "azure",
    "azure_ai_inference": "azure",
    "azure_openai": "azure",
    "azure_text": "azure",
    "az_ai_openai": "azure",
    "az_ai_inference": "azure",
    "gcp_gemini": "google",
    "gcp_vertex_ai": "google",
    "gcp_gen_ai": "google",
    "gemini": "google",
    "google_gla": "google",
    "google_vertex": "google",
    "vertex_ai": "google",
    "vertexai": "google",
    "mistral_ai": "mistral",
    "mistralai": "mistral",
    "codestral": "mistral",
    "text_completion_codestral": "mistral",
    "text_completion_openai": "openai",
    "text_completion_inception": "inception",
    "cohere_chat": "cohere",
    "together_ai": "together",
    "togetherai": "together",
    "x_ai": "xai",
    "grok": "xai",
    "fireworks_ai": "fireworks",
    "fireworks_ai_embedding_models": "fireworks",
    "moonshot": "moonshotai",
    "moonshot_ai": "moonshotai",
    "voyageai": "voyage",
    "ibm_watsonx_ai": "watsonx",
    "meta_llama": "meta",
    "perplexity_ai": "perplexity",
    "deepseek_ai": "deepseek",
    "lmstudio": "lm_studio",
    "llama_cpp": "llamacpp",
}

#: They run on the user's own machine: whatever they serve costs nothing per token.
FREE_PROVIDERS = frozenset({"ollama", "llamafile", "lm_studio", "llamacpp", "lemonade"})

#: Where else to look when a provider resells the models of others under their own names and prices.
RESELLS: dict[str, tuple[str, ...]] = {"azure": ("openai", "anthropic", "deepseek", "xai", "moonshotai"), "google": ("anthropic",)}

#: Those who make models. A bare id at an unknown host is known when one of them lists it.
MAKERS = ("openai", "anthropic", "google", "mistral", "cohere", "deepseek", "xai", "moonshotai", "voyage", "perplexity", "zai", "minimax")

#: ``gpt-4o-2024-08-06``, ``claude-sonnet-4-20250514``, ``claude-3-5-haiku@20241022``: a real calendar date at the end.
_DATE = re.compile(r"[-@]20\d{2}-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01])$")
_LATEST = re.compile(r"[-@](?:latest|default)$")
_BEDROCK_VERSION = re.compile(r"-v\d+(?::\d+(?::\d+k)?)?$")
_BEDROCK_REGION = re.compile(r"^(?:us|eu|apac|ap|au|jp|ca|sa|me|il|global|us-gov)\.")


def canonical_provider(name: str | None) -> str:
    """The table's name of a provider; the empty text for none. Unknown names come back normalised."""
    key = re.sub(r"[-.\s]+", "_", (name or "").strip().lower())
    if key.startswith("vertex_ai_"):  # litellm names a provider per family of models on Vertex
        return "google"
    return _PROVIDERS.get(key, key)


def spellings(provider: str, model: str) -> Iterator[str]:
    """Ways to write the same model id, the most exact first. `provider` is canonical. None of them changes the model."""
    name = model.strip().lower()
    yield name
    head, slash, tail = name.partition("/")
    if slash and canonical_provider(head) == provider:
        name = tail
        yield name
    if "/models/" in f"/{name}":  # models/gemini-…, publishers/google/models/…, projects/…/models/…
        name = f"/{name}".rpartition("/models/")[2]
        yield name
    if provider == "bedrock":
        yield from _bedrock_spellings(name)
    if name.startswith("ft:"):  # ft:gpt-4o-mini-2024-07-18:org:name:id is billed by what was tuned, at the rate of tuned models
        name = ":".join(name.split(":")[:2])
        yield name


def _bedrock_spellings(name: str) -> Iterator[str]:
    if name.startswith("arn:"):
        name = name.rpartition("/")[2]
        yield name
    for spelling in (name, _BEDROCK_VERSION.sub("", name)):
        yield spelling
        yield _BEDROCK_REGION.sub("", spelling)


def family(name: str) -> str | None:
    """The id without a date or ``-latest`` at its end, None if it has neither: what a new snapshot of a known model is priced by."""
    short = _DATE.sub("", name)
    if short == name:
        short = _LATEST.sub("", name)
    return short if short != name and short else None
