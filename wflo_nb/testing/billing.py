"""What the stand-in provider charges, how it counts, and how it can be told to behave."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wflo_nb.model import Usage

Rates = Mapping[str, tuple[float, float, float, float, float]]

_TOKEN = re.compile(r"\w+|[^\w\s]")
_MEDIA = frozenset(("image_url", "input_image", "image", "input_audio", "audio", "file", "input_file", "document"))

#: USD per million tokens: input, cached input, cache write, one-hour cache write, output. As published, November 2026.
RATES: dict[str, tuple[float, float, float, float, float]] = {
    "gpt-4o": (2.5, 1.25, 2.5, 2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.075, 0.15, 0.15, 0.6),
    "gpt-5.4": (2.5, 0.25, 2.5, 2.5, 15.0),
    "o1-pro": (150.0, 150.0, 150.0, 150.0, 600.0),
    "claude-sonnet-4-5": (3.0, 0.3, 3.75, 6.0, 15.0),
    "text-embedding-3-small": (0.02, 0.02, 0.02, 0.02, 0.0),
    "gpt-3.5-turbo-instruct": (1.5, 1.5, 1.5, 1.5, 2.0),
    "mistral-small-latest": (0.15, 0.015, 0.15, 0.15, 0.6),
    "codestral-latest": (0.3, 0.03, 0.3, 0.3, 0.9),
    "llama-3.3-70b-versatile": (0.59, 0.59, 0.59, 0.59, 0.79),
    "command-a-03-2025": (2.5, 2.5, 2.5, 2.5, 10.0),
    "us.anthropic.claude-sonnet-4-5": (3.3, 0.33, 4.125, 6.6, 16.5),
    "us.meta.llama3-3-70b-instruct": (0.72, 0.72, 0.72, 0.72, 0.72),
    "embed-v4.0": (0.12, 0.12, 0.12, 0.12, 0.0),
    "llama3.2": (0.0, 0.0, 0.0, 0.0, 0.0),
    "nomic-embed-text": (0.0, 0.0, 0.0, 0.0, 0.0),
    "gpt-image-1": (5.0, 1.25, 5.0, 5.0, 40.0),
    "gemini-2.5-flash": (0.3, 0.03, 0.3, 0.3, 2.5),
    "gemini-2.5-pro": (1.25, 0.125, 1.25, 1.25, 10.0),
    "gemini-embedding-001": (0.15, 0.15, 0.15, 0.15, 0.0),
}

#: USD for one unit of models that are billed by pages, searches or grounded prompts.
UNIT_RATES: dict[str, float] = {
    "google_search": 0.035,
    "character of tts-1": 0.000015,
    "search of rerank-v3.5": 0.002,
    "page of mistral-ocr-latest": 0.004,
}

#: Models that charge all of a long prompt at other rates: the tokens up to which `RATES` holds, and the rates beyond.
LONG_PROMPTS: dict[str | None, tuple[int, tuple[float, float, float, float, float]]] = {
    "gpt-5.4": (272_000, (5.0, 0.5, 5.0, 5.0, 22.5)),
}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the provider answers.

    Attributes:
        tokens: length of the answer, unless the request's cap is lower.
        reasoning: how many of these tokens are reported as reasoning.
        cache_read, cache_write, cache_write_1h: how many input tokens are reported as cached.
        cached, written, written_1h: the shares (0 to 1) of the prompt's own tokens that come from a cache, or are written to one.
        usage: ``"full"``, ``"missing"`` (no field), ``"null"``, ``"garbage"`` (not numbers), ``"doubled"`` (a stream reports it twice).
        media_tokens: what each image, audio or file part is billed as; None counts the words of its data.
        normalised: count every character of the prompt's NFKC form as a token, as a tokenizer may in the worst case.
        status: an HTTP error instead of an answer; `billed` charges for it all the same.
        cut_after: drop the connection after so many stream events (or before any body when not streaming).
        malformed: send bytes that are not what the format promises.
        delay: seconds before the head; `chunk_delay`: seconds before each stream event.
        answered_model: the model that the answer names.
        headers: further headers of a whole answer.
        raw: these very bytes as a whole answer, whatever was asked.
        retry_after_ms: sent as a header with an error.
        searches: how many searches of its own a model that may search reports.
        usage_in: where a chat stream has its usage: in an event of its own if it was asked for (``"extra"``), always in the last event
            with choices (``"last"``, as Mistral, which turns the wish for it away), or in that event under ``x_groq``.
        pages: how many pages a document is said to have.
        text: what the answer says, instead of so many words; it is billed by `tokens` all the same.
        tools: the tools that are called one after another, each in the answer to a request that offers it and holds the results of
            those before; ``"*"`` is the first that is offered. Afterwards the answer is in words.
    """

    tokens: int = 20
    reasoning: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    cached: float = 0.0
    written: float = 0.0
    written_1h: float = 0.0
    usage: Literal["full", "missing", "null", "garbage", "doubled"] = "full"
    media_tokens: int | None = None
    normalised: bool = False
    status: int = 200
    billed: bool = False
    cut_after: int | None = None
    malformed: bool = False
    delay: float = 0.0
    chunk_delay: float = 0.0
    answered_model: str | None = None
    retry_after_ms: int | None = None
    searches: int = 0
    raw: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    usage_in: Literal["extra", "last", "x_groq"] = "extra"
    pages: int = 1
    text: str | None = None
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Billed:
    """One line of the provider's own bill. `units` are what is billed beside tokens: pages, searches, images."""

    model: str
    api: str
    usage: Usage
    nano_usd: int
    stream: bool
    units: int = 0


def count_tokens(text: str, normalised: bool = False) -> int:
    """The tokenizer of this provider: a word is one token, and so is every other character that is not a space.

    `normalised` counts each character of the NFKC form instead.
    """
    return len(unicodedata.normalize("NFKC", text)) if normalised else len(_TOKEN.findall(text))


def price(model: str, usage: Usage, rates: Rates | None = None) -> int:
    """Nano-USD by `RATES`, or by `rates` for the models that it names, in exact integers, rounded up once."""
    table = {**RATES, **(rates or {})}
    known = next((name for name in sorted(table, key=len, reverse=True) if model.startswith(name)), None)
    base = table[known] if known else (1.0, 1.0, 1.0, 1.0, 1.0)
    if known in LONG_PROMPTS and usage.input_tokens > LONG_PROMPTS[known][0]:
        base = LONG_PROMPTS[known][1]
    rate_in, rate_read, rate_write, rate_write_1h, rate_out = (round(r * 1_000_000) for r in base)
    plain = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
    pico = (
        plain * rate_in
        + usage.cache_read_tokens * rate_read
        + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * rate_write
        + usage.cache_write_1h_tokens * rate_write_1h
        + usage.output_tokens * rate_out
    )
    return -(-pico // 1000)


def texts(value: Any, media: list[Any] | None = None) -> Iterator[str]:
    """Every text below a value; parts that are media are put into `media` instead, if that is given."""
    if isinstance(value, str):
        yield value
    elif media is not None and isinstance(value, dict) and value.get("type") in _MEDIA:
        media.append(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item, media)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item, media)
