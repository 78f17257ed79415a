"""What the dialects of the stand-in provider have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from wflo_nb.model import Usage
from wflo_nb.testing.billing import Behaviour

#: Fields of a request that are read as input.
READ = ("messages", "input", "system", "instructions", "tools", "functions", "response_format", "text")

Make = Callable[[dict[str, Any], Behaviour, Usage], Any]


def _from_body(path: str, body: dict[str, Any]) -> str | None:
    deployment = re.search("/deployments/([^/]+)/", path)  # Azure's, which a body need not repeat
    return body.get("model") or (deployment[1] if deployment else None)


def _as_asked(_path: str, body: dict[str, Any]) -> bool:
    return bool(body.get("stream"))


@dataclass(frozen=True, slots=True)
class Dialect:
    """One interface of one provider, as it is seen from the provider.

    Attributes:
        api: its name on the bill.
        path: a pattern that is found in the path.
        answer: request, behaviour and usage to the JSON of a whole answer; bytes are sent as they are.
        events: the same to the pieces of a stream; None if there are no streams.
        kind: content type of a stream; `plain_kind`: of a whole answer.
        caps: the output caps that a request states; `choices`: how many answers it wants.
        writes: whether anything is generated.
        read: the fields of a request that are read as input.
        model: path and body to the model asked for; `streams`: to whether a stream is asked for.
        units: what is billed beside tokens, as pairs of a name in `UNIT_RATES` and a number.
        tokens: whether tokens are billed at all.
        parse: a body that is not JSON.
    """

    api: str
    path: re.Pattern[str]
    answer: Make
    events: Make | None = None
    kind: str = "text/event-stream; charset=utf-8"
    plain_kind: str = "application/json"
    caps: Callable[[dict[str, Any]], Iterable[Any]] = lambda _: ()
    choices: Callable[[dict[str, Any]], int] = lambda body: body.get("n") or 1
    writes: bool = True
    read: tuple[str, ...] = READ
    model: Callable[[str, dict[str, Any]], str | None] = _from_body
    streams: Callable[[str, dict[str, Any]], bool] = _as_asked
    units: Callable[[dict[str, Any], Behaviour], list[tuple[str, int]]] = lambda _body, _how: []
    tokens: bool = True
    parse: Callable[[bytes], dict[str, Any]] = json.loads


def fields(*names: str) -> Callable[[dict[str, Any]], list[Any]]:
    """The values of these fields of a body, dots going down."""

    def read(body: dict[str, Any]) -> list[Any]:
        found = []
        for name in names:
            value: Any = body
            for key in name.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            found.append(value)
        return found

    return read


def words(number: int, how: Behaviour) -> list[str]:
    """The answer in pieces: what was asked for, or so many words."""
    return [f"word{i % 10} " for i in range(number)] if how.text is None else re.findall(r"\s*\S+|\s+$", how.text)


def with_usage(value: dict[str, Any], field: str, usage: dict[str, Any], how: Behaviour) -> dict[str, Any]:
    if how.usage in ("full", "doubled"):
        value[field] = usage
    elif how.usage == "null":
        value[field] = None
    elif how.usage == "garbage":
        value[field] = dict.fromkeys(usage, "many")
    return value


def sse(events: Iterable[dict[str, Any]], *, named: bool = False) -> list[str]:
    """Server-sent events; `named` by their type."""
    return [(f"event: {e['type']}\n" if named else "") + f"data: {json.dumps(e)}\n\n" for e in events]
