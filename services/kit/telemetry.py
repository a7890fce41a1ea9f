"""Traces: W3C trace context in and out, and one server span for each call, through the OpenTelemetry API alone.

Where the process has set up no OpenTelemetry SDK, the spans cost nothing and the caller's trace is still passed on.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()
# Codes that are the server's fault; the others are the caller's, and no error of this span (OpenTelemetry, RPC).
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


@contextmanager
def server_span(method: str, metadata: Mapping[str, str]) -> Iterator[trace.Span]:
    """The span of a call to `method` ("pkg.Service/Method"), a child of the caller's span."""
    parent = _PROPAGATOR.extract(metadata)
    service, _, name = method.rpartition("/")
    attributes = {"rpc.system.name": "grpc", "rpc.service": service, "rpc.method": method}
    tracer = trace.get_tracer("downstack")
    with tracer.start_as_current_span(
        f"{service}/{name}",
        context=parent,
        kind=trace.SpanKind.SERVER,
        attributes=attributes,
        record_exception=False,  # a message of an exception may quote a prompt
        set_status_on_exception=False,
    ) as span:
        yield span


def end_span(span: trace.Span, *, code: str, reason: str) -> None:
    """Notes how the call of a span ended."""
    span.set_attribute("rpc.response.status_code", code)
    if reason:
        span.set_attribute("error.type", reason)
    if code in _FAULTS:
        span.set_status(trace.StatusCode.ERROR)


def trace_headers() -> dict[str, str]:
    """`traceparent` and `tracestate` of the current span, for an outgoing call or an event. Empty without a trace."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


def current_trace_id() -> str:
    """The current trace in 32 hex digits; empty without one."""
    span = trace.get_current_span().get_span_context()
    return trace.format_trace_id(span.trace_id) if span.is_valid else ""
