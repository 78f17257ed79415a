"""What a workflow was given and gave, as the ledger keeps it: JSON where it is JSON, a typed preview where it is not, secrets masked."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from wflo_nb.credentials import holds_credentials, is_secret, masked

_SECRET = "[secret]"
_TEXT = 8_000
#: Longer numbers may not be written out (`sys.set_int_max_str_digits`).
_BITS = 2_000
_PREVIEW = 300
_DEEPEST = 12
_ITEMS = 1_000


def kept(value: Any) -> tuple[Any, bool]:
    """A value as JSON, and whether that is all of it (False: something is only previewed or shortened).

    Never raises: what is recorded of an answer must not cost the answer.
    """
    try:
        return _kept(value)
    except Exception as error:  # code of its own; or somebody changes it meanwhile
        return {"type": type(value).__qualname__, "preview": f"<it cannot be told: {type(error).__name__}>"}, False


def _kept(value: Any) -> tuple[Any, bool]:
    whole = True

    def told(thing: Any, depth: int, name: str = "") -> Any:
        nonlocal whole
        if thing is None or isinstance(thing, bool):
            return thing
        if isinstance(thing, int) and thing.bit_length() < _BITS:
            return thing if abs(thing) < 2**63 else str(thing)
        if isinstance(thing, float):
            return thing if thing == thing and abs(thing) != float("inf") else str(thing)
        if isinstance(thing, str):
            if name and is_secret(name, thing):
                return _SECRET
            whole = whole and len(thing) <= _TEXT
            return masked(thing, _TEXT)
        if depth < _DEEPEST and type(thing) is dict and all(isinstance(key, str) for key in thing):
            whole = whole and len(thing) <= _ITEMS
            found: dict[str, Any] = {}
            for key, item in list(thing.items())[:_ITEMS]:
                found[_free(found, masked(key))] = told(item, depth + 1, key)
            return found
        if depth < _DEEPEST and type(thing) in (list, tuple):
            whole = whole and len(thing) <= _ITEMS and type(thing) is list
            return [told(item, depth + 1, name) for item in thing[:_ITEMS]]
        whole = False
        return _preview(thing)

    return told(value, 0), whole


def _free(taken: Mapping[str, Any], name: str) -> str:
    """A name that no other item has: of two keys nothing but that they are some may be left."""
    return next(free for n in itertools.count(1) if (free := name if n == 1 else f"{name} {n}") not in taken)


def _preview(thing: Any) -> dict[str, Any]:
    kind = type(thing)
    named = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    found: dict[str, Any] = {"type": named}
    if holds_credentials(thing) or isinstance(thing, Mapping) or dataclasses.is_dataclass(thing):
        return found  # what it shows of itself may be a key that stands under a name
    try:
        found["preview"] = masked(repr(thing), _PREVIEW)
    except Exception as error:
        found["preview"] = f"<its repr raises {type(error).__name__}>"
    shape = getattr(thing, "shape", None)
    if isinstance(shape, tuple) and all(isinstance(n, int) for n in shape):
        found["shape"] = list(shape)
    return found
