"""Where spans and metrics go: to a provider that is configured already, or over OTLP/HTTP as the standard ``OTEL_*`` environment says.

A provider made here is never set as the process's own: that is the user's to decide. It is flushed for a bounded time when it is closed,
so that a collector which does not answer delays nobody's exit by more than that.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Literal

from wflo_nb import _context
from wflo_nb.errors import ConfigurationError, MissingDependencyError

Signal = Literal["traces", "metrics"]


class Pipeline:
    """A provider and how it is flushed and closed.

    Attributes:
        provider: an OpenTelemetry tracer or meter provider.
        where: what people call the destination: a URL, or whose provider it is.
    """

    def __init__(self, provider: Any, where: str, *, owned: bool = False) -> None:
        self.provider = provider
        self.where = where
        self._end = threading.Event()
        self._closer: threading.Thread | None = None
        if owned:
            # Started now: at the exit of the interpreter no thread can be started any more, and that is when it is needed.
            self._closer = threading.Thread(target=self._close, name="wflo-telemetry", daemon=True)
            self._closer.start()

    def flush(self, seconds: float) -> bool:
        """Send what waits; False if that takes longer than `seconds`, or fails."""
        sent: list[bool] = []
        flush = getattr(self.provider, "force_flush", None)
        if flush is None:
            return True
        thread = threading.Thread(target=lambda: sent.append(bool(flush(int(seconds * 1000)))), name="wflo-telemetry-flush", daemon=True)
        thread.start()
        thread.join(seconds)
        return sent == [True]

    def close(self) -> None:
        """Send what waits and stop, in the background, if the provider was made here."""
        self._end.set()

    def wait(self, seconds: float) -> None:
        """Wait until that is done, for so many seconds at most."""
        if self._closer is not None:
            self._closer.join(seconds)

    def _close(self) -> None:
        self._end.wait()
        self.provider.shutdown()


def configured(signal: Signal) -> Any:
    """The provider that somebody set for the whole process; None if nobody did. Imports nothing."""
    module: Any = sys.modules.get("opentelemetry.trace" if signal == "traces" else "opentelemetry.metrics")
    if module is None:
        return None
    provider = module.get_tracer_provider() if signal == "traces" else module.get_meter_provider()
    # The API's own stand-ins (proxies and no-ops) live in the API; whatever does something lives elsewhere.
    return None if type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics")) else provider


def told(signal: Signal) -> bool:
    """Whether the environment names a collector for this signal."""
    return _exports(signal) and any(os.environ.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", _variable(signal, "ENDPOINT")))


def disabled() -> bool:
    """Whether the environment switches OpenTelemetry off altogether (``OTEL_SDK_DISABLED``)."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _exports(signal: Signal) -> bool:
    return os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower() != "none"


def _variable(signal: Signal, what: str) -> str:
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}"


def find(signal: Signal, given: Any, endpoint: str | None) -> tuple[object, Callable[[], Pipeline]] | None:
    """What a signal is sent to without being invented: the `given` provider, an `endpoint`, the configured provider, or the environment's.

    Returns:
        a key that is equal for the same destination, and what makes its pipeline; None if nobody named one.
    """
    if given is not None:
        return id(given), lambda: Pipeline(given, "the provider that was handed over")
    if endpoint is not None:
        return make(signal, endpoint)
    provider = configured(signal)
    if provider is not None:
        return id(provider), lambda: Pipeline(provider, "the provider that is set for this process")
    return make(signal, None) if told(signal) else None


def make(signal: Signal, endpoint: str | None) -> tuple[object, Callable[[], Pipeline]] | None:
    """A pipeline of our own to `endpoint` (the collector's base URL); None means the environment's, else the standard's, which is
    http://localhost:4318. None is returned if the environment exports nothing (``OTEL_TRACES_EXPORTER=none``).
    """
    if endpoint is None and not _exports(signal):
        return None
    return (signal, endpoint), lambda: (_traces if signal == "traces" else _metrics)(_url(signal, endpoint), _where(signal, endpoint))


def _where(signal: Signal, endpoint: str | None) -> str:
    """The URL that spans or metrics go to, without the credentials that may stand in it."""
    from urllib.parse import urlsplit

    base = endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
    whole = None if endpoint else os.environ.get(_variable(signal, "ENDPOINT"))
    parts = urlsplit(whole or f"{base.rstrip('/')}/v1/{signal}")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _url(signal: Signal, endpoint: str | None) -> str | None:
    protocol = os.environ.get(_variable(signal, "PROTOCOL")) or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if endpoint is None:
        if protocol != "http/protobuf":
            raise ConfigurationError(
                f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not spoken here. Use http/protobuf (port 4318 of most collectors), or "
                f"configure a provider of your own and hand it over: telemetry.enable(tracer_provider=…, meter_provider=…)."
            )
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(f"The OTLP endpoint {endpoint!r} is no URL. Write the collector's, for example http://127.0.0.1:4318.")
    return f"{endpoint.rstrip('/')}/v1/{signal}"


def _traces(url: str | None, where: str) -> Pipeline:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise _missing(error) from None
    with _context.within(None):  # the exporter's threads outlive the cell that starts them
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        return Pipeline(provider, where, owned=True)


def _metrics(url: str | None, where: str) -> Pipeline:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    except ImportError as error:
        raise _missing(error) from None
    with _context.within(None):
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=url))
        return Pipeline(MeterProvider([reader], resource=_resource(), shutdown_on_exit=False), where, owned=True)


def _missing(error: ImportError) -> MissingDependencyError:
    exporter = "exporter" in (error.name or str(error))
    return MissingDependencyError("opentelemetry-exporter-otlp-proto-http" if exporter else "opentelemetry-sdk", "otel")


def _resource() -> Any:
    """The environment's resource; a service that it does not name is called ``wflo_nb``."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    told = Resource.create()
    named = not str(told.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service")
    return told if named else told.merge(Resource({SERVICE_NAME: "wflo_nb"}))
