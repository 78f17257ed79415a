"""Models that are billed by pages, searches, images, seconds or characters instead of tokens: nano-USD for each.

From litellm's map, read by hand: a table of tokens has no place for them. Where a model has several prices by quality or size, the
dearest.
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE, DATE = "litellm 1.106.2", "2026-10-21"


class Unit(NamedTuple):
    """What is counted, and nano-USD for one."""

    name: str
    nano: int


def _each(name: str, nano: int, *models: str) -> dict[str, Unit]:
    return dict.fromkeys(models, Unit(name, nano))


#: Table provider → model → unit. `page` is a page of a document, `search` a query over up to 100 documents.
UNITS: dict[str, dict[str, Unit]] = {
    "cohere": {
        **_each("search", 2_000_000, "rerank-english-v3.0", "rerank-multilingual-v3.0", "rerank-v3.5", "rerank-v4.0-fast"),
        **_each("search", 2_500_000, "rerank-v4.0-pro"),
    },
    "bedrock": {
        **_each("search", 2_000_000, "cohere.rerank-v3-5:0"),
        **_each("search", 1_000_000, "amazon.rerank-v1:0"),
    },
    "mistral": {
        **_each("page", 4_000_000, "mistral-ocr-latest", "mistral-ocr-4", "mistral-ocr-4-0", "mistral-ocr-4-1"),
        **_each("page", 2_000_000, "mistral-ocr-3", "mistral-ocr-3-0", "mistral-ocr-2512"),
        **_each("second", 50_000, "voxtral-mini-latest", "voxtral-mini-2602"),
        **_each("character", 16_000, "voxtral-mini-tts-latest", "voxtral-mini-tts-2603"),
    },
    "openai": {
        **_each("character", 15_000, "tts-1", "tts-1-1106"),
        **_each("character", 30_000, "tts-1-hd", "tts-1-hd-1106"),
        **_each("second", 100_000, "whisper-1"),
    },
    "groq": {
        **_each("character", 22_000, "canopylabs/orpheus-v1-english"),
        **_each("character", 40_000, "canopylabs/orpheus-arabic-saudi"),
        **_each("second", 30_830, "whisper-large-v3"),
        **_each("second", 11_110, "whisper-large-v3-turbo"),
    },
    "xai": {
        **_each("image", 20_000_000, "grok-imagine-image", "grok-imagine-image-2026-03-02"),
        **_each(
            "image",
            50_000_000,
            "grok-imagine-image-quality",
            "grok-imagine-image-quality-20260403",
            "grok-imagine-image-quality-latest",
            "grok-imagine-image-pro",
        ),
        **_each("image", 60_000_000, "grok-imagine-image-2.0"),
    },
}


def find(provider: str, model: str) -> Unit | None:
    """The unit price of a model at a canonical provider; at one that nobody knows, the dearest of those who list it."""
    name = model.strip().lower()
    known = UNITS.get(provider)
    if known is not None:
        return known.get(name)
    return max((units[name] for units in UNITS.values() if name in units), key=lambda unit: unit.nano, default=None)
