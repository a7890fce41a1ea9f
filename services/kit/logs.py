"""JSON logs, one line each on standard error, with the ids of the request and never with what a caller wrote."""

import logging
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from services.kit import context, telemetry

# Fields that would carry what a caller wrote, or a secret. Their length is logged instead.
_NEVER = frozenset(
    {
        "answer",
        "api_key",
        "assertion",
        "authorization",
        "completion",
        "content",
        "delta",
        "document",
        "messages",
        "passage",
        "password",
        "pepper",
        "prompt",
        "query",
        "secret",
        "text",
        "ticket",
        "token",
    }
)
_MAX_FRAMES = 30


def configure(service: str, *, level: str) -> None:
    """Sends structlog and the standard library's logging through the same processors, for the life of the process."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _Stamp(service),
        _Exceptions(messages=level == "debug"),
        _withhold,
    ]
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    final: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(),
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(number, logging.INFO))


class _Stamp:
    """Adds what every line has: the service and the ids of the call that is being served."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        event["service"] = self._service
        ids = {
            "request_id": context.request_id.get(),
            "tenant": context.tenant.get(),
            "trace_id": telemetry.current_trace_id(),
        }
        event.update({name: value for name, value in ids.items() if value and name not in event})
        return event


class _Exceptions:
    """Writes an exception as its type and frames. Its message may quote what a caller wrote: only at level debug."""

    def __init__(self, *, messages: bool) -> None:
        self._messages = messages

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        given = event.pop("exc_info", None)
        error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
        if isinstance(error, BaseException):
            event["exception"] = _described(error, messages=self._messages)
        return event


def _described(error: BaseException, *, messages: bool) -> list[dict[str, Any]]:
    """The exception and its causes, the last one first."""
    chain: list[dict[str, Any]] = []
    current: BaseException | None = error
    while current is not None and len(chain) < 5:
        entry: dict[str, Any] = {"type": type(current).__qualname__, "frames": _frames(current.__traceback__)}
        if messages or isinstance(current, OSError):
            entry["message"] = str(current)[:500]
        chain.append(entry)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def _frames(traceback: TracebackType | None) -> Sequence[str]:
    frames: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{code.co_filename}:{traceback.tb_lineno} {code.co_qualname}")
        traceback = traceback.tb_next
    return frames[-_MAX_FRAMES:]


def _withhold(_logger: object, _method: str, event: EventDict) -> EventDict:
    for name in event.keys() & _NEVER:
        value = event[name]
        event[name] = f"[{len(value)} long]" if hasattr(value, "__len__") else "[withheld]"
    return event
