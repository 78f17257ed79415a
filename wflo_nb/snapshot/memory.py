"""Which arrays, views and memoryviews share which stretch of memory, so that writing through one still reaches the others.

Sharing is decided by addresses, never by objects: libraries hand out fresh views of the same memory at every look. Stretches that
overlap form a group; views that touch different parts of one owner (the halves of a split array) share nothing and stay apart.
A view that nobody else shares is saved as a copy of what it shows, so a small view never keeps a huge owner.
"""

from __future__ import annotations

import array
import ctypes
import sys
from dataclasses import dataclass, field
from typing import Any

#: Kinds of dtype whose memory is plain bytes.
_PLAIN_KINDS = frozenset("biufcmMSUV")
_ALIGN = 16


class _PyBuffer(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.POINTER(ctypes.c_ssize_t)),
        ("internal", ctypes.c_void_p),
    )


_FULL_RO = 0x011C


def address(exporter: Any) -> tuple[int, int]:
    """Where the memory of a buffer exporter begins, and how many bytes it exposes.

    Raises:
        BufferError, ValueError, TypeError: it exposes none.
    """
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(exporter), ctypes.byref(buffer), _FULL_RO)
    try:
        return buffer.buf or 0, buffer.len
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))


def is_plain(a: Any) -> bool:
    """Is the memory of this ndarray nothing but bytes?"""
    return a.dtype.kind in _PLAIN_KINDS and not a.dtype.hasobject


def root_of(thing: Any) -> Any:
    """The object at the end of an ndarray's or memoryview's chain of bases: who owns the memory."""
    ndarray: Any = sys.modules["numpy"].ndarray if "numpy" in sys.modules else ()
    a: Any = thing
    while True:
        base: Any
        if type(a) is memoryview:
            base = a.obj
        elif isinstance(a, ndarray):
            base = a.base
            if type(base).__name__ == "DummyArray":  # what as_strided puts in between
                base = base.base
        else:
            return a
        if base is None:
            return a
        a = base


def bounds(start: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """First and last-plus-one address that an array can touch."""
    low = high = start
    for length, stride in zip(shape, strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + itemsize


def start_of(a: Any) -> int:
    """The address of the first element."""
    if type(a) is memoryview:
        return address(a)[0]
    return int(a.__array_interface__["data"][0])


def span_of(a: Any) -> tuple[int, int]:
    """The addresses that an ndarray or memoryview can touch."""
    return bounds(start_of(a), a.itemsize, a.shape, a.strides)


def exposed(low: int, size: int) -> memoryview:
    """A flat look at memory. Its owner must be kept alive by the caller."""
    return memoryview((ctypes.c_char * size).from_address(low)).cast("B")


class Segment:
    """A stretch of shared memory whose owner is no variable's: saved as bytes, and the views over it as views."""

    __slots__ = ("high", "low", "root")

    def __init__(self, root: object, low: int, high: int) -> None:
        self.root = root
        self.low = low
        self.high = high


@dataclass(slots=True)
class Group:
    """Overlapping stretches of one memory.

    Attributes:
        low: the first address, `high`: the one after the last.
        idents: the different objects that look at it.
        names: the variables that reach it.
        target: what the views are saved over: the owner itself, a `Segment`, or None when nothing is shared.
        base: the address of the target's first byte.
    """

    low: int
    high: int
    idents: set[int]
    names: set[str]
    target: object = None
    base: int = 0


@dataclass(slots=True)
class _Root:
    owner: object
    spans: list[tuple[int, int, int, str]] = field(default_factory=list)
    reached: bool = False
    folded: set[int] = field(default_factory=set)


class Layout:
    """Collects who looks where during a walk; afterwards tells for any array whether and with what it shares memory."""

    def __init__(self) -> None:
        self._roots: dict[int, _Root] = {}
        self._groups: dict[int, list[Group]] = {}
        self._pins: list[object] = []

    def note(self, thing: Any, name: str) -> None:
        """The variable `name` reaches an ndarray, memoryview, bytearray or array.array."""
        if isinstance(thing, (bytearray, array.array)):
            low, size = address(thing)
            root, high, reached, dense = thing, low + size, True, True
        else:
            root = root_of(thing)
            if type(root) is bytes or thing.nbytes == 0:
                return
            low, high = span_of(thing)
            reached, dense = root is thing, thing.nbytes <= high - low
        entry = self._roots.setdefault(id(root), _Root(root))
        entry.reached |= reached
        if not dense:  # it shows some bytes many times (a broadcast, a sliding window): a copy could be enormous
            entry.folded.add(id(thing))
        entry.spans.append((low, high, id(thing), name))
        self._pins.append(thing)

    def settle(self) -> list[set[str]]:
        """Form the groups. Returns the sets of variables that share memory."""
        links = []
        for key, root in self._roots.items():
            groups: list[Group] = []
            for low, high, ident, name in sorted(root.spans, key=lambda s: s[:2]):
                if groups and low < groups[-1].high:
                    last = groups[-1]
                    last.high = max(last.high, high)
                    last.idents.add(ident)
                    last.names.add(name)
                else:
                    groups.append(Group(low, high, {ident}, {name}))
            for group in groups:
                if len(group.idents) > 1 or group.idents & root.folded:
                    self._choose_target(root, group)
                    links.append(group.names)
            self._groups[key] = groups
        return links

    def _choose_target(self, root: _Root, group: Group) -> None:
        owner: Any = root.owner
        if root.reached and _can_carry(owner):
            group.target, group.base = owner, start_of(owner) if not isinstance(owner, (bytearray, array.array)) else address(owner)[0]
            return
        # Aligned as it was, so that every view keeps its alignment over the new memory.
        begin = address(owner)[0] if isinstance(owner, (bytearray, array.array)) else min(span[0] for span in root.spans)
        ndarray = sys.modules["numpy"].ndarray if "numpy" in sys.modules else ()
        if isinstance(owner, ndarray):
            begin = span_of(owner)[0]
        low = max(begin, group.low - (group.low - begin) % _ALIGN)
        group.target, group.base = Segment(owner, low, group.high), low

    def group_of(self, thing: Any) -> Group | None:
        """The group an array or memoryview shares memory in, None if it shares nothing."""
        if thing.nbytes == 0:
            return None
        low, _ = span_of(thing)
        for group in self._groups.get(id(root_of(thing)), ()):
            if group.low <= low < group.high:
                return group if group.target is not None else None
        return None


def _can_carry(owner: Any) -> bool:
    """Can views be put back over this very object?"""
    if type(owner) in (bytearray, array.array):
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(owner) is numpy.ndarray and is_plain(owner) and (owner.flags.c_contiguous or owner.flags.f_contiguous)
