"""How many tokens a request can be read as, at most.

A token of a byte-level tokenizer covers at least one byte, so the bytes of the request bound its tokens, framing included. One
trap: tokenizers that normalise (NFKC) can make text longer first ('ﷺ' is three bytes and eighteen letters), so the growth
under NFKC is added.
"""

from __future__ import annotations

import unicodedata
from typing import Any

#: Tokens that a chat template may add beyond what is in the body (start, end, role markers).
FRAMING = 64


def input_tokens(raw: bytes, body: dict[str, Any]) -> int:
    """An upper bound of the input tokens of a JSON request whose content is all in its body."""
    return len(raw) + FRAMING + (_growth(body) if not raw.isascii() or b"\\u" in raw else 0)


def _growth(value: Any) -> int:
    if isinstance(value, str):
        if value.isascii():
            return 0
        normal = unicodedata.normalize("NFKC", value)
        return max(0, len(normal.encode("utf-8", "surrogatepass")) - len(value.encode("utf-8", "surrogatepass")))
    if isinstance(value, dict):
        return sum(_growth(k) + _growth(v) for k, v in value.items())
    if isinstance(value, list):
        return sum(map(_growth, value))
    return 0
