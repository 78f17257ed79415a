"""Programs that call a model by themselves: claude-agent-sdk starts one. It is led through a door of ours (`gateway`), so that its calls
are read like any other; where that cannot be, it is turned away.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from wflo_nb.capture.transports import gateway, notice
from wflo_nb.capture.transports.patching import replace, replace_all

_BASE = "ANTHROPIC_BASE_URL"
#: Switches by which it calls Claude in a cloud, with signatures of its own.
_CLOUDS = ("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY", "CLAUDE_CODE_USE_MANTLE")
_PAST = ("NO_PROXY", "no_proxy")
_KIND = "the program that claude-agent-sdk starts"


def patch_claude_agent(lib: ModuleType) -> Callable[[], None]:
    """Watch the subprocess of claude-agent-sdk, which calls Anthropic by itself. Returns the undo."""
    transport = lib.SubprocessCLITransport
    if not hasattr(transport, "close"):
        return replace(transport, "connect", _wrap_connect)
    return replace_all((transport, "connect", _wrap_connect), (transport, "close", _wrap_close))


def _wrap_connect(connect: Any) -> Any:
    connect = notice.quietly_in_loop(connect)

    async def connecting(self: Any, *args: Any, **kwargs: Any) -> Any:
        account = notice.payer()
        if account is None or getattr(self, "_wflo_gateway", None) is not None:
            return await connect(self, *args, **kwargs)
        door = _led(self, account)
        if door is None:
            await notice.session_in_loop(account, "api.anthropic.com", "/v1/messages", _KIND)
            return await connect(self, *args, **kwargs)
        self._wflo_gateway = door
        try:
            return await connect(self, *args, **kwargs)
        except BaseException:
            self._wflo_gateway = None
            door.close()
            raise

    return connecting


def _wrap_close(close: Any) -> Any:
    async def closing(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await close(self, *args, **kwargs)
        finally:
            door, self._wflo_gateway = getattr(self, "_wflo_gateway", None), None
            if door is not None:
                door.close()

    return closing


def _led(transport: Any, account: Any) -> gateway.Gateway | None:
    """A door for the program of a transport, which is told to use it; None if it cannot be led there."""
    library, options = gateway.library(), getattr(transport, "_options", None)
    if library is None or not dataclasses.is_dataclass(options) or isinstance(options, type) or not hasattr(options, "settings"):
        return None
    given: Mapping[str, str] = getattr(options, "env", None) or {}
    environment = {**os.environ, **given}
    settings = _settings(options.settings, getattr(transport, "_cwd", None))
    if settings is None or any(environment.get(name, "").lower() in ("1", "true", "yes", "on") for name in _CLOUDS):
        return None
    door = gateway.Gateway(library, account, environment.get(_BASE) or "https://api.anthropic.com")
    # In its environment and in the settings of its command line, which win over those of files.
    theirs = settings.get("env") or {}
    ways = {_BASE: door.url, **dict.fromkeys(_CLOUDS, "0"), **dict.fromkeys(_PAST, _past_proxies({**environment, **theirs}))}
    settings["env"] = {**theirs, **ways}
    transport._options = dataclasses.replace(options, env={**given, **ways}, settings=json.dumps(settings))
    return door


def _past_proxies(environment: Mapping[str, str]) -> str:
    """The hosts that the program calls without its proxy, with that of the door, which no proxy could reach."""
    return ",".join([*filter(None, dict.fromkeys(environment.get(name) for name in _PAST)), "127.0.0.1"])


def _settings(given: str | None, folder: str | None) -> dict[str, Any] | None:
    """The settings that the user hands over, as text or as a file; None if they cannot be read."""
    if given is None:
        return {}
    try:
        text = given if given.strip().startswith("{") else (Path(folder or "") / given.strip()).read_text(encoding="utf-8-sig")
        found = json.loads(text)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("env") or {}, dict) else None
