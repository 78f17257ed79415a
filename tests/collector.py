"""An OTLP/HTTP collector on loopback that understands what it receives by OpenTelemetry's own protobuf classes."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire


def plain(value: Any) -> Any:
    """An AnyValue as Python's own."""
    return getattr(value, value.WhichOneof("value"))


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: plain(pair.value) for pair in pairs}


@dataclass
class Span:
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, Any]
    links: list[str]
    events: list[tuple[str, dict[str, Any]]]
    error: bool
    scope: str
    resource: dict[str, Any]

    @property
    def execution(self) -> Any:
        return self.attributes.get("wflo.execution.id")


def _span(wire: Any, scope: str, resource: dict[str, Any]) -> Span:
    return Span(
        wire.name,
        Wire.SpanKind.Name(wire.kind).removeprefix("SPAN_KIND_"),
        wire.trace_id.hex(),
        wire.span_id.hex(),
        wire.parent_span_id.hex(),
        wire.start_time_unix_nano,
        wire.end_time_unix_nano,
        attributes(wire.attributes),
        [link.span_id.hex() for link in wire.links],
        [(event.name, attributes(event.attributes)) for event in wire.events],
        wire.status.code == 2,
        scope,
        resource,
    )


@dataclass
class Point:
    metric: str
    unit: str
    attributes: dict[str, Any]
    value: float
    count: int = 0
    bounds: list[float] = field(default_factory=list)


class Collector:
    """Keeps every span and the newest points of every metric, and the raw bytes of all."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.paths: list[str] = []
        self.spans: list[Span] = []
        self.points: dict[tuple[str, str], Point] = {}
        self.answers = threading.Event()  # while it is not set, requests wait
        self.answers.set()
        self.status = 200
        self.headers: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                collector.receive(self)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def receive(self, request: BaseHTTPRequestHandler) -> None:
        data = request.rfile.read(int(request.headers["content-length"]))
        if request.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        self.answers.wait(60)
        if self.status == 200:
            self.raw.append(data)
            self.paths.append(request.path)
            self.headers.append(dict(request.headers))
            if request.path == "/v1/traces":
                self._traces(data)
            elif request.path == "/v1/metrics":
                self._metrics(data)
        request.send_response(self.status)
        request.send_header("content-length", "0")
        request.end_headers()

    def _traces(self, data: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(data).resource_spans:
            resource = attributes(group.resource.attributes)
            for scoped in group.scope_spans:
                self.spans += [_span(wire, scoped.scope.name, resource) for wire in scoped.spans]

    def _metrics(self, data: bytes) -> None:
        for group in ExportMetricsServiceRequest.FromString(data).resource_metrics:
            for metric in (metric for scoped in group.scope_metrics for metric in scoped.metrics):
                kind = metric.WhichOneof("data")
                for wire in getattr(metric, kind).data_points:
                    labels = attributes(wire.attributes)
                    if kind == "histogram":
                        point = Point(metric.name, metric.unit, labels, wire.sum, wire.count, list(wire.explicit_bounds))
                    else:
                        point = Point(metric.name, metric.unit, labels, plain_number(wire))
                    self.points[metric.name, repr(sorted(labels.items()))] = point

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        (found,) = self.named(name)
        return found

    def metric(self, name: str) -> list[Point]:
        return [point for point in self.points.values() if point.metric == name]

    def stop(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def plain_number(wire: Any) -> float:
    return float(getattr(wire, wire.WhichOneof("value")))


def running() -> Iterator[Collector]:
    """For a fixture."""
    collector = Collector()
    try:
        yield collector
    finally:
        collector.stop()
