"""Logs: one JSON object a line, with the ids of the request and the trace and the caller, and no secret in it.

Code logs with the standard library: `log = logging.getLogger(__name__)`, `log.info("loaded", extra={"seconds":
3.1})`; the extras become members. Nothing is set up at import: a process calls `configure` once (`serve` does).
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog
from asgi_correlation_id import correlation_id
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from rlt_service.hidden import without
from rlt_service.keys import TOKEN_PATTERN

__all__ = ["bind", "bound", "configure", "redact"]

bind = structlog.contextvars.bind_contextvars
"""Members of every line of this request or task from now on: `bind(build_id=7)`."""

bound = structlog.contextvars.bound_contextvars
"""The same within a block."""

_SECRETS = re.compile(
    rf"{TOKEN_PATTERN}|(?<=[Bb]earer )[^\s'\",]+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|\bhf_[A-Za-z0-9]{{20,}}"
)
"""Tokens, bearer values, user:password in addresses (Redis' have no user), and tokens of the Hugging Face hub."""

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

_QUIET = ("httpx", "httpcore", "asyncio")
"""Libraries that tell every request at info."""


def redact(value: Any) -> Any:
    """The same with each secret replaced by `[redacted]`, inside dicts and lists too; what is no JSON becomes text."""
    if isinstance(value, str):
        return _SECRETS.sub("[redacted]", without(value))
    if isinstance(value, MutableMapping):
        return {redact(key): redact(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [redact(child) for child in value]
    return value if value is None or isinstance(value, int | float) else redact(str(value))  # an exception, a path


def configure(
    level: str = "info",
    format: Literal["json", "console"] = "json",
    *,
    service: str | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send every logger of the process to `stream` (stderr), each line with `service`. A second call replaces this."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_formatter(format, service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    structlog.configure(
        processors=[*_enrich(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # tests configure more than once
    )


def _formatter(format: Literal["json", "console"], service: str | None) -> logging.Formatter:
    def finish(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.pop("color_message", None)  # uvicorn's second copy of its message
        named = event if service is None else {"service": service, **event}
        return {key: redact(value) for key, value in named.items()}

    render: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, finish]
    if format == "json":
        render += [structlog.processors.JSONRenderer(default=str, ensure_ascii=False)]
    else:
        render += [_printable, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_enrich(), processors=render)


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What somebody else made up can neither begin a line of its own nor command the terminal."""
    return {key: _tame(value, key) if isinstance(value, str) else value for key, value in event.items()}


def _tame(text: str, key: str) -> str:
    """A traceback has lines."""
    tame = text.translate(_CONTROL)
    return tame if key == "exception" else tame.replace("\n", "\\n")


def _enrich() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
        _add_trace,
        structlog.processors.format_exc_info,
    ]


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    request_id = correlation_id.get()
    if request_id is not None:
        event["request_id"] = request_id
    return event


def _add_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    around = trace.get_current_span().get_span_context()
    if around.is_valid:
        event["trace_id"] = trace.format_trace_id(around.trace_id)
        event["span_id"] = trace.format_span_id(around.span_id)
    return event
