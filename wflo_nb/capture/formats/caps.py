"""Output caps: what a request states under any name, and how ours is written beside it.

Servers read names of other interfaces too, and numbers written as texts. So the largest of all is what counts; one that is no
positive number limits nothing; and under a name that this interface does not have, a cap may be ignored, so it is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

_NAMES = frozenset(
    [
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens_to_sample",
        "max_new_tokens",
        "n_predict",
        "num_predict",
        "maxOutputTokens",
        "maxTokens",
        "maxTokenCount",
        "max_gen_len",
    ]
)


def stated(body: dict[str, Any], *own: str) -> int | None:
    """The largest output cap of a request; None where nothing limits the output but the model. `own`: this interface's names."""
    most, limited = 0, False
    for name in body:
        if name in _NAMES and (value := body[name]) is not None:
            cap = _number(value)
            if cap is None:
                return None
            most, limited = max(most, cap), limited or name in own
    return most if limited else None


def stated_in(places: Iterable[Any], *own: str) -> int | None:
    """The largest output cap of a request that may state one in several places; None if one of those limits nothing."""
    found = [
        stated(one, *own) for one in places if isinstance(one, dict) and any(one[name] is not None for name in _NAMES.intersection(one))
    ]
    return None if None in found else max((cap for cap in found if cap is not None), default=None)


def write(body: dict[str, Any], cap: int, field: str, *own: str) -> None:
    """Put a cap into `field`, in place of all `own` ones; under other names nothing larger is left."""
    for name in own:
        body.pop(name, None)  # null, or no count: what we could not read as a cap must not overrule ours
    lower(body, cap)
    body[field] = cap


def lower(body: dict[str, Any], cap: int) -> None:
    """Leave nothing larger than a cap, and nothing that is no cap, under any name that means one."""
    for name in _NAMES.intersection(body):
        value = body[name]
        if value is not None and not 0 < (_number(value) or 0) <= cap:
            body[name] = cap


def _number(value: Any) -> int | None:
    """A positive whole number, also as servers read it out of a text or a float."""
    if isinstance(value, str):
        try:
            value = float(value) if "." in value or "e" in value.lower() else int(value)
        except ValueError:
            return None
    if isinstance(value, float):
        value = int(value) if math.isfinite(value) and value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
