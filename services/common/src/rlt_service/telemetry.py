"""Traces by OpenTelemetry: on where `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector and `rlt-service[otel]` is there.

    telemetry.start("rlt-jobs worker", version)            # once a process, after it forked; a no-op where off
    with telemetry.span("shard", parent=build.traceparent, shard_id=7):
        …                                                  # calls by httpx become its children, here and over there

The usual variables hold: OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_…,
OTEL_EXPORTER_OTLP_…. Traces only: metrics are Prometheus', and logs go to stderr with the trace's id.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context
from typing import TYPE_CHECKING, Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import propagate, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from rlt_client import _batching
from rlt_service.auth import PUBLIC_PATHS

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

__all__ = ["config", "span", "start", "stop", "traceparent", "unrecorded"]

log = logging.getLogger(__name__)

_TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_ALL = "OTEL_EXPORTER_OTLP_ENDPOINT"
_NEEDED = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.instrumentation.httpx")


def config() -> TelemetryConfig:
    """What to hand to `FastAPI(telemetry=…)`: a span for each request, once `start` was called.

    No spans of FastAPI's own steps, which are microseconds; no log records of exceptions, whose texts may hold more
    than a collector should be told.
    """
    return TelemetryConfig(
        tracing=True, metrics=False, logs=False, operation_spans=False, auto_configure=False, exclude=_exclude
    )


def _exclude(scope: MutableMapping[str, Any]) -> bool:
    """Health checks are noise; a span holds the whole path, which in `/k/{path_key}/…` is a key."""
    path: str = scope["path"]
    return path in PUBLIC_PATHS or "/k/" in path


def start(service: str, version: str | None = None) -> None:
    """Record and send this process's spans, if that is asked for and possible. Nothing here keeps it from starting."""
    if not _asked_for() or _on():
        return
    if not all(map(_installed, _NEEDED)):
        log.warning("%s is set, but nothing is traced: install `rlt-service[otel]`", _ALL)
        return
    try:
        _start(service, version)
    except Exception as error:  # a sampler, header or time-out that the library cannot read
        log.warning("nothing is traced: %s", error)


def _start(service: str, version: str | None) -> None:
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from rlt_service.spans import exporter

    # httpx's spans under the names that FastAPI's have; the variable is how its library is told
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    provider = TracerProvider(resource=_resource(service, version))
    provider.add_span_processor(BatchSpanProcessor(exporter()))
    trace.set_tracer_provider(provider)
    HTTPXClientInstrumentor().instrument()
    _batching.leader = _leader


def stop() -> None:
    """Send what is left; for processes that end without Python's own `atexit`."""
    flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        flush()


@contextmanager
def span(name: str, *, parent: str | None = None, **attributes: str | int | None) -> Iterator[None]:
    """One of our own spans around a block, `rlt.` before its attributes' names; an exception marks and leaves it.

    Args:
        parent: as `traceparent` gave it, perhaps to another process long ago; what is under way here if left out.
    """
    if not _on():
        yield
        return
    context = propagate.extract({"traceparent": parent}) if parent else None
    given = {f"rlt.{key}": value for key, value in attributes.items() if value is not None}
    tracer = trace.get_tracer("rlt")
    with tracer.start_as_current_span(name, context=context, kind=SpanKind.INTERNAL, attributes=given):
        yield


def unrecorded() -> AbstractContextManager[object]:
    """What the block asks for is not recorded, here and over there, though the span around it is."""
    around = trace.get_current_span().get_span_context()
    if not around.is_valid:
        return nullcontext()
    silent = SpanContext(around.trace_id, around.span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.DEFAULT))
    return trace.use_span(NonRecordingSpan(silent))


def traceparent() -> str | None:
    """Of the span around the caller, to be kept with work that is done later (W3C Trace Context); None without one."""
    carrier: dict[str, str] = {}
    if _on():
        propagate.inject(carrier)
    return carrier.get("traceparent")


def _on() -> bool:
    """Whether the process has a provider: the API's own stands for none."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def _asked_for() -> bool:
    named = os.environ.get(_TRACES) or os.environ.get(_ALL)
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return bool(named) and not disabled and os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "none"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _resource(service: str, version: str | None) -> Resource:
    """What the variables say of the process goes first."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = {"service.name": service, "service.namespace": "rlt"} | ({"service.version": version} if version else {})
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _leader(contexts: Sequence[Context]) -> Context:
    """In which of its callers' traces a shared request stands: the first that is recorded; the others link to it."""
    recorded = [each for each in contexts if each.run(trace.get_current_span).is_recording()]
    if not recorded:
        return contexts[0]
    first = recorded[0].run(trace.get_current_span).get_span_context()
    for other in recorded[1:]:
        span = other.run(trace.get_current_span)
        if span.get_span_context() != first:
            span.add_link(first, {"rlt.shares": "request"})
    return recorded[0]
