"""What an answer said, read out of the bytes that are kept of it, when somebody asks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from wflo_nb.capture import framing

#: See `said` of `wflo_nb.capture.formats.base.WireFormat`.
Said = Callable[[dict[str, Any]], Iterator[tuple[int, str]]]


def objects(events: framing.Framing | None, data: bytes) -> Iterator[Any]:
    """The JSON values of an answer, of a stream those of its events (framed as `events`). What is damaged is left out."""
    for text in [data] if events is None else framing.payloads(events, data):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
            yield from value if isinstance(value, list) else (value,)


def text_of(values: Iterator[Any], said: Said | None) -> str:
    """All that the values of an answer say; several choices follow each other, with a blank line between them."""
    found: dict[int, list[str]] = {}
    for value in values if said is not None else ():
        try:
            for choice, piece in said(value) if said is not None and isinstance(value, dict) else ():
                found.setdefault(choice, []).append(str(piece or ""))
        except Exception:  # broken in a way that the settlement has told
            continue
    return "\n\n".join("".join(found[choice]) for choice in sorted(found))
