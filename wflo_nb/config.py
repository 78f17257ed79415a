"""Settings: arguments first, then the environment (``WFLO_*``), then defaults. One frozen object."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from wflo_nb.errors import ConfigurationError

UnknownModels = Literal["refuse", "allow"]
Offline = Literal["lease", "refuse"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set from outside.

    Attributes:
        store: where records are kept: None for the embedded default, a path, or a ``postgresql://`` URL (``WFLO_STORE``).
        state_dir: folder of the embedded store, its packs and the signing key (``WFLO_STATE_DIR``).
        team: the ``team_id`` that leads every key (``WFLO_TEAM``).
        unknown_models: what happens to a call of an unpriced model under a budget (``WFLO_UNKNOWN_MODELS``).
        card: ``"live"`` for the widget, ``"static"`` for one deterministic text at the end, ``"off"`` (``WFLO_NB``).
        offline: what a store on a server does when it cannot be reached: go on within money ``"lease"``d beforehand, or ``"refuse"`` at
            once, since then every call asks the server itself (``WFLO_OFFLINE``).
        service_tier: ``"default"`` says that no account or project of the user runs requests at priority by itself, so that a request
            which names no service tier is bounded by the ordinary price; ``""`` counts priority, up to twice as dear
            (``WFLO_SERVICE_TIER``).
        gateways: hosts of the user's that pass calls on to a provider unchanged, each with the provider's OpenTelemetry name: its
            prices and its ways of counting then bound these calls, and not the dearest of everybody's (``WFLO_GATEWAYS``, as
            ``llm.example.org=openai, claude.example.org=anthropic``).
        telemetry: ``"auto"`` lets workflows send traces and metrics where OpenTelemetry is set up already; ``"off"`` keeps them from it
            (``WFLO_TELEMETRY``).
        record_content: ``"on"`` puts prompts and answers into traces, unless the one who switches them on says otherwise
            (``WFLO_RECORD_CONTENT``).
    """

    store: str | None = None
    state_dir: Path | None = None
    team: str = "local"
    unknown_models: UnknownModels = "refuse"
    card: Literal["live", "static", "off"] = "live"
    offline: Offline = "lease"
    service_tier: Literal["", "default"] = ""
    gateways: tuple[tuple[str, str], ...] = ()
    telemetry: Literal["auto", "off"] = "auto"
    record_content: Literal["off", "on"] = "off"


class Variable:
    """An environment variable that is read for every call, so that a change counts at once: `os.environ` takes ten times as long to say
    that there is none, because it raises an error first.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._key: Any = getattr(os.environ, "encodekey", lambda name: name)(name)

    def get(self) -> str | None:
        """Its value, None if it is not set."""
        known: Any = getattr(os.environ, "_data", None)
        return os.environ.get(self._name) if known is None or self._key in known else None


def gateways(text: str) -> tuple[tuple[str, str], ...]:
    """The hosts and providers of ``WFLO_GATEWAYS``.

    Raises:
        ConfigurationError: it is not a list of ``host=provider``.
    """
    pairs = [tuple(part.strip().lower() for part in one.split("=")) for one in text.split(",") if one.strip()]
    if any(len(pair) != 2 or not all(pair) or "/" in pair[0] for pair in pairs):
        raise ConfigurationError(f"WFLO_GATEWAYS={text!r} is not understood. Write host=provider, for example llm.example.org=openai.")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigurationError(f"{name}={value!r} is not understood. Use one of: {', '.join(allowed)}.")
    return value


def load(environment: dict[str, str] | None = None) -> Settings:
    """Settings of this process.

    Raises:
        ConfigurationError: a variable has a value that cannot be used.
    """
    env = os.environ if environment is None else environment
    state_dir = env.get("WFLO_STATE_DIR")
    return Settings(
        store=env.get("WFLO_STORE") or None,
        state_dir=Path(state_dir).expanduser() if state_dir else None,
        team=env.get("WFLO_TEAM") or "local",
        unknown_models=cast(UnknownModels, _choice("WFLO_UNKNOWN_MODELS", env.get("WFLO_UNKNOWN_MODELS") or "refuse", ("refuse", "allow"))),
        card=cast(Literal["live", "static", "off"], _choice("WFLO_NB", env.get("WFLO_NB") or "live", ("live", "static", "off"))),
        offline=cast(Offline, _choice("WFLO_OFFLINE", env.get("WFLO_OFFLINE") or "lease", ("lease", "refuse"))),
        service_tier=cast(Literal["", "default"], _choice("WFLO_SERVICE_TIER", env.get("WFLO_SERVICE_TIER") or "", ("", "default"))),
        gateways=gateways(env.get("WFLO_GATEWAYS") or ""),
        telemetry=cast(Literal["auto", "off"], _choice("WFLO_TELEMETRY", env.get("WFLO_TELEMETRY") or "auto", ("auto", "off"))),
        record_content=cast(Literal["off", "on"], _choice("WFLO_RECORD_CONTENT", env.get("WFLO_RECORD_CONTENT") or "off", ("off", "on"))),
    )


def state_dir(settings: Settings) -> Path:
    """The folder of everything the embedded store keeps; made on demand, readable by its owner only."""
    if settings.state_dir is not None:
        folder = settings.state_dir
    else:
        import platformdirs  # at first use: not worth its time in a process that never opens a store

        folder = Path(platformdirs.user_state_dir("wflo_nb", appauthor=False))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
