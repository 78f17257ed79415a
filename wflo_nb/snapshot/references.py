"""Objects that are kept by reference: in this process the very object comes back, elsewhere a stub says what it was.

A reference is a token in the bytes. The table below maps tokens of this process to objects without keeping them alive; who needs
them alive (an engine, for its newest snapshots) holds a `Hold`.
"""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from typing import Any, NoReturn

from wflo_nb.errors import RestoreError


class Lost:
    """Stands in for an object that could not be saved and whose process is gone. Any use raises, printing does not."""

    def __init__(self, what: str, reason: str = "") -> None:
        object.__setattr__(self, "_wflo_lost", (what, reason))

    def __repr__(self) -> str:
        what, _ = object.__getattribute__(self, "_wflo_lost")
        return f"<lost: {what} (could not be saved; make it again)>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Lost, object.__getattribute__(self, "_wflo_lost")

    def _raise(self, *_: Any, **__: Any) -> NoReturn:
        what, reason = object.__getattribute__(self, "_wflo_lost")
        because = f" ({reason})" if reason else ""
        raise RestoreError(
            f"This was a {what} that could not be saved{because} and lived in another process. Run the code that makes it again."
        )

    def __getattr__(self, name: str) -> Any:
        # Protocol probes of copy, pickle and IPython's display must get their "no"; everything else is a use.
        if name.startswith(("__", "_repr_", "_ipython_")):
            raise AttributeError(name)
        self._raise()

    __setattr__ = __delattr__ = _raise
    __call__ = __iter__ = __next__ = __len__ = __getitem__ = __setitem__ = __delitem__ = __contains__ = __bool__ = _raise
    __enter__ = __exit__ = __aenter__ = __aexit__ = __await__ = __aiter__ = __anext__ = _raise
    __int__ = __float__ = __index__ = __add__ = __radd__ = __lt__ = __gt__ = __le__ = __ge__ = _raise


class _Box:
    """Holds what supports no weak references (a str, a lock of some kinds)."""

    __slots__ = ("__weakref__", "content")

    def __init__(self, content: object) -> None:
        self.content = content


#: Objects (or their boxes) that somebody wants alive.
Hold = list[object]

_lock = threading.RLock()
_process = ""
_count = 0
_by_token: dict[str, weakref.ref[Any]] = {}
_by_id: dict[int, str] = {}


def _renew() -> None:
    """A new process, forked or not, hands out tokens of its own; those it inherited go on to work."""
    global _process, _lock
    _process = f"proc-{secrets.token_hex(6)}"
    _lock = threading.RLock()


_renew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def _content(token: str) -> tuple[bool, object]:
    ref = _by_token.get(token)
    kept = ref() if ref is not None else None
    if kept is None:
        return False, None
    return True, kept.content if type(kept) is _Box else kept


def token_of(thing: object, hold: Hold) -> str:
    """The token of an object, the same one as long as the object lives. `hold` then keeps it alive."""
    global _count
    with _lock:
        token = _by_id.get(id(thing))
        if token is not None:
            there, content = _content(token)
            if there and content is thing:
                hold.append(_by_token[token]())
                return token
        _count += 1
        token = f"{_process}:{_count}"
        kept: Any = thing
        key = id(thing)

        def forget(_: Any, token: str = token, key: int = key) -> None:
            # No lock: this may run at any allocation, in a thread that holds it or not. Single dict operations are atomic.
            _by_token.pop(token, None)
            if _by_id.get(key) == token:
                _by_id.pop(key, None)

        try:
            ref = weakref.ref(kept, forget)
        except Exception:
            kept = _Box(thing)
            ref = weakref.ref(kept, forget)
        _by_token[token] = ref
        _by_id[key] = token
        hold.append(kept)
        return token


def alive(token: str) -> bool:
    """Can this process give the object back?"""
    return _content(token)[0]


def recall(token: str, what: str, reason: str) -> object:
    """The object of a token, or a stub that says what it was."""
    there, thing = _content(token)
    return thing if there else Lost(what, reason)
