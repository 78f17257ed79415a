"""``%wflo metrics`` and ``%wflo trace``: telemetry of this kernel, switched by hand."""

from __future__ import annotations

from wflo_nb import telemetry
from wflo_nb.errors import ConfigurationError
from wflo_nb.notebook.options import did_you_mean
from wflo_nb.notebook.tables import Said
from wflo_nb.telemetry import Enabled

#: The port that OpenTelemetry's own Prometheus exporters use.
USUAL_PORT = 9464


class Watching:
    """What this session has switched on."""

    def __init__(self) -> None:
        self._metrics: Enabled | None = None
        self._trace: Enabled | None = None

    def metrics(self, rest: list[str]) -> Said:
        """``%wflo metrics [PORT | off]``."""
        if len(rest) > 1:
            raise ConfigurationError(f"%wflo metrics takes one port, or off; {' '.join(rest)!r} is not understood.")
        if not rest:
            return self._served()
        word = rest[0].lower()
        if word == "off":
            was, self._metrics = self._metrics, None
            if was is None:
                return Said("No metrics were served.")
            was()
            return Said(f"Metrics are no longer served at {was.prometheus_url}.")
        if not word.isdecimal():
            raise ConfigurationError(
                f"%wflo metrics: {rest[0]!r} is no port.{did_you_mean(word, ['off'])} Write a number such as {USUAL_PORT}, 0 for any free "
                "port, or off."
            )
        was, self._metrics = self._metrics, telemetry.enable(prometheus_port=int(word))
        if was is not None:
            was()
        return self._served()

    def _served(self) -> Said:
        if self._metrics is None:
            return Said(f"No metrics are served. `%wflo metrics {USUAL_PORT}` serves them for Prometheus on this machine.")
        url = self._metrics.prometheus_url
        return Said(f"Metrics are served for Prometheus at {url}, to this machine only. `%wflo metrics off` ends that.", url)

    def trace(self, rest: list[str]) -> Said:
        """``%wflo trace [on [URL] [content] | off]``."""
        word = rest[0].lower() if rest else ""
        content = len(rest) > 1 and rest[-1].lower() == "content"
        if not rest:
            return self._traced()
        if word == "on" and len(rest) - content < 3:
            where = rest[1] if len(rest) - content == 2 else None
            was, self._trace = self._trace, telemetry.enable(otlp_endpoint=where, record_content=content or None)
            if was is not None:
                was()
            return self._traced()
        if word == "off" and len(rest) == 1:
            was, self._trace = self._trace, None
            if was is None:
                return Said("No traces were sent.")
            was()
            return Said("Traces are no longer sent.")
        raise ConfigurationError(
            f"%wflo trace: {' '.join(rest)!r} is not understood.{did_you_mean(word, ['on', 'off'])} Write on, on and the URL of an OTLP "
            "collector such as http://127.0.0.1:4318, with `content` behind it for prompts and answers, or off."
        )

    def _traced(self) -> Said:
        on = self._trace
        if on is None:
            return Said("No traces are sent by this session. `%wflo trace on` sends them where OpenTelemetry is set up to.")
        if not on.where:
            return Said(
                "OpenTelemetry is switched off by the environment (OTEL_SDK_DISABLED or OTEL_…_EXPORTER=none): nothing is sent.", on
            )
        told = " and ".join(f"{what} to {where}" for what, where in on.where.items())
        words = "with" if on.content else "without"
        return Said(f"OpenTelemetry: {told}, {words} prompts and answers. `%wflo trace off` ends that.", on)

    def close(self) -> None:
        """Switch off what was switched on here."""
        for one in (self._metrics, self._trace):
            if one is not None:
                one()
        self._metrics = self._trace = None
