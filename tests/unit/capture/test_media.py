"""Images never count as fewer tokens than their provider's rule says, and everything without a rule as the whole window."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.capture import pictures
from wflo_nb.capture import formats
from wflo_nb.capture.formats.base import Facts
from wflo_nb.capture.media import formula_for, size_of

CHAT, RESPONSES, MESSAGES = (formats.find(f"/v1/{path}") for path in ("chat/completions", "responses", "messages"))
assert CHAT is not None
assert RESPONSES is not None
assert MESSAGES is not None

SIDES = st.integers(1, 9000)


# -- sizes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw", [pictures.png, pictures.gif, pictures.jpeg, pictures.webp_lossy, pictures.webp_lossless, pictures.webp_extended]
)
@pytest.mark.parametrize("size", [(1, 1), (640, 480), (1080, 16_000)])
def test_size_is_read_from_the_header(draw: Callable[[int, int], str], size: tuple[int, int]) -> None:
    assert size_of(draw(*size)) == size


def test_size_of_a_jpeg_is_that_of_its_frame_and_not_of_what_its_metadata_looks_like() -> None:
    assert size_of(pictures.jpeg(800, 600, before=5001)) == (800, 600)


@pytest.mark.parametrize(
    "data", ["", "hello", "é" * 8, "aGVsbG8=", "/9j/", "R0lGODlh", "iVBORw0KGgo=", pictures.png(0, 5), pictures.png(9, 9)[:20]]
)
def test_image_that_does_not_say_its_size_has_none(data: str) -> None:
    assert size_of(data) is None


@given(st.binary(max_size=80))
def test_no_bytes_break_the_reading_of_sizes(junk: bytes) -> None:
    import base64

    for start in (b"", b"\xff\xd8", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBPVP8 "):
        found = size_of(base64.b64encode(start + junk).decode())
        assert found is None or min(found) > 0


# -- formulas, against the providers' own words -----------------------------------------------------------------------------


def by_tiles(width: float, height: float, base: int, tile: int, *, enlarge: bool) -> int:
    """OpenAI's guide, step by step; whether small images are enlarged it does not say."""
    if (shrink := 2048 / max(width, height)) < 1:
        width, height = width * shrink, height * shrink
    fit = 768 / min(width, height)
    if fit < 1 or enlarge:
        fit = min(fit, 2048 / max(width, height)) if fit > 1 else fit
        width, height = width * fit, height * fit
    return base + tile * math.ceil(min(2048, round(width)) / 512) * math.ceil(min(2048, round(height)) / 512)


def by_patches(width: int, height: int, multiplier: float, budget: int) -> float:
    """OpenAI's guide: 32-pixel patches, scaled down into the budget."""
    count = math.ceil(width / 32) * math.ceil(height / 32)
    if count > budget:
        shrink = math.sqrt(32**2 * budget / (width * height))
        across, down = width * shrink / 32, height * shrink / 32
        shrink *= min(max(1, math.floor(across)) / across, max(1, math.floor(down)) / down)
        count = min(budget, math.ceil(int(width * shrink) / 32) * math.ceil(int(height * shrink) / 32))
    return round(count * multiplier, 6)


def by_squares(width: float, height: float, edge: int, limit: int) -> int:
    """Anthropic's guide: scaled down until edge and squares fit, then padded to 28 pixels."""
    scale = min(1.0, edge / max(width, height))
    while (count := math.ceil(max(1, width * scale) / 28) * math.ceil(max(1, height * scale) / 28)) > limit:
        scale *= 0.99
    return count


@given(SIDES, SIDES, st.booleans())
@example(1, 9000, True)
@example(1536, 1025, False)
def test_tiles_are_never_counted_short(width: int, height: int, enlarge: bool) -> None:
    for model, base, tile in (("gpt-4o", 85, 170), ("gpt-4o-mini-2024-07-18", 2833, 5667), ("gpt-5", 70, 140), ("o1", 75, 150)):
        formula = formula_for("openai", model)
        assert formula is not None
        told = by_tiles(width, height, base, tile, enlarge=enlarge)
        assert told <= (formula((width, height), "high") or 0) <= (formula(None, "auto") or 0)
        assert formula((width, height), "low") == base


@given(SIDES, SIDES)
@example(1800, 2400)
def test_patches_are_never_counted_short(width: int, height: int) -> None:
    rules = [("gpt-4.1-mini", 1.62, 1536), ("gpt-5-nano", 2.46, 1536), ("o4-mini-2025-04-16", 1.72, 1536), ("gpt-5.5", 1.2, 10_000)]
    for model, multiplier, budget in rules:
        formula = formula_for("openai", model)
        assert formula is not None
        for detail in ("", "original"):
            told = by_patches(width, height, multiplier, budget)
            assert told <= (formula((width, height), detail) or 0) <= (formula(None, detail) or 0)


@given(SIDES, SIDES)
def test_squares_are_never_counted_short(width: int, height: int) -> None:
    for model, edge, limit in (
        ("claude-sonnet-4-5-20250929", 1568, 1568),
        ("claude-opus-4-7", 2576, 4784),
        ("claude-fable-5-1", 2576, 4784),
    ):
        formula = formula_for("anthropic", model)
        assert formula is not None
        assert by_squares(width, height, edge, limit) <= (formula((width, height), "") or 0) <= (formula(None, "") or 0)


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("gpt-4o", (1024, 1024), 765),
        ("gpt-4o", (2048, 4096), 1105),
        ("gpt-4.1-mini", (1024, 1024), 1659),
        ("gpt-5.6", (3200, 3200), 24_600),
    ],
)
def test_examples_of_the_guide_come_out_as_they_stand_there(model: str, size: tuple[int, int], tokens: int) -> None:
    formula = formula_for("openai", model)
    assert formula is not None
    assert formula(size, "auto") == tokens


@pytest.mark.parametrize(
    ("seller", "model"),
    [
        (None, "gpt-4o"),
        ("openrouter", "gpt-4o"),
        ("openai", "gpt-5.4-mini"),
        ("openai", "gpt-99"),
        ("openai", "gpt-4o-audio-preview"),
        ("anthropic", "claude-opus-6"),
        ("anthropic", "gpt-4o"),
    ],
)
def test_no_rule_is_taken_for_another_model_or_seller(seller: str | None, model: str) -> None:
    assert formula_for(seller, model) is None


# -- in requests -------------------------------------------------------------------------------------------------------------


def chat(*parts: dict[str, Any], seller: str | None = "openai", model: str = "gpt-4o") -> Facts:
    assert CHAT is not None
    return CHAT.read({"model": model, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, *parts]}]}, seller)


def message(*parts: dict[str, Any], seller: str | None = "anthropic") -> Facts:
    assert MESSAGES is not None
    return MESSAGES.read({"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": list(parts)}]}, seller)


def picture(data: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", **more}}


def test_base64_of_an_image_with_a_rule_is_no_text() -> None:
    data = pictures.png(1024, 1024, 100_000)
    facts = chat(picture(data), picture(data, detail="low"))
    assert facts.window is None
    assert facts.inline == 2 * len(data)
    assert 765 + 85 <= facts.extra_input <= 765 + 85 + 100
    assert facts.media


def test_image_by_url_or_file_id_counts_as_the_largest() -> None:
    for part in ({"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}, {"type": "image_url", "image_url": "x"}):
        facts = chat(part)
        assert facts.window is None
        assert facts.inline == 0
        assert facts.extra_input >= 85 + 8 * 170
    assert RESPONSES is not None
    named = RESPONSES.read(
        {"model": "o3", "input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]}, "openai"
    )
    assert named.window is None
    assert named.extra_input >= 75 + 8 * 150


def test_image_in_the_result_of_a_tool_is_seen() -> None:
    data = pictures.jpeg(200, 200)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": data}}
    facts = message({"type": "tool_result", "tool_use_id": "x", "content": [image]})
    assert (facts.window, facts.inline) == (None, len(data))
    assert 64 <= facts.extra_input <= 64 + 50
    assert RESPONSES is not None
    output = [{"type": "input_image", "image_url": f"data:image/jpeg;base64,{data}"}]
    facts = RESPONSES.read({"model": "gpt-4o", "input": [{"type": "function_call_output", "call_id": "x", "output": output}]}, "openai")
    assert facts.inline == len(data)


@pytest.mark.parametrize("seller", [None, "groq"])
def test_where_no_rule_holds_an_image_is_the_window_and_its_bytes_stay_text(seller: str | None) -> None:
    facts = chat(picture(pictures.png(64, 64)), seller=seller)
    assert facts.window
    assert (facts.inline, facts.extra_input) == (0, 0)


@pytest.mark.parametrize(
    ("part", "audio", "inline"),
    [
        ({"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}}, True, 4),
        ({"type": "file", "file": {"file_data": "QUJDREVG", "filename": "x.pdf"}}, False, 8),
        ({"type": "file", "file": {"file_id": "file-1"}}, False, 0),
        ({"type": "video_url", "video_url": {"url": "x"}}, True, 0),
        ({"type": "text", "text": "x", "file_id": "file-1"}, False, 0),
    ],
)
def test_audio_and_files_need_the_whole_window(part: dict[str, Any], audio: bool, inline: int) -> None:
    facts = chat(part)
    assert facts.window
    assert (facts.audio, facts.inline) == (audio, inline)


def test_earlier_audio_of_an_assistant_is_not_in_the_request() -> None:
    assert CHAT is not None
    facts = CHAT.read({"model": "gpt-audio", "messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "openai")
    assert facts.window
    assert facts.audio


def test_reasoning_kept_at_the_provider_is_not_in_the_request() -> None:
    assert RESPONSES is not None
    for item, kept in (({"id": "rs_1", "summary": []}, True), ({"id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}, False)):
        facts = RESPONSES.read({"model": "o3", "input": [{"role": "user", "content": "hi"}, {"type": "reasoning", **item}]}, "openai")
        assert bool(facts.window) is kept


@pytest.mark.parametrize(
    ("source", "window"),
    [
        ({"type": "text", "media_type": "text/plain", "data": "all of it"}, False),
        ({"type": "content", "content": [{"type": "text", "text": "all of it"}]}, False),
        ({"type": "base64", "media_type": "application/pdf", "data": "QUJD"}, True),
        ({"type": "url", "url": "https://example.org/x.pdf"}, True),
        ({"type": "file", "file_id": "file_1"}, True),
    ],
)
def test_document_is_bounded_by_its_text_only_if_that_is_in_the_request(source: dict[str, Any], window: bool) -> None:
    assert bool(message({"type": "document", "source": source}).window) is window


def test_text_alone_is_no_media() -> None:
    facts = chat()
    assert (facts.window, facts.media, facts.inline, facts.extra_input) == (None, False, 0, 0)
