"""Compare purely, apply afterwards: what a restore will do to each name, and the one step in which it does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from wflo_nb.errors import RestoreError
from wflo_nb.snapshot import references
from wflo_nb.snapshot.manifest import Component, Manifest
from wflo_nb.snapshot.records import BY_REFERENCE, DELETED, KEPT, LOST, REBUILT, RestorePlan, SnapshotDiff, joined

References = Mapping[str, Mapping[str, str]]


@dataclass(slots=True)
class Intent:
    """A restore, decided.

    Attributes:
        plan: the same for people.
        rebuild: components to load.
        bind: names that get an object of this process, or a stub.
        delete: names that were made later.
    """

    plan: RestorePlan
    rebuild: list[Component]
    bind: dict[str, object]
    delete: list[str]


def intend(
    manifest: Manifest,
    live: Mapping[str, object],
    components: Iterable[Component],
    without: Iterable[str],
    is_users: Callable[[str, object], bool],
) -> Intent:
    """Compare a checkpoint with what is.

    Args:
        manifest: what shall be.
        live: the variables as they are.
        components: their bytes.
        without: names to leave as they are, together with what they share objects with, then and now.
        is_users: whether a name is the user's at all.
    """
    present = list(components)
    equal = {c.content for c in present}
    fates: dict[str, str] = {}
    notes: dict[str, str] = {}
    intent = Intent(RestorePlan(manifest.info(), fates, notes), [], {}, [])
    left = _closed(set(without), [c.names for c in (*manifest.components, *present)])
    for component in manifest.components:
        names = [name for name in component.names if name not in left and is_users(name, live.get(name))]
        if not names:
            continue
        same = component.content in equal
        if not same:
            intent.rebuild.append(component)
        for name in names:
            fates[name] = KEPT if same else REBUILT
            if not same and name in manifest.inside:
                notes[name] = manifest.inside[name]
    for name, its in manifest.references.items():
        if name not in left and is_users(name, live.get(name)):
            fates[name], notes[name] = _bind(intent, name, its, live)
    for name in sorted(live.keys() - manifest.names - left):
        intent.delete.append(name)
        fates[name] = DELETED
    return intent


def _closed(left: set[str], groups: list[tuple[str, ...]]) -> set[str]:
    """These names and all that hang together with them."""
    while True:
        more = {name for names in groups if left.intersection(names) for name in names}
        if more <= left:
            return left
        left |= more


def _bind(intent: Intent, name: str, its: Mapping[str, str], live: Mapping[str, object]) -> tuple[str, str]:
    """Decide about a variable that is kept by reference."""
    if references.alive(its["token"]):
        intent.bind[name] = references.recall(its["token"], its["type"], its["reason"])
        return BY_REFERENCE, f"{its['type']}: {its['reason']}"
    if name in live:
        return BY_REFERENCE, f"left as it is now; the {its['type']} of the checkpoint could not be saved ({its['reason']})"
    intent.bind[name] = references.Lost(its["type"], its["reason"])
    return LOST, f"it was a {its['type']} ({its['reason']}); make it again"


def swap(namespace: MutableMapping[str, Any], fresh: Mapping[str, Any], intent: Intent) -> None:
    """Bind and remove all names, or none. Values that go are released only afterwards, so no finaliser runs in between.

    Raises:
        RestoreError: the namespace refused; everything was put back.
    """
    old = {name: namespace[name] for name in (*fresh, *intent.delete) if name in namespace}
    try:
        if type(namespace) is dict:
            namespace.update(fresh)
        else:
            for name, value in fresh.items():
                namespace[name] = value
        for name in intent.delete:
            if name in namespace:
                del namespace[name]
    except BaseException as error:
        stuck = _put_back(namespace, old, fresh)
        if isinstance(error, Exception):
            state = f"These could not be put back: {joined(stuck)}." if stuck else "All variables are as they were."
            raise RestoreError(f"The namespace refused a variable ({type(error).__name__}: {error}). {state}", intent.plan) from error
        raise


def _put_back(namespace: MutableMapping[str, Any], old: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
    stuck = []
    for name in {**old, **fresh}:
        try:
            if name in old:
                if name not in namespace or namespace[name] is not old[name]:
                    namespace[name] = old[name]
            elif name in namespace:
                del namespace[name]
        except Exception:
            stuck.append(name)
    return stuck


def compare(before: tuple[Iterable[Component], References], after: tuple[Iterable[Component], References]) -> SnapshotDiff:
    """Two states by content."""
    old, new = _contents(*before), _contents(*after)
    both = old.keys() & new.keys()
    unknown = {name for name in both if old[name] != new[name] and (name in before[1] or name in after[1])}
    return SnapshotDiff(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(name for name in both - unknown if old[name] != new[name])),
        same=tuple(sorted(name for name in both if old[name] == new[name])),
        by_reference=tuple(sorted(unknown)),
    )


def _contents(components: Iterable[Component], references_: References) -> dict[str, object]:
    found: dict[str, object] = {name: c.content for c in components for name in c.names}
    found.update({name: its["token"] for name, its in references_.items()})
    return found
