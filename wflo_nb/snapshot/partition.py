"""Which variables belong together: those that reach the same mutable object are saved in one pickle.

The walk is a pickling that writes nothing: it goes exactly where the real one will go, through every reducer, and sees each object
before pickle's memo does (`persistent_id`). One memo serves all variables, so what they share is walked once and met again at its
top, which is where it is linked. It costs about two plain picklings, and it cannot disagree with what is saved.

Leaves join nothing: scalars and text, tuples of those, what is importable, dtypes, dates, patterns, sentinels, code, and everything kept
by reference. Without this rule every array would be joined to every other through its dtype.
"""

from __future__ import annotations

import array
import datetime
import decimal
import enum
import fractions
import ipaddress
import logging
import pathlib
import re
import sys
import time
import types
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wflo_nb import credentials
from wflo_nb.snapshot import references
from wflo_nb.snapshot.memory import Layout
from wflo_nb.snapshot.reducers import Reducer
from wflo_nb.snapshot.ties import changed_under_walk, name_of, why_tied

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented)})
_LEAVES = (
    datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction, uuid.UUID,
    pathlib.PurePath, range, re.Pattern, logging.Logger, ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network,
    ipaddress.IPv6Network, types.CodeType, types.ModuleType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.ClassMethodDescriptorType, types.MethodWrapperType,
)  # fmt: skip
_TRIES = 4


class _Nowhere:
    """A file that forgets."""

    def write(self, data: Any) -> int:
        return len(data)


@dataclass(slots=True)
class Reference:
    """One object kept by reference.

    Attributes:
        what: its type.
        reason: why it is not saved.
        thing: the object.
    """

    what: str
    reason: str
    thing: object


@dataclass(slots=True)
class Partition:
    """The result of the walk.

    Attributes:
        components: sets of variables that belong together, each sorted.
        whole: variables that are kept by reference themselves.
        inside: variable → objects inside it that are kept by reference.
        layout: who shares memory with whom.
        marked: variables that need the careful pickler: they hold the namespace itself, or text that is secret.
        secrets: texts that must not reach the bytes.
    """

    components: list[tuple[str, ...]]
    whole: dict[str, Reference]
    inside: dict[str, list[Reference]]
    layout: Layout
    marked: set[str]
    secrets: set[str | bytes]
    pins: list[object] = field(default_factory=list)


class Marks:
    """What of exact builtin containers and text needs care, which only `persistent_id` can see.

    The same rules serve the walk and the careful pickler.
    """

    def __init__(self, namespace: object, hold: references.Hold, secrets: set[str | bytes]) -> None:
        self.namespace = namespace
        self.hold = hold
        self.secrets = secrets
        self._needles: list[str] = []

    def of_dict(self, thing: dict[Any, Any]) -> tuple[Any, ...] | None:
        """What stands in for a dict: the live namespace, a module's globals, a copy of the environment. None for ordinary dicts."""
        if thing is self.namespace:
            return ("namespace",)
        if "__spec__" in thing or "__builtins__" in thing:
            name = thing.get("__name__")
            module = sys.modules.get(name) if isinstance(name, str) else None
            if module is not None and getattr(module, "__dict__", None) is thing:
                return ("module", name)
        if credentials.is_environment(thing):
            return self.reference(thing, credentials.HOLDS_CREDENTIALS)
        self.secrets.update(credentials.secrets_in(thing))
        return None

    def reference(self, thing: object, reason: str) -> tuple[Any, ...]:
        """A reference as `rebuild.Loader.persistent_load` reads it."""
        return ("reference", references.token_of(thing, self.hold), name_of(type(thing)), reason)

    def search_inside(self) -> None:
        """From now on also find texts that contain a secret, not only those that are one."""
        self._needles = [s if isinstance(s, str) else s.decode("latin-1") for s in self.secrets if len(s) >= 8]

    def is_secret(self, text: str | bytes) -> bool:
        """Is this text a known secret, or does it contain one?"""
        if text in self.secrets:
            return True
        if self._needles and len(text) >= 8:
            plain = text if isinstance(text, str) else text.decode("latin-1")
            return any(needle in plain for needle in self._needles)
        return False


class Walk(Reducer):
    """The pickling that writes nothing."""

    def __init__(self, namespace: Any, hold: references.Hold, secrets: set[str | bytes]) -> None:
        super().__init__(_Nowhere(), namespace, hold, None)
        self.found = Layout()
        self.marks = Marks(namespace, hold, secrets)
        self.current = ""
        self.root: object = None
        self.first: dict[int, str] = {}
        self.pins: list[object] = []
        self.leaves: set[int] = set()
        self.specials: dict[int, tuple[Any, ...]] = {}
        self.referenced: dict[int, Reference] = {}
        self.whole: dict[str, Reference] = {}
        self.inside: dict[str, list[Reference]] = {}
        self.marked: set[str] = set()
        self.parent: dict[str, str] = {}

    # -- linking --------------------------------------------------------------------------------------------------------------

    def group(self, name: str) -> str:
        """The representative of the variables that `name` belongs to."""
        while self.parent.setdefault(name, name) != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def link(self, one: str, other: str) -> None:
        """These two share a mutable object."""
        self.parent[self.group(one)] = self.group(other)

    def persistent_id(self, thing: Any) -> Any:
        """Called for every object, before the memo is asked."""
        kind = type(thing)
        if kind in ATOMS:
            if (kind is str or kind is bytes) and len(thing) >= 20 and credentials.is_key_shaped(thing):
                self.marks.secrets.add(thing)
                self.marked.add(self.current)
            return None
        key = id(thing)
        first = self.first.get(key)
        if first is None:
            self._meet(thing, kind, key)
        elif first != self.current:
            if key not in self.leaves:
                self.link(first, self.current)
            elif key in self.referenced:
                self.inside.setdefault(self.current, []).append(self.referenced[key])
        special = self.specials.get(key)
        if special is not None:
            self.marked.add(self.current)
        return special

    def _meet(self, thing: Any, kind: type, key: int) -> None:
        self.first[key] = self.current
        self.pins.append(thing)  # a freed address would be mistaken for the object that had it
        if kind is dict:
            known = len(self.marks.secrets)
            special = self.marks.of_dict(thing)
            if special is not None:
                self.specials[key] = special
                self.leaves.add(key)
                if special[0] == "reference":
                    self.on_reference(thing, special[3])
            if len(self.marks.secrets) != known:
                self.marked.add(self.current)
        elif kind is bytearray:
            self.found.note(thing, self.current)
        elif kind is tuple or kind is frozenset:
            if _is_plain(thing):
                self.leaves.add(key)
        elif issubclass(kind, _LEAVES) or _is_leaf(thing, kind):
            self.leaves.add(key)

    # -- what the reducer tells -----------------------------------------------------------------------------------------------

    def on_reference(self, thing: object, reason: str) -> None:
        """Objects by reference keep their identity through the reference, so they join nothing."""
        self.leaves.add(id(thing))
        reference = self.referenced[id(thing)] = Reference(name_of(type(thing)), reason, thing)
        if thing is self.root:
            self.whole[self.current] = reference
        else:
            self.inside.setdefault(self.current, []).append(reference)

    def on_leaf(self, thing: object) -> None:
        """Immutable or importable."""
        self.leaves.add(id(thing))

    def on_memory(self, thing: Any) -> None:
        """Linked by addresses, when all of them are known."""
        self.found.note(thing, self.current)
        if not isinstance(thing, array.array):
            self.pins.append(thing)

    def visit(self, name: str, value: object) -> None:
        """Walk one variable."""
        self.current, self.root = name, value
        self.dump(value)


def _is_plain(thing: Any, depth: int = 4) -> bool:
    """Is this tuple or frozenset made of atoms only? Long ones count as unknown, which at worst joins too much."""
    if len(thing) > 64:
        return False
    return all(type(part) in ATOMS or (depth > 0 and type(part) in (tuple, frozenset) and _is_plain(part, depth - 1)) for part in thing)


def _is_leaf(thing: Any, kind: type) -> bool:
    if issubclass(kind, enum.Enum):
        return kind.__module__ != "__main__" and getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind
    if kind is types.BuiltinFunctionType:
        return thing.__self__ is None or isinstance(thing.__self__, (types.ModuleType, type))
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, (numpy.generic, numpy.dtype)):
        return not issubclass(kind, numpy.void)
    return any(c.__name__ == "ExtensionDtype" for c in kind.__mro__)


def why_left_out(name: str, value: object) -> str:
    """Why a variable stays out of the bytes as a whole, as far as its name and type tell; empty if they do not."""
    shaped = isinstance(value, (str, bytes)) and len(value) >= 20 and credentials.is_key_shaped(value)
    if shaped or credentials.is_secret(name, value):
        return credentials.HOLDS_CREDENTIALS
    kind = type(value)
    if kind in ATOMS or kind in (list, tuple, set):
        return ""
    if kind is dict:
        return credentials.HOLDS_CREDENTIALS if credentials.is_environment(value) else ""  # type: ignore[arg-type]
    return why_tied(kind) or (credentials.HOLDS_CREDENTIALS if credentials.holds_credentials(value) else "")


def reason_of(error: BaseException) -> str:
    """Why a whole variable could not be saved."""
    if changed_under_walk(error):
        return "another thread kept changing it while it was being saved"
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError) or "recursion" in str(error):
        return "it is nested too deeply to be saved"
    if isinstance(error, MemoryError):
        return "there is not enough memory to save it"
    return f"saving it raised {type(error).__name__}"


def partition(variables: Mapping[str, object], namespace: object, hold: references.Hold, refused: Mapping[str, str]) -> Partition:
    """Walk all variables.

    Args:
        variables: what is to be saved.
        namespace: the mapping itself, which variables may refer to.
        hold: receives what is kept by reference.
        refused: variable → reason, for those that are already known not to work; they are kept by reference.
    """
    whole = {name: Reference(name_of(type(variables[name])), reason, variables[name]) for name, reason in refused.items()}
    secrets: set[str | bytes] = set(credentials.environment_secrets())
    for name, value in variables.items():
        if name not in whole and (reason := why_left_out(name, value)):
            whole[name] = Reference(name_of(type(value)), reason, value)
            if type(value) in (str, bytes):
                secrets.add(value)  # type: ignore[arg-type]
    tries = 0
    while True:
        walk = Walk(namespace, hold, secrets)
        failed: dict[str, BaseException] = {}
        for name, value in variables.items():
            if name not in whole and type(value) not in ATOMS:
                try:
                    walk.visit(name, value)
                except Exception as error:
                    failed[name] = error
        if not failed:
            break
        # Half a walk links half, so it is done again, without those that will never work.
        tries += 1
        for name, cause in failed.items():
            if not changed_under_walk(cause) or tries >= _TRIES:
                whole[name] = Reference(name_of(type(variables[name])), reason_of(cause), variables[name])
        if tries < _TRIES:
            time.sleep(0.005 * tries)
    whole.update(walk.whole)
    return _gathered(walk, variables, whole, namespace)


def _gathered(walk: Walk, variables: Mapping[str, object], whole: dict[str, Reference], namespace: object) -> Partition:
    for sharers in walk.found.settle():
        first, *others = sharers
        for other in others:
            walk.link(first, other)
    groups: dict[str, list[str]] = {}
    for name in variables:
        if name not in whole:
            groups.setdefault(walk.group(name), []).append(name)
    components = sorted(tuple(sorted(names)) for names in groups.values())
    inside = {name: found for name, found in walk.inside.items() if name not in whole}
    for names in components:
        if len(names) > 1 and any(name in inside for name in names):
            inside.update(_each_inside(names, variables, namespace, walk))
    return Partition(components, whole, inside, walk.found, walk.marked, walk.marks.secrets, walk.pins)


def _each_inside(names: Iterable[str], variables: Mapping[str, object], namespace: object, walk: Walk) -> dict[str, list[Reference]]:
    """Variables that share objects share what is inside those by reference: ask each one alone."""
    found = {}
    for name in names:
        alone = Walk(namespace, walk.marks.hold, set(walk.marks.secrets))
        try:
            alone.visit(name, variables[name])
        except Exception:
            found[name] = walk.inside.get(name, [])
        else:
            found[name] = alone.inside.get(name, [])
    return found
