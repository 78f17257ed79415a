"""The state of a namespace as components of bytes: partition, pickle, hash. The same image is written, compared or planned with."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wflo_nb import credentials
from wflo_nb.snapshot import references
from wflo_nb.snapshot.chunks import ChunkWriter, cut
from wflo_nb.snapshot.manifest import Component
from wflo_nb.snapshot.memory import Layout
from wflo_nb.snapshot.partition import Marks, Partition, Reference, partition, reason_of
from wflo_nb.snapshot.reducers import Reducer
from wflo_nb.snapshot.references import Hold
from wflo_nb.snapshot.ties import name_of

_TRIES = 4


class Careful(Reducer):
    """The pickler for components that hold what only `persistent_id` can see: the namespace itself, or secret text. Half as fast."""

    def __init__(self, file: Any, layout: Layout, marks: Marks) -> None:
        super().__init__(file, marks.namespace, marks.hold, layout)
        self.marks = marks
        self.hidden = 0

    def persistent_id(self, thing: Any) -> Any:
        """What stands in for a container or a text."""
        kind = type(thing)
        if kind is dict:
            return self.marks.of_dict(thing)
        if (kind is str or kind is bytes) and self.marks.is_secret(thing):
            self.hidden += 1
            return self.marks.reference(thing, credentials.HOLDS_CREDENTIALS)
        return None


@dataclass(slots=True)
class Image:
    """What a namespace holds at one moment.

    Attributes:
        components: bytes by digest, sorted by names.
        references: variable → ``{"token", "type", "reason"}``.
        inside: variable → what inside it is by reference, in words.
        previews: variable → type and size.
        hold: keeps the objects by reference alive.
    """

    components: list[Component] = field(default_factory=list)
    references: dict[str, dict[str, str]] = field(default_factory=dict)
    inside: dict[str, str] = field(default_factory=dict)
    previews: dict[str, str] = field(default_factory=dict)
    hold: Hold = field(default_factory=list)


def picture(
    variables: Mapping[str, object],
    namespace: object,
    writer: ChunkWriter | None = None,
    *,
    known: Callable[[Component], Component] = lambda c: c,
    frozen: bool = False,
) -> Image:
    """The image of these variables.

    Args:
        variables: what to picture.
        namespace: the mapping they come from, which they may refer to.
        writer: takes the bytes; None to compare only.
        known: replaces a component by an equal one whose bytes are stored already.
        frozen: copy memory before hashing it, because another thread writes to it.

    Raises:
        ChangedWhileSavingError: memory changed between hash and copy; try again with `frozen`.
    """
    image = Image()
    refused: dict[str, str] = {}
    for _ in range(len(variables) + 1):
        image = Image()
        parts = partition(variables, namespace, image.hold, refused)
        again = False
        for names in parts.components:
            problem = _add(image, names, [variables[name] for name in names], namespace, parts, writer, known, frozen)
            if problem and not _is_final(problem):
                problem = _add_again(image, names, variables, namespace, parts, writer, known)
            if problem:
                refused.update(dict.fromkeys(names, problem))
                again = True
        if not again:
            _describe(image, variables, parts)
            break
    if writer is not None:
        writer.flush()
    return image


def _is_final(problem: str) -> bool:
    return "another thread" not in problem


def _add_again(
    image: Image,
    names: tuple[str, ...],
    variables: Mapping[str, object],
    namespace: object,
    parts: Partition,
    writer: ChunkWriter | None,
    known: Callable[[Component], Component],
) -> str:
    problem = ""
    for attempt in range(_TRIES):
        time.sleep(0.003 * attempt)
        problem = _add(image, names, [variables[name] for name in names], namespace, parts, writer, known, True)
        if not problem:
            break
    return problem


def _add(
    image: Image,
    names: tuple[str, ...],
    values: list[object],
    namespace: object,
    parts: Partition,
    writer: ChunkWriter | None,
    known: Callable[[Component], Component],
    frozen: bool,
) -> str:
    """Pickle and hash one component. Returns why it cannot be, or nothing."""
    marks = Marks(namespace, image.hold, parts.secrets)
    marked = [name for name in names if name in parts.marked]
    try:
        pickler, stream = _pickled(values, namespace, parts, image.hold, marks if marked else None)
        if parts.secrets and _shows_secret(pickler, stream, parts.secrets):
            marks.search_inside()
            pickler, stream = _pickled(values, namespace, parts, image.hold, marks)
            if _shows_secret(pickler, stream, parts.secrets):
                return credentials.HOLDS_CREDENTIALS
    except Exception as error:
        return reason_of(error)
    if isinstance(pickler, Careful) and pickler.hidden:
        for name in marked or names:
            parts.inside.setdefault(name, []).append(Reference("str", credentials.HOLDS_CREDENTIALS, None))
    cuts, found = [], {}
    for data in (stream, *pickler.arrays, *pickler.buffers):
        one, its_pieces = cut(bytes(data) if frozen else data)
        cuts.append(one)
        found.update(its_pieces)
    split = 1 + len(pickler.arrays)
    component = Component(names, cuts[0], tuple(cuts[1:split]), tuple(cuts[split:]), pickler.has_code)
    stored = known(component)
    if writer is not None and stored is component:
        writer.add(found)
    image.components.append(stored)
    return ""


def _pickled(values: list[object], namespace: object, parts: Partition, hold: Hold, marks: Marks | None) -> tuple[Reducer, bytes]:
    file = io.BytesIO()
    pickler = Reducer(file, namespace, hold, parts.layout) if marks is None else Careful(file, parts.layout, marks)
    pickler.dump(values)
    return pickler, file.getvalue()


def _shows_secret(pickler: Reducer, stream: bytes, secrets: set[str | bytes]) -> bool:
    needles = credentials.needles(secrets)
    if any(needle in stream for needle in needles):
        return True
    views = [view for view in (*pickler.texts, *pickler.buffers) if view.nbytes]
    return any(re.search(re.escape(needle), view) for needle in needles for view in views)


def _describe(image: Image, variables: Mapping[str, object], parts: Partition) -> None:
    for name, whole in parts.whole.items():
        image.references[name] = {"token": references.token_of(whole.thing, image.hold), "type": whole.what, "reason": whole.reason}
    for name, found in parts.inside.items():
        if found and name not in parts.whole:
            said = sorted({f"{one.what}: {one.reason}" for one in found})
            more = f" and {len(said) - 3} other kinds" if len(said) > 3 else ""
            image.inside[name] = f"{len(found)} object{'s' * (len(found) != 1)} inside by reference ({'; '.join(said[:3])}{more})"
    for name, value in variables.items():
        image.previews[name] = preview(value)


def preview(value: object) -> str:
    """Type and size of a value, nothing of its content; runs none of its code."""
    kind = type(value)
    said = name_of(kind)
    if kind in (list, tuple, dict, set, frozenset):
        return f"{said}, {len(value)} items"  # type: ignore[arg-type]
    if kind in (str, bytes, bytearray):
        return f"{said}, {len(value)} long"  # type: ignore[arg-type]
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and kind is getattr(numpy, "ndarray", None):
        return f"ndarray {value.shape} {value.dtype}"  # type: ignore[attr-defined]
    if pandas is not None and kind in (getattr(pandas, "DataFrame", None), getattr(pandas, "Series", None)):
        return f"{kind.__name__} {' x '.join(map(str, value.shape))}"  # type: ignore[attr-defined]
    return said
