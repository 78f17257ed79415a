"""How a workflow's inputs are put to an agent that is asked something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def asked_as(inputs: Any, name: str) -> dict[str, Any]:
    """The arguments of an agent whose question is its argument `name`: other inputs than that one are its lines."""
    if isinstance(inputs, Mapping):
        return dict(inputs) if name in inputs else {name: "\n".join(f"{key}: {value}" for key, value in inputs.items())}
    return {} if inputs is None else {name: inputs}
