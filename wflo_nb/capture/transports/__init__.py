"""Meeting the HTTP libraries: patch once, at the class, whenever a library is or becomes loaded; restore when the last user leaves.

Adapters hold no policy. Each one shows a request to the gate, sends what the gate says, and lets the exchange read the answer.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from wflo_nb.capture.transports import aiohttp, botocore, cassettes, httpx, litellm, lm15, patching, programs, sessions, unread, urllib3
from wflo_nb.errors import tell

_log = logging.getLogger(__name__)

#: Module to adapter: given the module, patch it and return what undoes the patch.
ADAPTERS: dict[str, Callable[[ModuleType], Callable[[], None]]] = {
    "httpx": httpx.patch,
    "httpx2": httpx.patch,
    "urllib3": urllib3.patch,
    "aiohttp": aiohttp.patch,
    "botocore.endpoint": botocore.patch,
    "aiobotocore.endpoint": botocore.patch_async,
    "dspy._vendor.lm15.transports._sync": lm15.patch,
    "dspy._vendor.lm15.transports._async": lm15.patch_async,
    "litellm": litellm.patch,
    "websockets.asyncio.client": sessions.patch_websockets,
    "websockets.sync.client": sessions.patch_websockets,
    "websockets.legacy.client": sessions.patch_old_websockets,
    "websocket._core": sessions.patch_websocket_client,
    "grpc._channel": sessions.patch_grpc,
    "grpc.aio._channel": sessions.patch_grpc_aio,
    "claude_agent_sdk._internal.transport.subprocess_cli": programs.patch_claude_agent,
    "http.client": unread.patch_http_client,
    "vcr.patch": cassettes.patch,  # after the doors that it remembers
}

_lock = threading.RLock()
_users = 0
#: By module, not by name: one that was thrown out of `sys.modules` and imported again is another.
_undo: dict[ModuleType, Callable[[], None]] = {}


def _patch(name: str, module: ModuleType) -> None:
    with _lock:
        if module in _undo or not _users:
            return
        try:
            _undo[module] = ADAPTERS[name](module)
        except Exception:
            # An import must not break because of us, and a blind spot must not be silent.
            _log.exception("could not watch %s", name)
            tell(f"wflo_nb cannot watch calls made through {name}: they are neither counted nor limited.")


class _WatchingLoader(Loader):
    """Patches a module right after it was executed, then leaves no trace of itself."""

    def __init__(self, loader: Loader, name: str) -> None:
        self._loader = loader
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(self._loader, attribute)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _patch(self._name, module)


class _Finder(MetaPathFinder):
    """Lends our loader to the libraries we know, while they are imported for the first time."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in ADAPTERS:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find and finder is not self else None
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _WatchingLoader(spec.loader, fullname)
                return spec  # type: ignore[no-any-return]
        return None


_finder = _Finder()


def install() -> None:
    """Watch calls from now on, also of clients made before. Counted: as many `uninstall` restore everything."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            sys.meta_path.insert(0, _finder)
        elif patching.stand_again() and (vcr := sys.modules.get("vcr.patch")) in _undo:
            _undo.pop(vcr)()  # it remembers doors: these are others
        for name in ADAPTERS:
            module = sys.modules.get(name)
            if module is not None and getattr(module.__spec__, "_initializing", False) is False:
                _patch(name, module)


def uninstall() -> None:
    """The counterpart of `install`."""
    global _users
    with _lock:
        if _users == 0:
            return
        _users -= 1
        if _users == 0:
            if _finder in sys.meta_path:
                sys.meta_path.remove(_finder)
            while _undo:
                _undo.popitem()[1]()
