"""What is compared: everything that an engine's step shows to the outside."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.fidelity.workload import Arrival, Workload
from services.worker.domain.mirror import KvChange, Removed

_MOST_STEPS = 50_000


def one_by_one(changes: Iterable[KvChange]) -> Iterator[KvChange]:
    """The same changes, with one for each block that was removed."""
    for change in changes:
        if isinstance(change, Removed):
            yield from (Removed((block,)) for block in change.hashes)
        else:
            yield change


@dataclass(frozen=True, slots=True)
class Observed:
    """One step.

    Attributes:
        scheduled: The requests that computed something, in order, and how many tokens each.
        admitted: Those of them that were waiting, in order.
        preempted: The requests that lost their blocks, in order.
        tokens: (request, token, how it ended or None) in order.
        events: What the engine said about its blocks, event by event.
        running: The number of requests that have blocks, after the step.
        waiting: The number of those that have none.
        free_blocks: Blocks that can be taken, after the step.
    """

    scheduled: tuple[tuple[str, int], ...]
    admitted: tuple[str, ...]
    preempted: tuple[str, ...]
    tokens: tuple[tuple[str, int, str | None], ...]
    events: tuple[KvChange, ...]
    running: int
    waiting: int
    free_blocks: int


@dataclass
class Record:
    """A whole run.

    Attributes:
        cached: The cached tokens of each request, as they come with its first token.
        queries: Tokens looked up in the prefix cache.
        hits: Tokens found there.
        resets: Whether each reset of the prefix cache worked.
    """

    steps: list[Observed] = field(default_factory=list)
    cached: dict[str, int] = field(default_factory=dict)
    queries: int = 0
    hits: int = 0
    resets: list[bool] = field(default_factory=list)

    @property
    def first_scheduled(self) -> list[str]:
        """The requests in the order of their first scheduling."""
        return list(dict.fromkeys(key for step in self.steps for key in step.admitted))

    @property
    def preempted(self) -> list[str]:
        """All preemptions, in order."""
        return [key for step in self.steps for key in step.preempted]

    @property
    def events(self) -> list[KvChange]:
        """All events, in order."""
        return [event for step in self.steps for event in step.events]


class Driven(Protocol):
    """An engine that is driven step by step."""

    record: Record

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        ...

    def add(self, arrival: Arrival) -> None:
        """A request comes."""
        ...

    def abort(self, key: str) -> None:
        """A request is not wanted any more."""
        ...

    def reset(self) -> bool:
        """The prefix cache shall be forgotten."""
        ...

    def step(self) -> None:
        """Makes one step and records it."""
        ...


def run(workload: Workload, engine: Driven) -> Record:
    """Drives an engine through a workload until nothing is left to do."""
    arrivals = list(workload.arrivals)
    for step in range(_MOST_STEPS):
        while arrivals and arrivals[0].step <= step:
            engine.add(arrivals.pop(0))
        for key in workload.aborts.get(step, ()):
            engine.abort(key)
        if step in workload.resets:
            engine.record.resets.append(engine.reset())
        if engine.busy:
            engine.step()
        elif step > workload.last_step:
            return engine.record
    raise RuntimeError(f"The workload of seed {workload.seed} does not come to an end.")


_ASPECTS: tuple[tuple[str, Callable[[Record], Sequence[object]]], ...] = (
    ("cached_tokens", lambda record: [*record.cached.items(), record.queries, record.hits]),
    ("first_scheduling", lambda record: record.first_scheduled),
    ("preemptions", lambda record: record.preempted),
    ("kv_events", lambda record: record.events),
    ("steps", lambda record: [*record.steps, *record.resets]),
)
ASPECTS = tuple(name for name, _ in _ASPECTS)


def differences(one: Record, other: Record) -> dict[str, str]:
    """What is not exactly the same, by aspect, with the first place where it differs."""
    found = {}
    for name, read in _ASPECTS:
        ours, theirs = read(one), read(other)
        if ours != theirs:
            found[name] = _first_difference(ours, theirs)
    return found


def _first_difference(ours: Sequence[object], theirs: Sequence[object]) -> str:
    for index, (left, right) in enumerate(zip(ours, theirs, strict=False)):
        if left != right:
            return f"at {index}: {left} against {right}"
    return f"{len(ours)} against {len(theirs)} entries"
