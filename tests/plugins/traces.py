"""A collector of OTLP over HTTP, as programs under test find it: what they send is decoded and kept."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class SeenSpan:
    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any] = field(hash=False)
    links: tuple[str, ...]
    """Ids of the traces that are linked."""
    text: str
    """All of it as it came, for searches."""


@dataclass
class Collector:
    url: str
    spans: list[SeenSpan] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """What makes a program send its spans here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}

    def of_trace(self, trace: str) -> list[SeenSpan]:
        return [span for span in list(self.spans) if span.trace == trace]

    def wait(self, condition: Callable[[list[SeenSpan]], Any], seconds: float = 60) -> Any:
        """The first true thing that `condition` makes of the spans."""
        limit = time.monotonic() + seconds
        while not (found := condition(list(self.spans))):
            names = sorted({f"{span.service}: {span.name}" for span in list(self.spans)})
            assert time.monotonic() < limit, f"of spans there are only {names}"
            time.sleep(0.05)
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = _handler(collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                collector.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler


def _spans(request: ExportTraceServiceRequest) -> Iterator[SeenSpan]:
    for resource in request.resource_spans:
        service = _attributes(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield SeenSpan(
                    service=service,
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    attributes=_attributes(span.attributes),
                    links=tuple(link.trace_id.hex() for link in span.links),
                    text=str(span),
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
