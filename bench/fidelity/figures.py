"""The comparison of many workloads, and its figures."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

from bench.fidelity.observed import ASPECTS, Driven, Record, differences, run
from bench.fidelity.simulated import SimulatedEngine
from bench.fidelity.workload import Workload
from services.worker.domain.mirror import Removed, Stored
from services.worker.domain.sim.core import Shape


@dataclass
class Covered:
    """What happened in the reference's runs: an agreement says nothing of what never happened."""

    requests: int = 0
    requests_started: int = 0
    requests_with_hits: int = 0
    aborted: int = 0
    steps: int = 0
    tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    workloads_with_preemptions: int = 0
    blocks_stored: int = 0
    blocks_removed: int = 0
    resets: int = 0

    def add(self, workload: Workload, record: Record) -> None:
        """Takes one run in."""
        tokens = [token for step in record.steps for token in step.tokens]
        self.requests += len(workload.arrivals)
        self.requests_started += len(record.cached)
        self.requests_with_hits += sum(cached > 0 for cached in record.cached.values())
        self.aborted += len(workload.arrivals) - sum(ending is not None for _, _, ending in tokens)
        self.steps += len(record.steps)
        self.tokens += len(tokens)
        self.prefix_queries += record.queries
        self.prefix_hits += record.hits
        self.preemptions += len(record.preempted)
        self.workloads_with_preemptions += bool(record.preempted)
        self.blocks_stored += sum(len(event.hashes) for event in record.events if isinstance(event, Stored))
        self.blocks_removed += sum(len(event.hashes) for event in record.events if isinstance(event, Removed))
        self.resets += sum(record.resets)


@dataclass
class Figures:
    """The outcome.

    Attributes:
        agree: Workloads in which everything is exactly the same.
        differ: The workloads in which an aspect is not the same, by aspect.
        kinds: (agreeing, all) workloads by kind.
        explained: For each seed that does not agree: what differs first, by aspect.
        same_cached: Requests that both engines started and that have the same cached tokens.
        covered: What happened in the reference's runs.
    """

    seeds: int = 0
    agree: int = 0
    differ: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(ASPECTS, 0)))
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)
    explained: dict[int, dict[str, str]] = field(default_factory=dict)
    same_cached: int = 0
    covered: Covered = field(default_factory=Covered)

    def as_json(self) -> dict[str, object]:
        """The figures as one object."""
        return {
            "seeds": self.seeds,
            "agree": self.agree,
            "share": round(self.agree / max(1, self.seeds), 4),
            "agree_by_kind": {kind: f"{agree}/{seeds}" for kind, (agree, seeds) in self.kinds.items()},
            "agree_by_aspect": {aspect: self.seeds - self.differ[aspect] for aspect in ASPECTS},
            "differing_seeds": sorted(self.explained),
            "requests_with_same_cached_tokens": self.same_cached,
            "covered": asdict(self.covered),
        }


def compare(workloads: Iterable[Workload], reference: Callable[[Shape], Driven], *, depth: int = 1) -> Figures:
    """Runs each workload on the reference and on the simulated engine, and compares them.

    `depth` is how many steps the simulated engine has in flight; it must be what the reference has.
    """
    figures = Figures()
    for workload in workloads:
        simulated = SimulatedEngine(workload.shape, depth=depth)
        theirs, ours = run(workload, reference(workload.shape)), run(workload, simulated)
        found = differences(ours, theirs)
        agree, seeds = figures.kinds.get(workload.kind, (0, 0))
        figures.kinds[workload.kind] = (agree + (not found), seeds + 1)
        figures.seeds += 1
        figures.agree += not found
        figures.differ.update(found.keys())
        figures.same_cached += sum(theirs.cached.get(key) == cached for key, cached in ours.cached.items())
        figures.covered.add(workload, theirs)
        if found:
            figures.explained[workload.seed] = found
    return figures
