"""The scheduler's Prometheus metrics."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.kit.clock import Clock
from services.scheduler.domain.brain import Brain
from services.scheduler.domain.decision import Decision
from services.scheduler.domain.request import Priority
from services.scheduler.domain.worker import WorkerPhase

_WAITS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)

PLACED = Counter("downstack_scheduler_placed", "Placements.", ("model",))
REFUSED = Counter("downstack_scheduler_refused", "Requests that were not placed.", ("reason",))
CLOSED = Counter("downstack_scheduler_leases_closed", "Leases that the scheduler closed itself.", ("ending",))
LATE = Counter(
    "downstack_scheduler_ledger_late_records",
    "Usage records that came after their lease's row and said otherwise.",
    ("source",),
)
RECONCILED = Counter("downstack_scheduler_leases_reconciled", "Leases without a row that were closed as unused.")
UNMATCHED = Gauge("downstack_scheduler_ledger_unmatched_leases", "Leases that should have a row and have none.")
QUEUE_WAIT = Histogram("downstack_scheduler_queue_seconds", "Wait for a placement.", buckets=_WAITS_S)
PROMPT = Counter("downstack_scheduler_prompt_tokens", "Prompt tokens placed.", ("model",))
CACHED = Counter("downstack_scheduler_predicted_cached_tokens", "Those that the index said are cached.", ("model",))
QUEUED = Gauge("downstack_scheduler_queued", "Requests that wait for a placement.", ("priority",))
WORKERS = Gauge("downstack_scheduler_workers", "Workers.", ("phase",))
LEASES = Gauge("downstack_scheduler_leases", "Live leases.")
SETTLED = Gauge("downstack_scheduler_settled_leases", "Leases that count against budgets and wait for their rows.")
BLOCKS = Gauge("downstack_scheduler_index_blocks", "Different blocks in the index.")
PREDICTED = Gauge("downstack_scheduler_index_predicted_blocks", "Predicted blocks in the index.")
MEMORY = Gauge("downstack_scheduler_index_bytes", "Estimated memory of the index.")
OVERFLOWS = Gauge("downstack_scheduler_index_overflows", "Times that a worker reported more blocks than the bound.")


def _queued(brain: Brain, priority: Priority) -> int:
    return brain.queue.counts()[priority]


def _workers(brain: Brain, phase: WorkerPhase) -> int:
    return sum(worker.phase is phase for worker in list(brain.fleet))


class _ReplicasWanted(Collector):
    """The autoscaling signal. Its models come and go, so it is made anew for every reading."""

    def __init__(self) -> None:
        self._wanted: Callable[[], Mapping[str, float]] = dict

    def watch(self, brain: Brain, *, clock: Clock) -> None:
        """Show the demand on this brain."""
        self._wanted = lambda: brain.demand.replicas_wanted(now=clock.monotonic())

    def collect(self) -> Iterator[Metric]:
        name = "downstack_scheduler_replicas_wanted"
        wanted = GaugeMetricFamily(name, "Replicas that the traffic wants; for autoscalers.", labels=("model",))
        for model, replicas in self._wanted().items():
            wanted.add_metric((model,), replicas)
        yield wanted


REPLICAS_WANTED = _ReplicasWanted()
REGISTRY.register(REPLICAS_WANTED)


class PrometheusMeter:
    """Counts what happens; the gauges look at the brain when they are read."""

    def watch(self, brain: Brain, *, clock: Clock) -> None:
        """Let the gauges show this brain."""
        REPLICAS_WANTED.watch(brain, clock=clock)
        for priority in Priority:
            QUEUED.labels(priority.name.lower()).set_function(partial(_queued, brain, priority))
        for phase in WorkerPhase:
            WORKERS.labels(phase.value).set_function(partial(_workers, brain, phase))
        LEASES.set_function(lambda: len(brain.book))
        SETTLED.set_function(lambda: brain.budgets.waiting)
        BLOCKS.set_function(lambda: brain.index.blocks)
        PREDICTED.set_function(lambda: brain.index.predicted_blocks)
        MEMORY.set_function(brain.index.memory_bytes)
        OVERFLOWS.set_function(lambda: brain.index.overflows)

    def placed(self, decision: Decision) -> None:
        PLACED.labels(decision.model).inc()
        PROMPT.labels(decision.model).inc(decision.prompt_tokens)
        CACHED.labels(decision.model).inc(decision.predicted_cached_tokens)
        QUEUE_WAIT.observe(decision.queue_ms / 1000)

    def refused(self, reason: str) -> None:
        REFUSED.labels(reason).inc()

    def closed(self, ending: str) -> None:
        CLOSED.labels(ending).inc()

    def late(self, source: str) -> None:
        LATE.labels(source).inc()

    def reconciled(self) -> None:
        RECONCILED.inc()

    def unmatched(self, leases: int) -> None:
        UNMATCHED.set(leases)


class SilentMeter:
    """Counts nothing, for tests."""

    def placed(self, decision: Decision) -> None: ...

    def refused(self, reason: str) -> None: ...

    def closed(self, ending: str) -> None: ...

    def late(self, source: str) -> None: ...

    def reconciled(self) -> None: ...

    def unmatched(self, leases: int) -> None: ...
