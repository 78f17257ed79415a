"""Images, audio and files in a request: how many input tokens they can be, where the provider says so.

Three answers exist for a part whose content is not text:

* **a formula**, where the provider documents one and it is surely an upper bound: images at OpenAI, Azure, Anthropic and Google. The bytes
  of a base64 image then no longer count as text. Their size is read from the image's own header; when it cannot be read, or the
  image is named by URL or file id, the most that one image can be counts.
* **the context window** for everything else (`Media.window` says why): audio, whose tokens per second are documented for other
  interfaces only; PDF, whose pages hold compressed text; images of models without a documented rule; hosts that nobody knows,
  which may count as they like. Base64 then also counts as text, because a server that does not understand it may read it as text.
* **its text**, for documents that are plain text in the request.

Sources, read in November 2026: OpenAI, https://developers.openai.com/api/docs/guides/images-vision (“Calculating costs”, “Model
sizing behavior”); Anthropic, https://platform.claude.com/docs/en/build-with-claude/vision (“Resolution and token cost”).
"""

from __future__ import annotations

import base64
import functools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Tokens beside the image itself (start, end, its number); bills seen in public exceed the formulas by less than ten.
_AROUND = 32
#: As much of a file as is searched for its size: JPEG puts thumbnails and colour profiles before it.
_HEAD = 65_536


#: Size of an image (None: unknown) and the detail asked for → the most tokens, None without a bound.
Formula = Callable[[tuple[int, int] | None, str], int | None]


@dataclass(slots=True)
class Media:
    """What the parts of a request that are not text come to.

    Attributes:
        tokens: the most input tokens of all parts with a formula.
        inline: how many bytes of the request these parts take, which are no text.
        window: why only the context window is a bound; None if everything has a formula.
        unbounded: why nothing bounds the input's cost.
        paged: whether the seller may have documents read for the model, at a price for each page.
        kinds: what was found (``image``, ``audio``, ``file``).
        formula: the provider's rule for images of the model, if it documents one.
        trusted: whether the provider is known to read base64 as what it is, never as text.
    """

    formula: Formula | None = None
    trusted: bool = False
    tokens: int = 0
    inline: int = 0
    window: str | None = None
    unbounded: str | None = None
    kinds: frozenset[str] = frozenset()
    paged: bool = False

    @classmethod
    def at(cls, seller: str | None, model: str) -> Media:
        """Nothing found yet, in a request for a model to a seller."""
        return cls(formula_for(seller, model), seller in _RULES, paged=seller in _PAGED)

    def add(self, kind: str, tokens: int | None, data: Any = None, *, why: str = "") -> None:
        """One part: with its bound, or None and why there is none. `data` is its base64, if it is in the request."""
        self.kinds |= {kind}
        if tokens is None:
            self.window = self.window or why
        else:
            self.tokens += tokens
        if self.trusted and isinstance(data, str) and data.isascii():  # what is not ASCII is no base64, and counts as text
            self.inline += len(data)

    def add_document(self, data: Any = None, *, why: str) -> None:
        """Count one document."""
        self.add("file", None, data, why=why)
        if self.paged:
            self.unbounded = self.unbounded or "documents are read there for models that cannot, billed by the page; send their text"

    def add_image(self, source: str | None, detail: object = None, *, inline: bool | None = None) -> None:
        """Count one image.

        Args:
            source: its data URL, other URL or base64 data; None when it is only named (a file id).
            detail: the fidelity asked for, where the provider knows one.
            inline: True for bare base64 data, None to look whether it is a data URL.
        """
        if self.formula is None:
            # Servers without a rule were seen to read the base64 as text, so that it stays counted as text.
            self.add("image", None, why="an image, for which the provider documents no bound that surely holds")
            return
        head = _DATA_URL.match(source) if source and inline is None else None
        data = (source[head.end() :] if head else source) if source and (head or inline) else None
        tokens = self.formula(size_of(data) if data else None, detail if isinstance(detail, str) else "")
        around = None if tokens is None else tokens + _AROUND
        self.add("image", around, data, why="an image of unknown size, which the model reads at its full size")


# -- sizes -------------------------------------------------------------------------------------------------------------------


def size_of(data: str) -> tuple[int, int] | None:
    """Width and height of a base64 PNG, JPEG, GIF or WebP by its header, None if it does not say."""
    try:
        head = base64.b64decode(data[:_HEAD].encode("ascii"), validate=True)
        found = _png(head) or _gif(head) or _webp(head) or _jpeg(head)
    except (ValueError, struct.error, IndexError):  # not base64, cut off, or no image
        return None
    return found if found and min(found) > 0 else None


def _png(head: bytes) -> tuple[int, int] | None:
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _gif(head: bytes) -> tuple[int, int] | None:
    if head[:6] not in (b"GIF87a", b"GIF89a"):
        return None
    width, height = struct.unpack("<HH", head[6:10])
    return width, height


def _webp(head: bytes) -> tuple[int, int] | None:
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if head[12:16] == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg(head: bytes) -> tuple[int, int] | None:
    if head[:2] != b"\xff\xd8":
        return None
    at = 2
    while head[at] == 0xFF:
        kind = head[at + 1]
        if kind == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # the start of a frame, not a table
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            return width, height
        elif kind == 0x01 or 0xD0 <= kind <= 0xD7:  # a marker without a length
            at += 2
        else:
            at += 2 + int(struct.unpack(">H", head[at + 2 : at + 4])[0])
    return None


# -- formulas ----------------------------------------------------------------------------------------------------------------


#: By how many pixels a provider's rounding of both steps may lengthen the longer side.
_ROUNDED = 3


def tiles(base: int, tile: int) -> Formula:
    """OpenAI's tiles: fitted into 2048×2048, then the shorter side to 768, then 512-pixel squares.

    Whether a small image is enlarged the guide does not say, so it counts as enlarged: the shorter side is two tiles.
    """

    def count(size: tuple[int, int] | None, detail: str) -> int:
        if detail == "low":
            return base
        if size is None:
            return base + 8 * tile
        short, long = min(size), max(size)
        exact = (long <= 2048 or short * 2048 % long == 0) and 768 * long % short == 0
        reach = min(2048, -(-768 * long // short) + (0 if exact else _ROUNDED))
        return base + 2 * -(-reach // 512) * tile

    return count


_LOW = (512 // 32) ** 2


def patches(mille: int, budget: int | None, original: int | None = None) -> Formula:
    """OpenAI's 32-pixel patches times a multiplier (per mille).

    Args:
        mille: the multiplier.
        budget: patches at most at ``low`` and ``high``; None if the guide names no number, so that only a known size is a bound.
        original: patches at most at every other detail and without one, if that is more.
    """
    most = original or budget

    def count(size: tuple[int, int] | None, detail: str) -> int | None:
        limit = budget if detail in ("low", "high") else most
        needed = None if size is None else -(-size[0] // 32) * -(-size[1] // 32)
        if needed is not None and detail == "low":
            needed = max(needed, _LOW)  # “a version of 512 × 512 pixels”, perhaps also of a smaller image
        known = [number for number in (limit, needed) if number is not None]
        return -(-min(known) * mille // 1000) if known else None

    return count


def squares(limit: int) -> Formula:
    """Anthropic's 28-pixel squares, at most `limit` after the provider has scaled the image down.

    The older wording of the same rule, width × height ÷ 750, is a few tokens more for some sizes: the larger counts.
    """

    def count(size: tuple[int, int] | None, _detail: str) -> int:
        if size is None:
            return limit
        width, height = size
        return min(limit, max(-(-width // 28) * -(-height // 28), -(-width * height // 750)))

    return count


_DATED = r"(?:-20\d\d-\d\d-\d\d)?"
#: OpenAI's rules by model id. Where the guide lists no multiplier the largest of all counts, and the largest patch budget that
#: was ever billed. Not listed, so bounded by the window: models without a rule in the guide, and gpt-5.4-mini and -nano, for
#: which bills were reported that the guide does not explain.
_OPENAI: tuple[tuple[re.Pattern[str], Formula], ...] = tuple(
    (re.compile(f"(?:openai/)?(?:{names}){_DATED}"), formula)
    for names, formula in (
        ("gpt-4o|chatgpt-4o-latest|gpt-4o-search-preview|gpt-4.1|gpt-4.5-preview", tiles(85, 170)),
        ("gpt-4o-mini", tiles(2833, 5667)),
        ("gpt-5|gpt-5-chat-latest", tiles(70, 140)),
        ("o1|o1-pro|o3", tiles(75, 150)),
        ("computer-use-preview", tiles(65, 129)),
        ("gpt-4.1-mini|gpt-5-mini", patches(1620, 1536)),
        ("gpt-4.1-nano|gpt-5-nano", patches(2460, 1536)),
        ("o4-mini", patches(1720, 1536)),
        ("gpt-5.2|gpt-5.2-chat-latest|gpt-5.2-codex|gpt-5.3-codex|gpt-5-codex-mini|gpt-5.1-codex-mini", patches(2460, 2500)),
        ("gpt-5.4|gpt-5.5", patches(2460, 2500, 10_000)),
        (r"gpt-5\.6(?:-sol|-terra|-luna)?", patches(2460, None)),
    )
)

_CLAUDE_DATED = r"(?:[-@]20\d{6}|-latest)?"
_ANTHROPIC: tuple[tuple[re.Pattern[str], Formula], ...] = tuple(
    (re.compile(f"(?:anthropic/)?(?:{names}){_CLAUDE_DATED}"), formula)
    for names, formula in (
        # Up to 1,568 squares; the guide of their time said “about 1,600 tokens”.
        (r"claude-3(?:-5|-7)?-(?:opus|sonnet|haiku)|claude-(?:opus|sonnet|haiku)-4(?:-[0-6])?", squares(1640)),
        # “Claude 4.7 and later”.
        (r"claude-(?:opus|sonnet|haiku)-4-[789]|claude-(?:opus|sonnet|haiku|fable|mythos)-5(?:-\d)?", squares(4784)),
    )
)


def crops(least: int) -> Formula:
    """Google's crops of 258 tokens each: an image is cut by a unit of two thirds of its shorter side, which is between 256 and 768 pixels.

    Later models have a number of tokens by the resolution asked for instead, `least` at most: the larger counts. The unit counts as
    256, so that rounding and scaling cannot matter.
    """

    def count(size: tuple[int, int] | None, _detail: str) -> int | None:
        return None if size is None else max(least, -(-size[0] // 256) * -(-size[1] // 256) * 258)

    return count


#: https://ai.google.dev/gemini-api/docs/image-understanding, …/media-resolution (ultra high: 2,240 tokens).
_GOOGLE: tuple[tuple[re.Pattern[str], Formula], ...] = ((re.compile(r"(?:models/)?gemini-[23](?:\.\d)?-[\w.-]+"), crops(2240)),)

_RULES = {
    "openai": _OPENAI,
    "azure.ai.openai": _OPENAI,
    "anthropic": _ANTHROPIC,
    "gcp.gemini": _GOOGLE,
    "gcp.vertex_ai": (*_GOOGLE, *_ANTHROPIC),
}


#: https://openrouter.ai/docs/features/multimodal/pdfs: by OCR, unless the model reads them itself or another way is asked for.
_PAGED = frozenset({"openrouter"})


@functools.lru_cache(256)
def formula_for(seller: str | None, model: str) -> Formula | None:
    """The rule by which a seller counts the images of a model; None if it documents none that surely bounds them."""
    return next((formula for names, formula in _RULES.get(seller or "", ()) if names.fullmatch(model)), None)


_DATA_URL = re.compile(r"data:image/[a-z+.-]+;base64,", re.IGNORECASE)
