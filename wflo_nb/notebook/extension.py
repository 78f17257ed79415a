"""``%load_ext wflo_nb`` and ``%unload_ext wflo_nb``: everything the shell is given is taken back by a list of undos."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from wflo_nb import store
from wflo_nb.notebook.completion import matcher
from wflo_nb.notebook.magics import SUBCOMMANDS, Magics, wflo_cell
from wflo_nb.notebook.session import Session, inside_cell
from wflo_nb.notebook.tracebacks import shorten_ours
from wflo_nb.notebook.transformer import transform
from wflo_nb.telemetry import budgets

_loaded: WeakKeyDictionary[Any, tuple[Session, list[Callable[[], object]]]] = WeakKeyDictionary()


def load(ip: Any) -> None:
    """Follow the cells of this shell. Loading twice is the same as once.

    Raises:
        ConfigurationError: a ``WFLO_*`` variable has a value that cannot be used.
    """
    if ip in _loaded:
        return
    inside = inside_cell(ip)
    session = Session(ip)
    magics = Magics(session)
    undos: list[Callable[[], object]] = []
    _loaded[ip] = session, undos

    session.open(inside_cell=inside)
    undos.append(magics.watching.close)  # after the session: it ends the runs that are still to be told of
    undos.append(session.close)
    undos.append(budgets.watch(session.allowance.states))
    undos.append(shorten_ours(ip))
    # IPython's own cell magics come after all of these, so the end of the list is early enough.
    _add(ip.input_transformer_manager.cleanup_transforms, transform, undos)
    options = {name: sub.options for name, sub in SUBCOMMANDS.items()}
    _add(ip.Completer.custom_matchers, matcher(options, session.checkpoints.names, session.calls_in_doubt), undos)
    for kind, function in (("line", magics.wflo), ("cell", wflo_cell)):
        _register(ip, kind, function, undos)
    store.warm_up()


def unload(ip: Any) -> None:
    """Leave the shell as it was found. Doing it twice is the same as once."""
    if ip in _loaded:
        for undo in reversed(_loaded.pop(ip)[1]):
            undo()


def session_of(ip: Any) -> Session | None:
    """The session of a shell that has the extension loaded."""
    return _loaded[ip][0] if ip in _loaded else None


def _add(place: list[Any], thing: Any, undos: list[Callable[[], object]]) -> None:
    def remove() -> None:
        with suppress(ValueError):  # the user may have emptied the list
            place.remove(thing)

    place.append(thing)
    undos.append(remove)


def _register(ip: Any, kind: str, function: Callable[..., Any], undos: list[Callable[[], object]]) -> None:
    known = ip.magics_manager.magics[kind]
    before = known.get("wflo")
    ip.register_magic_function(function, kind, "wflo")
    ours = known["wflo"]

    def remove() -> None:
        if known.get("wflo") is not ours:
            return
        if before is None:
            del known["wflo"]
        else:
            known["wflo"] = before

    undos.append(remove)
