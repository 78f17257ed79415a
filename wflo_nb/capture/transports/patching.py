"""Putting a wrapper in the place of a method, once, and taking it out again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakSet

_MARK = "__wflo_nb_original__"
_ours: WeakSet[Any] = WeakSet()
#: All that are wrapped now.
_doors: list[_Door] = []


def _plain(original: Any) -> Any:
    """A method as a plain function. Other people's wrappers (wrapt's, below OpenTelemetry) want to be bound before they are called, and
    what is put in its place by tests may not be bound at all (`unittest.mock`).
    """
    if type(original) is FunctionType:  # not isinstance: they say that they are one
        return original
    if not hasattr(type(original), "__get__"):
        return lambda _self, *args, **kwargs: original(*args, **kwargs)
    return lambda self, *args, **kwargs: original.__get__(self, type(self))(*args, **kwargs)


class _Door:
    """A method of a class that is to stay wrapped."""

    def __init__(self, cls: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        self._cls, self._name, self._wrap = cls, name, wrap

    def is_there(self) -> bool:
        """Whether the class has the method at all."""
        return self._name in self._cls.__dict__

    def stand(self) -> bool:
        """Wrap it, unless it is wrapped. Whether that was needed."""
        found = self._cls.__dict__[self._name]
        # Wrapped already: one module under two names (httpx2.alias_httpx), left behind when somebody else's wrapper lay on it, or below
        # somebody's wrapper, and still at work.
        if found in _ours or hasattr(found, _MARK):
            return False
        wrapped = functools.wraps(found)(self._wrap(_plain(found)))
        setattr(wrapped, _MARK, found)
        setattr(self._cls, self._name, wrapped)
        _ours.add(wrapped)
        return True

    def leave(self) -> None:
        """Put the original back."""
        if self in _doors:
            _doors.remove(self)
        found = self._cls.__dict__.get(self._name)
        if found in _ours:  # somebody may have wrapped us meanwhile: theirs stays
            setattr(self._cls, self._name, getattr(found, _MARK))


def replace(cls: Any, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Wrap a method of a class. Returns the undo; wrapping what is wrapped already does nothing."""
    door = _Door(cls, name, wrap)
    door.stand()
    _doors.append(door)
    return door.leave


def stand_again() -> bool:
    """Wrap once more what somebody else took from us, who put something in its place before we came and has put the original back (a
    mock, a cassette). Whether there was any.
    """
    stood = [door.stand() for door in _doors if door.is_there()]
    return any(stood)


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
