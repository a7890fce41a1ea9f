"""Traces: W3C trace context in and out, and one server span for each call, through the OpenTelemetry API alone.

Where the process has set up no OpenTelemetry SDK, the spans cost nothing and the caller's trace is still passed on.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()
# Of the SDK that the process sets up, be it later.
_TRACER = trace.get_tracer("downstack")
# Codes that are the server's fault; the others are the caller's, and no error of this span (OpenTelemetry, RPC).
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


@contextmanager
def server_span(method: str, metadata: Mapping[str, str]) -> Iterator[trace.Span]:
    """The span of a call to `method` ("pkg.Service/Method"), a child of the caller's span.

    An exception is not noted in it: its message may quote a prompt.
    """
    parent = _PROPAGATOR.extract(metadata)
    service, _, name = method.rpartition("/")
    attributes = {"rpc.system.name": "grpc", "rpc.service": service, "rpc.method": method}
    span = _TRACER.start_span(f"{service}/{name}", parent, trace.SpanKind.SERVER, attributes)
    # By hand: `start_as_current_span` does the same with four context managers inside of each other.
    token = context.attach(trace.set_span_in_context(span, parent))
    try:
        yield span
    finally:
        context.detach(token)
        span.end()


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
