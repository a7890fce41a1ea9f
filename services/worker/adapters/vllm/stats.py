"""The place where vLLM's statistics come in."""

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from services.worker.adapters.vllm.gauges import Gauges


class StatLogger(StatLoggerBase):  # type: ignore[misc]  # vLLM's class has no types
    """Passes vLLM's statistics to the gauges."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,  # noqa: ARG002  the signature is vLLM's
        engine_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Called by vLLM on the event loop, for every batch of outputs."""
        self._gauges.saw_step(scheduler_stats, iteration_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
