"""What leaves the process as a span: nothing secret, and nothing that belongs to no request.

Needs `rlt-service[otel]`; `telemetry` imports it where that is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import Status

from rlt_service.logs import redact

__all__ = ["Guarded", "exporter"]


def exporter() -> SpanExporter:
    """To the collector that the OTEL_EXPORTER_OTLP_… variables name."""
    return Guarded(OTLPSpanExporter())


class Guarded(SpanExporter):
    """Hands spans on with each secret replaced, as in log lines.

    Left out are calls that belong to no request and no task: looks at whether another server is well.
    """

    def __init__(self, to: SpanExporter) -> None:
        self._to = to

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        told = [_redacted(span) for span in spans if span.parent is not None or span.kind is not SpanKind.CLIENT]
        return self._to.export(told) if told else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._to.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._to.force_flush(timeout_millis)


def _redacted(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=redact(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_without_secrets(span.attributes),
        events=[Event(each.name, _without_secrets(each.attributes), each.timestamp) for each in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code, redact(span.status.description)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _without_secrets(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: redact(value) for name, value in (attributes or {}).items()}
