"""The router's own metrics. Labels are bounded: methods, served models, codes, reasons."""

from prometheus_client import Counter, Gauge, Histogram

from services.kit.metrics import DURATION_BUCKETS
from services.router.ports import RequestEnd

_TPOT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)

STREAMS = Gauge("downstack_router_streams_in_flight", "Requests between receipt and their last frame.")
REQUESTS = Counter("downstack_router_requests", "Requests by how they ended.", ("method", "model", "code", "reason"))
TTFT = Histogram(
    "downstack_router_ttft_seconds", "From receipt to the first token.", ("model",), buckets=DURATION_BUCKETS
)
TPOT = Histogram(
    "downstack_router_tpot_seconds", "Mean time per token after the first.", ("model",), buckets=_TPOT_BUCKETS
)
TOKENS = Counter("downstack_router_tokens", "Tokens of ended requests by class.", ("model", "class"))
RETRIES = Counter("downstack_router_attempts_repeated", "Attempts beyond the first.", ("model",))
DEGRADED = Counter("downstack_router_retrieval_degraded", "Requests that went on without retrieval.", ("model",))
ACCOUNTING_FAILED = Counter(
    "downstack_router_accounting_failed", "Records and releases that could not be delivered.", ("step",)
)


class PrometheusMeter:
    """Counts into the process's registry."""

    def stream_opened(self) -> None:
        STREAMS.inc()

    def stream_closed(self) -> None:
        STREAMS.dec()

    def request_ended(self, end: RequestEnd) -> None:
        REQUESTS.labels(end.method, end.model, end.code, end.reason).inc()
        if end.ttft_s is not None:
            TTFT.labels(end.model).observe(end.ttft_s)
        if end.tpot_s is not None:
            TPOT.labels(end.model).observe(end.tpot_s)
        if end.attempts > 1:
            RETRIES.labels(end.model).inc(end.attempts - 1)
        if end.retrieval_degraded:
            DEGRADED.labels(end.model).inc()
        self._count_tokens(end)

    def accounting_failed(self, step: str) -> None:
        ACCOUNTING_FAILED.labels(step).inc()

    def _count_tokens(self, end: RequestEnd) -> None:
        counts = {
            "input": end.usage.input_total,
            "cached": end.usage.input_cached,
            "output": end.usage.output_total,
        }
        for name, count in counts.items():
            if count:
                TOKENS.labels(end.model, name).inc(count)
