"""vcrpy remembers the doors of HTTP libraries as they were when it was imported. While a cassette records, it sends through what it
remembers, which would lead past us: so while calls are watched it remembers ours. What it plays back is not sent, and not counted,
where it takes the place of the whole door (httpx, aiohttp).
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from wflo_nb.capture.transports.patching import pair_of

_REMEMBERED = ("_Httpx", "_Aiohttp")


def patch(lib: ModuleType) -> Callable[[], None]:
    """Let ``vcr.patch`` send through our doors. Returns the undo."""
    originals: dict[str, Any] = {}
    for name, door in list(vars(lib).items()):
        pair = pair_of(door) if name.startswith(_REMEMBERED) else None
        if pair is not None:
            originals[name], ours = pair
            setattr(lib, name, ours)

    def undo() -> None:
        for name, door in originals.items():
            setattr(lib, name, door)

    return undo


def recorded(response: Any) -> bytes | None:
    """The body of an answer that comes out of a cassette, in place of one of urllib3's."""
    kept = getattr(response, "recorded_response", None)
    body = kept.get("body", {}).get("string") if isinstance(kept, dict) else None
    return body if isinstance(body, bytes) else None
