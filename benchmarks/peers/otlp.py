"""What the OpenTelemetry instrumentors share: the SDK's usual provider, which sends batches of spans by OTLP over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import base
from base import Given
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


class Session(base.Session):
    provider: TracerProvider

    def flush(self) -> None:
        self.provider.force_flush()


class Enforcer(base.Enforcer):
    """An instrumentor that is switched on for a session, and off again."""

    provider: TracerProvider | None = None

    def instrumentor(self) -> Any:
        """Its instrumentor."""
        raise NotImplementedError

    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        if self.provider is None:
            self.provider = TracerProvider()
            self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{given.sink}/v1/traces")))
        instrumentor = self.instrumentor()
        instrumentor.instrument(tracer_provider=self.provider)
        session = Session(given)
        session.provider = self.provider
        try:
            yield session
        finally:
            instrumentor.uninstrument()
