"""Putting a wrapper in the place of a method, once, and taking it out again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakSet

_MARK = "__wflo_nb_original__"
_ours: WeakSet[Any] = WeakSet()


def _plain(original: Any) -> Any:
    """A method as a plain function. Other people's wrappers (wrapt's, below OpenTelemetry) want to be bound before they are called."""
    if type(original) is FunctionType:  # not isinstance: they say that they are one
        return original
    return lambda self, *args, **kwargs: original.__get__(self, type(self))(*args, **kwargs)


def replace(cls: Any, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Wrap a method of a class. Returns the undo; wrapping what is wrapped already does nothing."""
    found = cls.__dict__[name]
    if found in _ours:  # one module under two names (httpx2.alias_httpx), or left behind when somebody else's wrapper lay on it
        wrapped, original = found, getattr(found, _MARK)
    elif hasattr(found, _MARK):  # somebody's wrapper over ours, which is still at work
        return lambda: None
    else:
        original = found
        wrapped = functools.wraps(original)(wrap(_plain(original)))
        setattr(wrapped, _MARK, original)
        setattr(cls, name, wrapped)
        _ours.add(wrapped)

    def undo() -> None:
        if cls.__dict__.get(name) is wrapped:  # somebody may have wrapped us meanwhile: theirs stays
            setattr(cls, name, original)

    return undo


def pair_of(door: Any) -> tuple[Any, Any] | None:
    """The original and our wrapper, of a method that is one of the two; None of any other."""
    for ours in _ours:
        if door is ours or door is getattr(ours, _MARK):
            return getattr(ours, _MARK), ours
    return None


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
