"""The autoscaling signal: how many replicas of each model the traffic wants.

    work(lease)  = prefill + (out - 1) * step(full batch) / max_num_seqs, in device ms: what it takes of a busy worker
    arriving     = work of what was placed or turned away lately, per second
    backlog      = work of what waits now
    replicas     = ceil((arriving + backlog / drain_s) / (1000 * utilization)); 0 where nothing came and nothing waits

A fleet at its limit places no more than it can compute; the backlog and what is turned away say what is missing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.scheduler.domain.fading import FadingSum
from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.instructions import Instruction, Place, Refuse
from services.scheduler.domain.leases import LeaseBook
from services.scheduler.domain.queue import Queue
from services.scheduler.domain.stimuli import PlaceRequested, Stimulus
from services.scheduler.domain.worker import Worker

_UNKNOWN_WORK_MS = 1000.0
_NEGLIGIBLE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandLimits:
    """How demand is measured.

    Attributes:
        window_s: The time over which arrivals are averaged; older ones count less and less.
        utilization: The share of a worker that should be busy.
        drain_s: The time in which what waits should be gone.
    """

    window_s: float = 60.0
    utilization: float = 0.8
    drain_s: float = 5.0


def work_ms(worker: Worker, *, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> float:
    """The device time that a request takes of a worker whose batch is full."""
    rates, seqs, uncached = worker.rates, worker.spec.max_num_seqs, prompt_tokens - cached_tokens
    pairs = uncached * (prompt_tokens + cached_tokens) / 2
    prefill = rates.prefill_base_ms + uncached * rates.prefill_ms_per_token + pairs * rates.prefill_ms_per_pair
    share = (rates.decode_base_ms + rates.decode_ms_per_request * (seqs - 1)) / seqs
    context = (prompt_tokens + output_tokens / 2) * rates.decode_ms_per_context_token
    return prefill + (output_tokens - 1) * (share + context)


class ModelDemand:
    """The demand for one model, of fixed size."""

    def __init__(self, limits: DemandLimits, *, now: float) -> None:
        self._limits = limits
        self._work_ms = FadingSum(limits.window_s, now=now)
        self._count = FadingSum(limits.window_s, now=now)

    def mean_work_ms(self, now: float) -> float:
        """What one request takes."""
        count = self._count.left(now)
        return self._work_ms.left(now) / count if count > _NEGLIGIBLE else _UNKNOWN_WORK_MS

    def came(self, work: float, *, now: float) -> None:
        """A request came that takes so many device ms."""
        self._work_ms.add(work, now=now)
        self._count.add(1, now=now)

    def replicas(self, *, waiting: int, now: float) -> int:
        """The replicas that what came, and what waits, want."""
        if self._count.left(now) < _NEGLIGIBLE and not waiting:
            return 0
        backlog = waiting * self.mean_work_ms(now) / self._limits.drain_s
        return math.ceil((self._work_ms.per_second(now) + backlog) / (1000 * self._limits.utilization))


class Demand:
    """The demand for each model that workers serve or served."""

    def __init__(self, fleet: Fleet, book: LeaseBook, queue: Queue, *, limits: DemandLimits) -> None:
        self._fleet, self._book, self._queue = fleet, book, queue
        self._limits = limits
        self._models: dict[str, ModelDemand] = {}

    def note(self, stimulus: Stimulus, found: Sequence[Instruction], *, now: float) -> None:
        """Take note of what was placed, and of a request that was turned away as it came."""
        for each in found:
            match each:
                case Place(grant=grant, again=False):
                    worker, lease = self._fleet.get(grant.worker_id), self._book.get(grant.lease_id)
                    if worker is None or lease is None:
                        continue
                    work = work_ms(
                        worker,
                        prompt_tokens=grant.prompt_tokens,
                        cached_tokens=grant.predicted_cached_tokens,
                        output_tokens=lease.expected_output,
                    )
                    self._of(grant.model, now).came(work, now=now)
                case Refuse(call, error) if isinstance(stimulus, PlaceRequested) and call == stimulus.call:
                    model = stimulus.request.offers[0].model if stimulus.request.offers else ""
                    if error.retry_after_s is not None and self._fleet.knows(model):
                        demand = self._of(model, now)
                        demand.came(demand.mean_work_ms(now), now=now)
                case _:
                    pass

    def replicas_wanted(self, *, now: float) -> Mapping[str, int]:
        """Replicas by model."""
        waiting = self._waiting()
        known = dict(self._models)  # read by the metrics' thread
        for model in waiting:
            if model not in known and self._fleet.knows(model):
                known[model] = ModelDemand(self._limits, now=now)
        return {model: demand.replicas(waiting=waiting.get(model, 0), now=now) for model, demand in known.items()}

    def _waiting(self) -> dict[str, int]:
        """Requests that wait, by the first model that may answer them."""
        found: dict[str, int] = {}
        for lane in self._queue.lanes():
            found[lane.models[0]] = found.get(lane.models[0], 0) + sum(1 for _ in lane.waiting())
        return found

    def _of(self, model: str, now: float) -> ModelDemand:
        if model not in self._models:
            self._models[model] = ModelDemand(self._limits, now=now)
        return self._models[model]
