"""Tab completion of ``%%wflo`` options and ``%wflo`` subcommands, through IPython's matcher interface.

The matcher suppresses the others: keywords and Jedi's names have no place in an option list.
"""

from __future__ import annotations

import functools
import re
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wflo_nb.notebook.options import CELL_OPTIONS

#: A line magic, perhaps with its result given to names.
_LINE = re.compile(r"\s*(?:[\w.\[\]'\", ]+=\s*)?(?P<magic>%wflo .*)", re.DOTALL)


def matcher(subcommands: Mapping[str, Sequence[str]], names: Callable[[], Sequence[str]], calls: Callable[[], Sequence[str]]) -> Any:
    """A context matcher.

    Args:
        subcommands: each subcommand of ``%wflo`` with the options it takes.
        names: the checkpoint names known by now, offered behind ``rollback``. Must be instant.
        calls: the ids of calls in doubt, offered behind ``reconcile``. Must be quick.
    """
    from IPython.core.completer import SimpleCompletion, SimpleMatcherResult, context_matcher

    def complete(context: Any) -> Any:
        typed: str = context.text_until_cursor
        found = None
        if typed.startswith("%%wflo ") and not "".join(context.full_text.split("\n")[: context.cursor_line]).strip():
            found = _options(typed, CELL_OPTIONS)
        elif (line := _LINE.match(typed)) is not None:
            found = _behind(line["magic"], subcommands, names, calls)
        if found is None:
            return SimpleMatcherResult(completions=[])
        offered, kind, fragment = found
        completions = [SimpleCompletion(word, type=kind) for word in offered if word.startswith(fragment)]
        return {"completions": completions, "matched_fragment": fragment, "suppress": True}

    return context_matcher(identifier="wflo")(complete)


def _options(typed: str, options: dict[str, tuple[str, ...]]) -> tuple[list[str], str, str]:
    last = typed.rsplit(" ", 1)[-1]
    key, equals, value = last.partition("=")
    if equals:
        return (_zones() if key == "tz" else list(options.get(key, ()))), "value", value
    used = {word.partition("=")[0] for word in typed.split()[1:] if "=" in word}
    return [f"{option}=" for option in options if option not in used], "option", last


@functools.cache
def _zones() -> list[str]:
    """Time zones as people know them, the short one first."""
    return ["UTC", *sorted(name for name in zoneinfo.available_timezones() if "/" in name and not name.startswith(("Etc/", "SystemV/")))]


def _behind(
    typed: str, subcommands: Mapping[str, Sequence[str]], names: Callable[[], Sequence[str]], calls: Callable[[], Sequence[str]]
) -> tuple[list[str], str, str]:
    parts = typed.split(" ")
    last = parts[-1]
    if len(parts) == 2:
        return list(subcommands), "subcommand", last
    sub = parts[1]
    if sub == "help":
        return list(subcommands), "subcommand", last
    if sub == "rollback":
        return ["last", *names()], "checkpoint", " ".join(parts[2:])  # names may have spaces
    if sub == "reconcile" and (len(parts) == 3 or last.startswith("call-")):
        return ["all", *calls()], "call", last
    if "=" in last:
        key, _, value = last.partition("=")
        if key == "tz":
            return _zones(), "value", value
        values = [o.partition("=")[2] for o in subcommands.get(sub, ()) if o.startswith(f"{key}=")]
        return [v for v in values if v], "value", value
    seen: list[str] = []
    for option in subcommands.get(sub, ()):
        key = option.partition("=")[0] + "=" if "=" in option else option
        if key not in seen:
            seen.append(key)
    return seen, "option", last
