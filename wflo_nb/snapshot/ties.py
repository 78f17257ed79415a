"""Which objects are tied to this process, so that half a copy of one would be worse than none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import enum
import io
import mmap
import multiprocessing.process
import queue
import selectors
import socket
import ssl
import subprocess
import threading
import types
import weakref

from wflo_nb.snapshot import references

_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
#: Objects that are tied to this process: half a copy of one would be worse than none.
_TIED: tuple[type, ...] = (
    io.IOBase, socket.socket, ssl.SSLContext, ssl.SSLSocket, mmap.mmap, selectors.BaseSelector, subprocess.Popen, threading.Thread,
    threading.Event, threading.Condition, threading.Semaphore, threading.Barrier, threading.local, queue.Queue, queue.SimpleQueue,
    _LOCK, _RLOCK, multiprocessing.process.BaseProcess, concurrent.futures.Future, concurrent.futures.Executor,
    asyncio.AbstractEventLoop, asyncio.Future, asyncio.Queue, asyncio.Event, asyncio.Lock, asyncio.Condition, asyncio.Semaphore,
    asyncio.StreamReader, asyncio.StreamWriter, types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.FrameType,
    types.TracebackType, contextvars.ContextVar, contextvars.Context, contextvars.Token, weakref.ref, weakref.ProxyType,
    weakref.CallableProxyType, weakref.finalize,
)  # fmt: skip
_IN_MEMORY = (io.StringIO, io.BytesIO)
_SAID = {
    types.GeneratorType: "a generator cannot be saved",
    types.CoroutineType: "a coroutine cannot be saved",
    types.AsyncGeneratorType: "a generator cannot be saved",
}
#: Live parts of a session and of this package: their state is in other places than their attributes.
_TIED_LIBRARIES = {
    "ipywidgets",
    "anywidget",
    "traitlets",
    "IPython",
    "ipykernel",
    "jupyter_client",
    "zmq",
    "tornado",
    "comm",
    "tqdm",
    "multiprocessing",
    "sqlite3",
    "tempfile",
}
_OWN_ROOMS = (
    "wflo_nb.store",
    "wflo_nb.snapshot",
    "wflo_nb.notebook",
    "wflo_nb.workflow",
    "wflo_nb.capture",
    "wflo_nb.budget",
    "wflo_nb.testing",
)

#: Raised by containers that another thread changed under the walk: worth another try, unlike every other error.
CHANGED_UNDER_WALK = ("changed size during iteration", "mutated during iteration", "keys changed during iteration")

_tied: dict[type, str] = {}


def changed_under_walk(error: BaseException) -> bool:
    """Was it raised because another thread changed a container?"""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CHANGED_UNDER_WALK)


def name_of(kind: type) -> str:
    """A type as users know it."""
    try:
        return kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    except Exception:
        return "object of an unknown type"


def why_tied(kind: type) -> str:
    """Why objects of this type stay by reference; empty if they do not."""
    known = _tied.get(kind)
    if known is None:
        known = ""
        if issubclass(kind, _TIED) and not issubclass(kind, _IN_MEMORY):
            known = next((said for tied, said in _SAID.items() if issubclass(kind, tied)), f"a {name_of(kind)} is tied to this process")
        elif not issubclass(kind, (BaseException, enum.Enum, type, types.FunctionType, types.ModuleType, tuple)):
            for c in kind.__mro__:
                module = c.__module__ if isinstance(getattr(c, "__module__", None), str) else ""
                if module.partition(".")[0] in _TIED_LIBRARIES or module.startswith(_OWN_ROOMS):
                    known = f"a {name_of(kind)} is a live part of this session"
                    break
        if kind.__name__ == "memmap" and kind.__module__.startswith("numpy"):
            known = "an array mapped to a file stays in its file"
        if issubclass(kind, references.Lost) or module_of(kind).startswith("wflo_nb.snapshot.records"):
            known = ""
        if len(_tied) < 10_000:
            _tied[kind] = known
    return known


def module_of(kind: type) -> str:
    """The module that a class names, as far as it names one."""
    module = getattr(kind, "__module__", None)
    return module if isinstance(module, str) else ""
