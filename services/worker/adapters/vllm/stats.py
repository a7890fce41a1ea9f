"""What vLLM says about itself after each step, gathered in the process."""

import asyncio
import time
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from services.worker.domain.rates import RateEstimate, Rates

# A pause this long between two steps was idleness, not a slow step.
_IDLE_MS = 5_000.0


class Gauges:
    """The last state and the totals since the start."""

    def __init__(self, declared: Rates) -> None:
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0
        self.steps = 0
        self.generated = 0
        self.queries = 0
        self.hits = 0
        self.rates = RateEstimate(declared)
        self.changed = asyncio.Event()
        self._decoded_at: float | None = None

    def saw_scheduler(self, stats: Any) -> None:
        """Takes vLLM's SchedulerStats in."""
        self.steps += 1
        self.running = stats.num_running_reqs
        self.waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        self.kv_usage = stats.kv_cache_usage
        self.queries += stats.prefix_cache_stats.queries
        self.hits += stats.prefix_cache_stats.hits
        self.changed.set()

    def saw_iteration(self, stats: Any) -> None:
        """Takes vLLM's IterationStats in. Only steps that decoded and did nothing else say how long decoding takes."""
        self.generated += stats.num_generation_tokens
        batch = len(stats.inter_token_latencies_iter)
        now = time.monotonic()
        pure = batch > 0 and batch == stats.num_generation_tokens and not stats.time_to_first_tokens_iter
        if pure and self._decoded_at is not None:
            ms = (now - self._decoded_at) * 1000
            if ms < _IDLE_MS:
                self.rates.saw_decode(batch=batch, ms=ms)
        self._decoded_at = now if batch else None


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
        if scheduler_stats is not None:
            self._gauges.saw_scheduler(scheduler_stats)
        if iteration_stats is not None:
            self._gauges.saw_iteration(iteration_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
