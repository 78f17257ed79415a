"""Events of a stream that are alike: between one token and the next only the text differs, and what pads it to hide its length.

One event is searched for all that may say something about money. Of those that are the same byte by byte, but for what stands inside of
the quotes of the text and of the padding, nothing else can be true: in JSON a quote within a string is escaped, so the text cannot reach
beyond its own. Comparing takes a fraction of the searches.
"""

from __future__ import annotations

import re

#: Where a text begins: the names that it has in the formats of this package.
_TEXT = re.compile(rb'"(?:content|text|delta|reasoning_content|reasoning|thinking)":"')
#: What OpenAI makes chunks of all lengths with.
_PADDING = b',"obfuscation":"'
_QUOTE, _ESCAPE, _END = b'"', 0x5C, b'"}\n\n'


class Mold:
    """What an event has around its text: all before it, and from the quote after it to the end, or to the padding."""

    __slots__ = ("_after", "_cut", "_head", "_padded", "_resume", "_start", "_tail")

    def __init__(self, head: bytes, tail: bytes, padded: bool, cut: bytes) -> None:
        """`cut`: what the user does not get of the tail."""
        self._head, self._start = head, len(head)
        self._tail, self._after = tail, len(tail)
        self._padded = padded
        at = tail.find(cut)
        self._cut, self._resume = (at, at + len(cut)) if at >= 0 else (0, 0)

    def passing(self, data: bytes) -> bytes | None:
        """What the user gets of an event like that; None of any other."""
        if not data.startswith(self._head) or data.find(b"\n", self._start) != len(data) - 2:  # only the two that end it
            return None
        end = data.find(_QUOTE, self._start)
        if not data.startswith(self._tail, end) or data[end - 1] == _ESCAPE:
            return None
        rest = end + self._after
        if self._padded:
            close = data.find(_QUOTE, rest)
            if data[close:] != _END or data[close - 1] == _ESCAPE:
                return None
        elif rest != len(data):
            return None
        return data[: end + self._cut] + data[end + self._resume :] if self._resume else data


def mold(event: bytes, bare: bytes, cut: bytes) -> Mold | None:
    """The mold of one event that says nothing about money, and of which the user gets it without `cut`, `bare`; None if it has no text that
    is told apart.
    """
    found = _TEXT.search(event)
    end = event.find(_QUOTE, found.end()) if found is not None else -1
    if found is None or end < 0:
        return None
    before, padding, _ = event[end:].partition(_PADDING)
    made = Mold(event[: found.end()], before + padding, bool(padding), cut)
    return made if made.passing(event) == bare else None
