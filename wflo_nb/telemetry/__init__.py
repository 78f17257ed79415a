"""Traces, metrics and logs for those who watch: listeners to `wflo_nb.events`, off until switched on.

    from wflo_nb import telemetry

    off = telemetry.enable()                        # OpenTelemetry: the configured providers, else OTLP by the OTEL_* environment
    off = telemetry.enable(prometheus_port=9464)    # a page for Prometheus on 127.0.0.1
    off = telemetry.enable(logs=True)               # one line of `logging` a call
    off = telemetry.enable(record_content=True)     # with prompts and answers in the spans
    ...
    off()

Keys and messages of foreign errors are in none of them, nor are prompts and answers, unless they are asked for. Whatever fails here is
logged and never reaches a call. Off, it costs nothing: no library is imported, and no event is made for nobody.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wflo_nb import config, events
from wflo_nb.errors import ConfigurationError, WfloError
from wflo_nb.telemetry import otlp
from wflo_nb.telemetry.otlp import Pipeline

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from wflo_nb.telemetry.traces import Traces

__all__ = ["Enabled", "adopt", "auto", "enable", "enter", "enter_step", "flush", "trace_id", "traceparent"]

_log = logging.getLogger(__name__)

#: Seconds that switching off, and that the end of the process, wait at most for what is still to be sent.
_OFF_WAIT = 5.0
_EXIT_WAIT = 2.0

#: So many executions of other processes are remembered by a worker that serves one after the other.
_ADOPTED = 50


@dataclass(slots=True)
class _Part:
    """One listener that is on, for as many as asked for it."""

    listener: Any
    undo: Callable[[], None]
    pipeline: Pipeline | None = None
    users: int = 1

    def close(self) -> None:
        self.undo()
        if hasattr(self.listener, "close"):
            self.listener.close()
        if self.pipeline is not None:
            self.pipeline.close()


Key = tuple[str, object]
_lock = threading.RLock()
_parts: dict[Key, _Part] = {}
_traces: tuple[Traces, ...] = ()
_auto: list[Enabled] = []
_adopted: dict[str, str] = {}


class Enabled:
    """What was switched on. Call it to switch that off again, unless somebody else asked for it too; more than once is once.

    Attributes:
        where: ``traces``, ``metrics``, ``prometheus`` and ``logs``, as far as they are on, each with its destination.
        content: whether prompts and answers go into the traces.
    """

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self.content = False
        self.where: dict[str, str] = {}

    @property
    def prometheus_url(self) -> str | None:
        """What Prometheus is to scrape; None if that was not asked for."""
        return self.where.get("prometheus")

    def __call__(self, seconds: float = _OFF_WAIT) -> None:
        """Switch off. What waits to be sent is sent first, for so many seconds at most, in the background after that."""
        keys, self._keys = self._keys, []
        _release(keys, seconds)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __repr__(self) -> str:
        on = ", ".join(f"{what} to {where}" for what, where in self.where.items()) if self._keys else ""
        return f"<telemetry: {on or 'off'}>"


def enable(
    otlp_endpoint: str | None = None,
    prometheus_port: int | None = None,
    logs: bool = False,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    record_content: bool | None = None,
) -> Enabled:
    """Switch telemetry on. Asking twice for the same is the same as once.

    Args:
        otlp_endpoint: base URL of an OTLP/HTTP collector, such as ``http://127.0.0.1:4318``, for traces and metrics. Wins over providers
            that are configured.
        prometheus_port: serve metrics for Prometheus on this port of 127.0.0.1; 0 for any free one (`Enabled.prometheus_url` says which).
        logs: say each call that is over, each refused call and each ended execution on the logger ``wflo_nb``.
        tracer_provider: where spans go, if not to the provider that is configured for the process.
        meter_provider: the same for metrics.
        record_content: put prompts and answers into the spans of calls, without what looks like a key. By default the environment decides
            (``WFLO_RECORD_CONTENT=on``), and by its default they are left out.

    With neither `prometheus_port` nor `logs`, or with one of the others, OpenTelemetry is on: spans and metrics go to the providers that
    are set for the process; where none is, to the collector that ``OTEL_EXPORTER_OTLP_ENDPOINT`` names; and where nothing is named at
    all, to http://localhost:4318. ``OTEL_SDK_DISABLED``, ``OTEL_TRACES_EXPORTER=none``, headers, resources, samplers and the like are
    respected.

    Returns:
        what switches off what this call switched on.

    Raises:
        MissingDependencyError: a library is not installed (``pip install 'wflo_nb[otel]'``).
        ConfigurationError: an endpoint or a port that cannot be used.
    """
    given = (otlp_endpoint, tracer_provider, meter_provider)
    content = config.load().record_content == "on" if record_content is None else record_content
    plain = prometheus_port is None and not logs
    on = Enabled()
    try:
        if (plain or any(one is not None for one in given)) and not otlp.disabled():
            _telemetry(on, *given, invent=plain and all(one is None for one in given), content=content)
        if prometheus_port is not None:
            _prometheus(on, prometheus_port)
        if logs:
            _acquire(on, ("logs", None), lambda: (_logs(), None))
    except BaseException:
        on()
        raise
    return on


def auto() -> bool:
    """Switch traces and metrics on if somebody here evidently wants them: a provider is set for the process, or the environment names a
    collector. Cheap, never raises, and changes nothing the second time.

    ``WFLO_TELEMETRY=off`` keeps it from doing so.

    Returns:
        whether any part of telemetry is on.
    """
    try:
        if _wanted() and not otlp.disabled() and (settings := config.load()).telemetry == "auto":
            on = Enabled()
            _telemetry(on, None, None, None, invent=False, content=settings.record_content == "on")
            with _lock:
                held = {key for one in _auto for key in one._keys}
                for key in [key for key in on._keys if key in held]:  # asked for by an earlier call of ours
                    on._keys.remove(key)
                    _release([key], 0)
                if on:
                    _auto.append(on)
    except Exception as error:
        _log.warning("telemetry stays off: %s", error, exc_info=not isinstance(error, WfloError))
    return bool(_parts)


def _wanted() -> bool:
    signals: tuple[otlp.Signal, ...] = ("traces", "metrics")
    return any(otlp.configured(signal) is not None or otlp.told(signal) for signal in signals)


def trace_id(execution_id: str) -> str | None:
    """The trace that an execution (``exec-…``) is part of, as 32 hexadecimal digits; None if no trace of it is kept."""
    return next((found for one in _traces if (found := one.trace_id(execution_id)) is not None), None)


def flush(seconds: float = _OFF_WAIT) -> bool:
    """Send now what waits to be sent. False if that fails, or takes longer than `seconds` for one of the destinations."""
    with _lock:
        pipelines = [part.pipeline for part in _parts.values() if part.pipeline is not None]
    sent = [pipeline.flush(seconds) for pipeline in pipelines]  # every one, also after one that failed
    return all(sent)


def enter(execution_id: str) -> Callable[[], None]:
    """Make an execution's span current here, so that spans which the user's code opens lie inside it. Returns what leaves it (from any
    context, more than once). Nothing happens while no trace is kept.
    """
    return next((leave for one in _traces if (leave := one.enter(execution_id)) is not None), _nothing)


def enter_step(execution_id: str, name: str) -> Callable[[], None]:
    """Open the span of a step of an execution and make it current here. Returns what ends it. Calls find it by their `step`."""
    return next((end for one in _traces if (end := one.enter_step(execution_id, name)) is not None), _nothing)


def traceparent(execution_id: str) -> str | None:
    """An execution's span as a W3C ``traceparent``, to be handed to another process; None if no trace of it is kept."""
    return next((found for one in _traces if (found := one.traceparent(execution_id)) is not None), None)


def adopt(execution_id: str, traceparent: str) -> None:
    """Let the calls that this process makes for an execution of another process be children of its span there."""
    with _lock:
        while len(_adopted) >= _ADOPTED:
            del _adopted[next(iter(_adopted))]
        _adopted[execution_id] = traceparent
        for one in _traces:
            one.adopt(execution_id, traceparent)


def _nothing() -> None:
    """There is nothing to leave."""


# -- the parts -------------------------------------------------------------------------------------------------------------


def _telemetry(on: Enabled, endpoint: str | None, tracers: Any, meters: Any, *, invent: bool, content: bool) -> None:
    traces, metrics = otlp.find("traces", tracers, endpoint), otlp.find("metrics", meters, endpoint)
    if traces is None and metrics is None and invent:
        traces, metrics = otlp.make("traces", None), otlp.make("metrics", None)
    if traces is not None:
        _acquire(on, ("traces", traces[0]), _with(_new_traces, traces[1]))
        if content:
            shown = _parts["traces", traces[0]].listener.content
            _acquire(on, ("content", traces[0]), lambda: (shown, None), events.follow_content)
            on.content = True
    if metrics is not None:
        _acquire(on, ("metrics", metrics[0]), _with(_new_meters, metrics[1]))


def _with(listener: Callable[[Any], Any], make: Callable[[], Pipeline]) -> Callable[[], tuple[Any, Pipeline]]:
    def both() -> tuple[Any, Pipeline]:
        pipeline = make()
        return listener(pipeline.provider), pipeline

    return both


def _version() -> str:
    return str(sys.modules["wflo_nb"].__version__)


def _new_traces(provider: Any) -> Any:
    from wflo_nb.telemetry.traces import Traces

    return Traces(provider, _version())


def _new_meters(provider: Any) -> Any:
    from wflo_nb.telemetry.meters import Meters

    return Meters(provider, _version())


def _logs() -> Any:
    from wflo_nb.telemetry.logs import Logs

    return Logs()


def _prometheus(on: Enabled, port: int) -> None:
    from wflo_nb.telemetry.prometheus import Prometheus

    if isinstance(port, bool) or not isinstance(port, int):
        raise ConfigurationError(f"prometheus_port={port!r} is no port. Write a number, for example 9464, or 0 for any free one.")
    with _lock:
        served = [part.listener for key, part in _parts.items() if key[0] == "prometheus"]
        page = next((one for one in served if port in (0, one.port)), None) or Prometheus(port)
        _acquire(on, ("prometheus", page.port), lambda: (page, None))


def _acquire(
    on: Enabled,
    key: Key,
    make: Callable[[], tuple[Any, Pipeline | None]],
    subscribe: Callable[[Any], Callable[[], None]] = events.subscribe,
) -> None:
    global _traces
    with _lock:
        part = _parts.get(key)
        if part is not None:
            part.users += 1
        else:
            listener, pipeline = make()
            if not _parts:
                atexit.register(_at_exit)
            _parts[key] = _Part(listener, subscribe(listener), pipeline)
            if key[0] == "traces":
                _traces = (*_traces, listener)
                for execution_id, traceparent in _adopted.items():
                    listener.adopt(execution_id, traceparent)
        on._keys.append(key)
        pipeline = _parts[key].pipeline
        if key[0] != "content":
            on.where[key[0]] = pipeline.where if pipeline is not None else _parts[key].listener.where


def _release(keys: list[Key], seconds: float) -> None:
    """Nobody needs these any more, unless somebody else does; waits so many seconds at most for all of them together."""
    over = [part for key in keys if (part := _left(key)) is not None]
    for part in over:
        part.close()
    until = time.monotonic() + seconds
    for pipeline in [part.pipeline for part in over if part.pipeline is not None]:
        pipeline.wait(max(0.0, until - time.monotonic()))


def _left(key: Key) -> _Part | None:
    """The part, if this was the last that needed it."""
    global _traces
    with _lock:
        part = _parts.get(key)
        if part is None:
            return None
        part.users -= 1
        if part.users:
            return None
        del _parts[key]
        _traces = tuple(one for one in _traces if one is not part.listener)
        if not _parts:
            atexit.unregister(_at_exit)
        return part


def _at_exit() -> None:
    for part in list(_parts.values()):
        part.users = 1
    _release(list(_parts), _EXIT_WAIT)
