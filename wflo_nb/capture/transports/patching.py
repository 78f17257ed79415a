"""Putting a wrapper in the place of a method, once, and taking it out again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_MARK = "__wflo_nb_original__"


def replace(cls: Any, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Wrap a method of a class. Returns the undo; wrapping what is wrapped already does nothing."""
    original = cls.__dict__[name]
    if hasattr(original, _MARK):  # one module under two names (httpx2.alias_httpx): once is enough
        return lambda: None
    wrapped = functools.wraps(original)(wrap(original))
    setattr(wrapped, _MARK, original)
    setattr(cls, name, wrapped)

    def undo() -> None:
        if cls.__dict__.get(name) is wrapped:  # somebody may have wrapped us meanwhile: theirs stays
            setattr(cls, name, original)

    return undo


def replace_all(*doors: tuple[Any, str, Callable[[Any], Any]]) -> Callable[[], None]:
    """`replace` for several methods: all of them or, if one is not there, none. Returns the undo."""
    undos: list[Callable[[], None]] = []

    def undo() -> None:
        while undos:
            undos.pop()()

    try:
        for cls, name, wrap in doors:
            undos.append(replace(cls, name, wrap))
    except BaseException:
        undo()
        raise
    return undo
