"""What stands behind ``%%wflo`` and behind the subcommands of ``%wflo``: ``key=value`` words."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from wflo_nb.budget.line import seconds
from wflo_nb.budget.periods import PERIODS
from wflo_nb.budget.shared import Sharing, login, sharing
from wflo_nb.config import UnknownModels
from wflo_nb.errors import ConfigurationError, WfloError
from wflo_nb.model import nano_from_usd

#: The options of ``%%wflo`` with the values that completion offers.
CELL_OPTIONS: dict[str, tuple[str, ...]] = {
    "budget": (),
    "name": (),
    "checkpoint": ("on", "off"),
    "unknown_models": ("refuse", "allow"),
    "wait": ("0",),
    "team": (),
    "user": (),
    "per": PERIODS,
    "tz": ("UTC",),
}

E = TypeVar("E", bound=BaseException)

_CURRENCIES = {"usd", "dollar", "dollars", "us$", "eur", "€", "$"}


@dataclass(frozen=True, slots=True)
class CellOptions:
    """The parsed line of a ``%%wflo`` cell.

    Attributes:
        budget_nano: the cell's cap; None without ``budget=``: the cell is tracked under the notebook's budget alone.
        name: what the card and the reports call the cell; None means ``In [n]``.
        checkpoint: whether variables are saved before and after.
        unknown_models: None means the process's setting.
        wait: seconds that a call may wait for money in flight; None means the default.
        sharing: the shared budgets that the cell is charged to as well; None if there are none.
    """

    budget_nano: int | None = None
    name: str | None = None
    checkpoint: bool = True
    unknown_models: UnknownModels | None = None
    wait: float | None = None
    sharing: Sharing | None = None


class _Short:
    """Renders an error in the cell as its message alone; the traceback stays on the exception for debuggers."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self) -> list[str]:
        return [self.text]


def shorten(error: E) -> E:
    """Make IPython show `error` without our own frames, which say nothing to the user."""
    error.__dict__["_render_traceback_"] = _Short(f"{_public_name(error)}: {error}")
    return error


def _public_name(error: BaseException) -> str:
    """The class the user can name in ``except``: joined classes made at run time show their first public base."""
    ours = (c for c in type(error).__mro__ if c.__module__ == WfloError.__module__)
    return next(ours, type(error)).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean …?`` for a near miss, else nothing."""
    near = difflib.get_close_matches(word.lower(), list(known), 1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


def words(line: str, what: str) -> list[str]:
    """Split as a shell does, so that ``name="two words"`` is one word."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ConfigurationError(f"{what}: the line cannot be read ({error}). Close every quote: {line!r}") from None


def pairs(parts: Sequence[str], known: Iterable[str], what: str) -> dict[str, str]:
    """``key=value`` words as a dict; each key once and only known keys.

    Raises:
        ConfigurationError: an unknown, repeated or empty option, or a word that is none.
    """
    known = list(known)
    found: dict[str, str] = {}
    for index, part in enumerate(parts):
        key, equals, value = part.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if not equals:
            raise ConfigurationError(_stray(part, parts[:index], known, what))
        if key not in known:
            raise ConfigurationError(f"{what}: unknown option {key!r}.{did_you_mean(key, known)} Options: {_listed(known)}.")
        if key in found:
            raise ConfigurationError(f"{what}: {key}= is given twice ({found[key]} and {value}). Give it once.")
        if not value:
            raise ConfigurationError(f"{what}: {key}= has no value.")
        found[key] = value
    return found


def _stray(part: str, before: Sequence[str], known: Sequence[str], what: str) -> str:
    if before and part.lower() in _CURRENCIES:
        return f"{what}: {part!r} is not an option. Amounts are in USD already: write {before[-1]} with nothing behind it."
    if part == "help":
        return f"{what}: help is not an option. `%wflo help` and `{what}?` tell all."
    if part in known:
        return f"{what}: {part} needs a value: write {part}=…"
    amount = next((key for key in ("budget", "notebook") if key in known), None)
    if amount and part.lstrip("$").replace(".", "", 1).isdigit():
        return f"{what}: {part!r} is not an option. Write {amount}={part.lstrip('$')}."
    return f"{what}: {part!r} is not an option.{did_you_mean(part, known)} Options: {_listed(known)}."


def _listed(known: Iterable[str]) -> str:
    return ", ".join(f"{key}=…" for key in known)


def choice(found: dict[str, str], key: str, allowed: Sequence[str], default: Any) -> Any:
    """One of `allowed`, or `default` when the option is not given."""
    value = found.get(key)
    if value is None:
        return default
    if value.lower() not in allowed:
        use = " or ".join(f"{key}={a}" for a in allowed)
        raise ConfigurationError(f"{key}={value} is not understood.{did_you_mean(value, allowed)} Use {use}.")
    return value.lower()


def cell_options(line: str) -> CellOptions:
    """Parse the line of a ``%%wflo`` cell.

    Raises:
        ConfigurationError: any option is unknown, repeated or has a value that cannot be used.
    """
    found = pairs(_named(words(line, "%%wflo")), CELL_OPTIONS, "%%wflo")
    return CellOptions(
        budget_nano=nano_from_usd(found["budget"]) if "budget" in found else None,
        name=found.get("name"),
        checkpoint=choice(found, "checkpoint", CELL_OPTIONS["checkpoint"], "on") == "on",
        unknown_models=cast("UnknownModels | None", choice(found, "unknown_models", CELL_OPTIONS["unknown_models"], None)),
        wait=seconds(found["wait"]) if "wait" in found else None,
        sharing=sharing(team=found.get("team"), user=found.get("user"), per=found.get("per"), tz=found.get("tz")),
    )


def _named(parts: list[str]) -> list[str]:
    """``user`` alone is the user who is logged in."""
    return [f"user={login()}" if part == "user" else part for part in parts]


def shared_options(parts: Sequence[str]) -> tuple[int | None, Sharing] | None:
    """What stands behind ``%wflo budget`` if it is about a shared budget: its new cap (None: only show it), and which it is.

        %wflo budget 500 team=research per=month tz=Europe/Berlin

    Returns:
        None if no ``team=`` or ``user=`` is there. Hand the parts of what is found to `wflo_nb.budget.shared.define`.

    Raises:
        ConfigurationError: an option or a value that cannot be used, or two budgets at once.
    """
    parts = _named(list(parts))
    if not any(part.startswith(("team=", "user=")) for part in parts):
        return None
    amounts, rest = [part for part in parts if "=" not in part], [part for part in parts if "=" in part]
    found = pairs(rest, ("team", "user", "per", "tz"), "%wflo budget")
    if len(amounts) > 1:
        raise ConfigurationError(f"%wflo budget: {' and '.join(amounts)} are two amounts. Write one: %wflo budget 500 {rest[0]}.")
    meant = sharing(**found)
    if meant is None or len(meant.names) != 1:
        raise ConfigurationError("%wflo budget sets one budget at a time: team=NAME or user=NAME.")
    return (nano_from_usd(amounts[0]) if amounts else None), meant
