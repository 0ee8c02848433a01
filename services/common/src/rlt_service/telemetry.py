"""OpenTelemetry: FastAPI's own, switched on by `OTEL_EXPORTER_OTLP_ENDPOINT` where `rlt-service[otel]` is installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import MutableMapping
from typing import Any

from fastapi.telemetry import TelemetryConfig

from rlt_service.auth import PUBLIC_PATHS

__all__ = ["config"]


def config() -> TelemetryConfig:
    """What to hand to `FastAPI(telemetry=…)`. Without endpoint or exporter nothing is recorded or sent."""
    wanted = bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    return TelemetryConfig(auto_configure=wanted and _installed(), exclude=_exclude)


def _installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _exclude(scope: MutableMapping[str, Any]) -> bool:
    """Health checks are noise; a span holds the whole path, which in `/k/{path_key}/…` is a key."""
    path: str = scope["path"]
    return path in PUBLIC_PATHS or "/k/" in path
