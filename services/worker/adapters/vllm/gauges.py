"""Where vLLM's engine stands, as its statistics and its requests have told."""

import asyncio
from typing import Any

from services.worker.adapters.vllm.steps import StepTimes
from services.worker.domain.rates import RateEstimate, Rates


class Gauges:
    """The last state and the totals since the start.

    Attributes:
        step_tokens: The most tokens in one step.
        entered: Requests that were given to the engine.
        inside: Those of them that have not ended.
        context_tokens: The tokens that the requests hold which have their first token, as the process itself counts
            them.
    """

    def __init__(self, declared: Rates, *, step_tokens: int) -> None:
        self.step_tokens = step_tokens
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0
        self.steps = 0
        self.generated = 0
        self.queries = 0
        self.hits = 0
        self.entered = 0
        self.inside = 0
        self.context_tokens = 0
        self.rates = RateEstimate(declared)
        self.changed = asyncio.Event()
        self._times = StepTimes(self.rates)

    def saw_step(self, scheduler: Any, iteration: Any) -> None:
        """Takes vLLM's SchedulerStats and IterationStats of a step in, either of which may be None."""
        if iteration is not None:
            self.generated += iteration.num_generation_tokens
        if scheduler is None:
            return
        if scheduler.iteration_details is not None:
            # What this step has made is not counted yet: its outputs are read after it.
            self._times.saw(scheduler.iteration_details, iteration, context_tokens=self.context_tokens)
        self.steps += 1
        self.running = scheduler.num_running_reqs
        self.waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
        self.kv_usage = scheduler.kv_cache_usage
        self.queries += scheduler.prefix_cache_stats.queries
        self.hits += scheduler.prefix_cache_stats.hits
        self.changed.set()
