"""Waiting requests, in the order in which they should be placed.

The order: priority class, lifted by one class for every `ageing_s` of waiting; then the tenant that has been charged
the fewest tokens; then the earliest deadline; then arrival. Requests that differ only in deadline and arrival share a
lane, so that choosing the next looks at the lanes and not at every request.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from services.scheduler.domain.fairness import FairShare
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.request import Priority, Request

# Weight of the newest interval in the mean time between placements.
_PACE_WEIGHT = 0.1
_RETRY_MIN_S, _RETRY_MAX_S = 0.1, 30.0


@dataclass(slots=True, eq=False)
class Waiting:
    """One request that waits. `call` is the caller that waits for it."""

    call: int
    request: Request
    arrived_at: float
    gives_up_at: float
    number: int = 0
    gone: bool = False

    def __lt__(self, other: "Waiting") -> bool:
        return (self.gives_up_at, self.number) < (other.gives_up_at, other.number)


@dataclass(slots=True, eq=False)
class Lane:
    """Requests of one class, tenant, set of models and set of excluded workers, earliest deadline first."""

    priority: Priority
    tenant_id: str
    models: tuple[str, ...]
    excluded: frozenset[str]
    heap: list[Waiting] = field(default_factory=list)
    unserved_since: float | None = None

    def head(self) -> Waiting | None:
        while self.heap and self.heap[0].gone:
            heapq.heappop(self.heap)
        return self.heap[0] if self.heap else None

    def waiting(self) -> Iterator[Waiting]:
        return (entry for entry in self.heap if not entry.gone)


_LaneKey = tuple[Priority, str, tuple[str, ...], frozenset[str]]
Attempt = tuple[str, str, int]


def attempt_of(request: Request) -> Attempt:
    """What a request's attempt is known by."""
    return (request.tenant_id, request.request_id, request.attempt)


class Queue:
    """Bounded by its caller through `full` and `full_for`."""

    def __init__(self, limits: Limits, fair: FairShare) -> None:
        self._limits = limits
        self._fair = fair
        self._lanes: dict[_LaneKey, Lane] = {}
        self._by_call: dict[int, Waiting] = {}
        self._by_attempt: dict[Attempt, Waiting] = {}
        self._by_tenant: dict[str, int] = {}
        self._deadlines: list[Waiting] = []
        self._numbered = 0
        self._pace_s: float | None = None
        self._placed_at: float | None = None

    def __len__(self) -> int:
        return len(self._by_call)

    def of_attempt(self, attempt: Attempt) -> Waiting | None:
        return self._by_attempt.get(attempt)

    def of_call(self, call: int) -> Waiting | None:
        return self._by_call.get(call)

    def full(self) -> bool:
        return len(self._by_call) >= self._limits.max_queued

    def full_for(self, tenant_id: str) -> bool:
        return self._by_tenant.get(tenant_id, 0) >= self._limits.max_queued_per_tenant

    def tenant_waits(self, tenant_id: str) -> bool:
        return tenant_id in self._by_tenant

    def lanes(self) -> list[Lane]:
        return list(self._lanes.values())

    def counts(self) -> dict[Priority, int]:
        """Waiting requests by class."""
        counts = dict.fromkeys(Priority, 0)
        for entry in list(self._by_call.values()):  # read by the metrics' thread
            counts[entry.request.priority] += 1
        return counts

    def push(self, call: int, request: Request, *, now: float) -> Waiting:
        """Add a request."""
        self._numbered += 1
        gives_up_at = min(request.deadline_at, now + self._limits.max_wait_s)
        entry = Waiting(call, request, arrived_at=now, gives_up_at=gives_up_at, number=self._numbered)
        self._by_call[call] = entry
        self._by_attempt[attempt_of(request)] = entry
        self._by_tenant[request.tenant_id] = self._by_tenant.get(request.tenant_id, 0) + 1
        heapq.heappush(self._deadlines, entry)
        key = _key(request)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(*key)
        heapq.heappush(lane.heap, entry)
        return entry

    def remove(self, entry: Waiting) -> None:
        """Take a request out, wherever it stands."""
        request = entry.request
        entry.gone = True
        del self._by_call[entry.call]
        del self._by_attempt[attempt_of(request)]
        self._by_tenant[request.tenant_id] -= 1
        if not self._by_tenant[request.tenant_id]:
            del self._by_tenant[request.tenant_id]
        key = _key(request)
        if self._lanes[key].head() is None:
            del self._lanes[key]
        self._compact()

    def _compact(self) -> None:
        """Keep entries that are gone from outnumbering those that wait."""
        if len(self._deadlines) <= 2 * len(self._by_call) + 64:
            return
        self._deadlines = sorted(self._by_call.values())
        for lane in self._lanes.values():
            lane.heap = sorted(lane.waiting())

    def next_lane(self, *, now: float, usable: Callable[[Lane], bool]) -> Lane | None:
        """The lane whose head should be placed next, among those that are usable."""
        best: Lane | None = None
        best_rank: tuple[float, float, float, int] | None = None
        for lane in self._lanes.values():
            rank = self._rank(lane, now)
            if (best_rank is None or rank < best_rank) and usable(lane):
                best, best_rank = lane, rank
        return best

    def _rank(self, lane: Lane, now: float) -> tuple[float, float, float, int]:
        head = lane.head()
        assert head is not None
        lifted = lane.priority - (now - head.arrived_at) // self._limits.ageing_s
        standing = self._fair.standing(lane.tenant_id)
        return (max(float(Priority.INTERACTIVE), lifted), standing, head.gives_up_at, head.number)

    def expired(self, now: float) -> list[Waiting]:
        """The requests that have waited as long as they may."""
        late = []
        while self._deadlines and (self._deadlines[0].gone or self._deadlines[0].gives_up_at <= now):
            entry = heapq.heappop(self._deadlines)
            if not entry.gone:
                late.append(entry)
        return late

    def placed(self, *, now: float) -> None:
        """Note that a request was placed, for `retry_after_s`."""
        if self._placed_at is not None:
            interval = now - self._placed_at
            self._pace_s = interval if self._pace_s is None else self._pace_s + _PACE_WEIGHT * (interval - self._pace_s)
        self._placed_at = now

    def retry_after_s(self) -> float:
        """When a refused caller should ask again: about when what waits now has been placed."""
        pace_s = 1.0 if self._pace_s is None else self._pace_s
        return min(_RETRY_MAX_S, max(_RETRY_MIN_S, pace_s * len(self._by_call)))

    def validate(self) -> None:
        """Check the invariants: every table agrees, and the bounds hold."""
        entries = [entry for lane in self._lanes.values() for entry in lane.waiting()]
        assert {entry.call for entry in entries} == set(self._by_call)
        assert len(entries) == len(self._by_call) == len(self._by_attempt) == sum(self._by_tenant.values())
        assert all(lane.head() is not None for lane in self._lanes.values())
        assert set(self._by_call.values()) <= set(self._deadlines)
        assert len(self._by_call) <= self._limits.max_queued
        assert all(count <= self._limits.max_queued_per_tenant for count in self._by_tenant.values())


def _key(request: Request) -> _LaneKey:
    models = tuple(sorted({offer.model for offer in request.offers}))
    return (request.priority, request.tenant_id, models, request.excluded_workers)
