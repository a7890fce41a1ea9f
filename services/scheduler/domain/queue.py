"""Waiting requests, and whose turn it is.

The order: class, lifted by one for every `ageing_s` in which it was not served; of equal contests the one unserved for
longest; in it the tenant that has been charged the fewest tokens; of its requests the one with the earliest deadline,
to the second, then the one with the least work. Among the first of those whose tenants are within a quantum of the
least, the one with the longest resident prefix goes first (DLPM, Cao et al., 2025).
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from services.scheduler.domain.fairness import ContestKey, FairShare, contest_of
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.request import Priority, Request

# Deadlines as far apart as this are different.
_DEADLINE_GRAIN_S = 1.0


@dataclass(slots=True, eq=False)
class Waiting:
    """One request that waits. `call` is the caller that waits for it."""

    call: int
    request: Request
    arrived_at: float
    gives_up_at: float
    number: int
    work_tokens: float = 0.0
    """What its tenant will be charged, as predicted."""
    fleet_ms: float = 0.0
    """The time that the whole fleet takes for such a request when it is busy."""
    wait_ms: float | None = None
    """The wait that was predicted, before it was corrected by experience."""
    passed_over: int = 0
    resident_tokens: float = 0.0
    looked_at: float = 0.0
    gone: bool = False

    @property
    def turn(self) -> tuple[float, float, int]:
        """Its place among its tenant's requests."""
        return (self.gives_up_at // _DEADLINE_GRAIN_S, self.work_tokens, self.number)


@dataclass(slots=True, eq=False)
class Lane:
    """Requests of one contest and tenant that exclude the same workers, in the order of their turns."""

    contest: ContestKey
    tenant_id: str
    excluded: frozenset[str]
    entries: list[tuple[tuple[float, float, int], Waiting]] = field(default_factory=list)
    unserved_since: float | None = None

    @property
    def models(self) -> tuple[str, ...]:
        return self.contest.models

    def head(self) -> Waiting:
        return self.entries[0][1]

    def waiting(self) -> Iterator[Waiting]:
        return (entry for _, entry in self.entries)


@dataclass(slots=True)
class Backlog:
    """What one tenant has waiting in a contest."""

    requests: int = 0
    fleet_ms: float = 0.0


@dataclass(slots=True, eq=False)
class Contest:
    """The lanes of one class and set of models. `since`: when it last got a placement, or came to wait for one."""

    key: ContestKey
    since: float
    lanes: dict[tuple[str, frozenset[str]], Lane] = field(default_factory=dict)
    tenants: dict[str, Backlog] = field(default_factory=dict)
    fleet_ms: float = 0.0

    def rank(self, now: float, *, ageing_s: float) -> tuple[float, float]:
        return (self.key.priority - (now - self.since) // ageing_s, self.since)


Attempt = tuple[str, str, int]


def attempt_of(request: Request) -> Attempt:
    """What a request's attempt is known by."""
    return (request.tenant_id, request.request_id, request.attempt)


class Queue:
    """Bounded by its caller, who asks admission before it pushes."""

    def __init__(self, limits: Limits, fair: FairShare) -> None:
        self._limits = limits
        self._fair = fair
        self._contests: dict[ContestKey, Contest] = {}
        self._by_call: dict[int, Waiting] = {}
        self._by_attempt: dict[Attempt, Waiting] = {}
        self._by_tenant: dict[str, int] = {}
        self._by_class = dict.fromkeys(Priority, 0)
        self._deadlines: list[tuple[float, int, Waiting]] = []
        self._numbered = 0

    def __len__(self) -> int:
        return len(self._by_call)

    def of_attempt(self, attempt: Attempt) -> Waiting | None:
        return self._by_attempt.get(attempt)

    def of_call(self, call: int) -> Waiting | None:
        return self._by_call.get(call)

    def count_of(self, tenant_id: str) -> int:
        """Waiting requests of a tenant."""
        return self._by_tenant.get(tenant_id, 0)

    def counts(self) -> dict[Priority, int]:
        """Waiting requests by class."""
        return dict(self._by_class)

    def entries(self) -> list[Waiting]:
        """All that waits, in no order."""
        return list(self._by_call.values())

    def contests(self) -> list[Contest]:
        return list(self._contests.values())

    def lanes(self) -> list[Lane]:
        return [lane for contest in self._contests.values() for lane in contest.lanes.values()]

    def lane_of(self, request: Request) -> Lane | None:
        """The lane that a request would join, if something waits in it."""
        contest = self._contests.get(contest_of(request))
        return None if contest is None else contest.lanes.get((request.tenant_id, request.excluded_workers))

    def entry(self, call: int, request: Request, *, now: float) -> Waiting:
        """A request that may come to wait."""
        self._numbered += 1
        gives_up_at = min(request.deadline_at, now + self._limits.max_wait_s)
        return Waiting(call, request, arrived_at=now, gives_up_at=gives_up_at, number=self._numbered)

    def push(self, entry: Waiting, *, now: float) -> None:
        """Let a request wait."""
        request = entry.request
        key, tenant_id = contest_of(request), request.tenant_id
        self._by_call[entry.call] = entry
        self._by_attempt[attempt_of(request)] = entry
        self._by_tenant[tenant_id] = self._by_tenant.get(tenant_id, 0) + 1
        self._by_class[request.priority] += 1
        heapq.heappush(self._deadlines, (entry.gives_up_at, entry.number, entry))
        contest = self._contests.setdefault(key, Contest(key, since=now))
        if tenant_id not in contest.tenants:
            self._fair.arrive(key, tenant_id)
        backlog = contest.tenants.setdefault(tenant_id, Backlog())
        backlog.requests += 1
        backlog.fleet_ms += entry.fleet_ms
        contest.fleet_ms += entry.fleet_ms
        lane_key = (tenant_id, request.excluded_workers)
        lane = contest.lanes.setdefault(lane_key, Lane(key, *lane_key))
        insort(lane.entries, (entry.turn, entry))

    def remove(self, entry: Waiting) -> None:
        """Take a request out, wherever it stands."""
        request = entry.request
        key, tenant_id = contest_of(request), request.tenant_id
        entry.gone = True
        del self._by_call[entry.call]
        del self._by_attempt[attempt_of(request)]
        self._by_tenant[tenant_id] -= 1
        if not self._by_tenant[tenant_id]:
            del self._by_tenant[tenant_id]
        self._by_class[request.priority] -= 1
        self._leave(self._contests[key], entry)
        if not self._contests[key].lanes:
            del self._contests[key]
        if len(self._deadlines) > 2 * len(self._by_call) + 64:
            self._deadlines = sorted((each.gives_up_at, each.number, each) for each in self._by_call.values())

    def _leave(self, contest: Contest, entry: Waiting) -> None:
        tenant_id, excluded = entry.request.tenant_id, entry.request.excluded_workers
        lane = contest.lanes[tenant_id, excluded]
        del lane.entries[bisect_left(lane.entries, entry.turn, key=_turn)]
        if not lane.entries:
            del contest.lanes[tenant_id, excluded]
        backlog = contest.tenants[tenant_id]
        backlog.requests -= 1
        backlog.fleet_ms -= entry.fleet_ms
        contest.fleet_ms -= entry.fleet_ms
        if not backlog.requests:
            del contest.tenants[tenant_id]

    def served(self, entry: Waiting, *, now: float) -> None:
        """Note that a request's contest got a placement."""
        contest = self._contests.get(contest_of(entry.request))
        if contest is not None:
            contest.since = now

    def next(
        self, *, now: float, usable: Callable[[Lane], bool], resident: Callable[[Waiting], float]
    ) -> Waiting | None:
        """The request whose turn it is among the lanes that are usable.

        `resident` tells the tokens of a request's prompt that a worker holds.
        """
        ageing_s = self._limits.ageing_s
        for contest in sorted(self._contests.values(), key=lambda each: each.rank(now, ageing_s=ageing_s)):
            lanes = [lane for lane in contest.lanes.values() if usable(lane)]
            if lanes:
                return self._pick(contest.key, lanes, resident)
        return None

    def _pick(self, key: ContestKey, lanes: list[Lane], resident: Callable[[Waiting], float]) -> Waiting:
        window = self._limits.locality_window
        standings = [(self._fair.standing(key, lane.tenant_id), *lane.entries[0][0], lane) for lane in lanes]
        nearest = heapq.nsmallest(window, standings) if len(standings) > 1 else standings
        first = nearest[0][-1].head()
        most = nearest[0][0] + self._limits.fair_quantum_tokens
        near = [lane for standing, *_, lane in nearest if standing <= most]
        if first.passed_over >= window or (len(near) == 1 and len(near[0].entries) == 1):
            return first
        # Every lane's first request, then every lane's second, and so on.
        found = sorted(
            (depth, number, entry)
            for number, lane in enumerate(near)
            for depth, (_, entry) in enumerate(islice(lane.entries, window))
        )[:window]
        *_, chosen = max(found, key=lambda each: resident(each[-1]))
        if chosen is not first:
            first.passed_over += 1
        return chosen

    def expired(self, now: float) -> list[Waiting]:
        """The requests that have waited as long as they may."""
        late = []
        while self._deadlines and (self._deadlines[0][-1].gone or self._deadlines[0][0] <= now):
            entry = heapq.heappop(self._deadlines)[-1]
            if not entry.gone:
                late.append(entry)
        return late

    def validate(self) -> None:
        """Check the invariants: every table agrees, and the bounds hold."""
        entries = [entry for lane in self.lanes() for entry in lane.waiting()]
        assert {entry.call for entry in entries} == set(self._by_call)
        assert len(entries) == len(self._by_call) == len(self._by_attempt) == sum(self._by_tenant.values())
        assert sum(self._by_class.values()) == len(entries)
        for contest in self._contests.values():
            assert contest.lanes
            assert all(lane.entries == sorted(lane.entries) and lane.entries for lane in contest.lanes.values())
            assert sum(each.requests for each in contest.tenants.values()) == sum(
                len(lane.entries) for lane in contest.lanes.values()
            )
            assert all(entry.passed_over <= self._limits.locality_window for entry in entries)
        assert {entry.call for _, _, entry in self._deadlines if not entry.gone} == set(self._by_call)
        assert len(self._by_call) <= self._limits.max_queued
        assert self._by_class[Priority.STANDARD] <= self._limits.max_queued_standard
        assert self._by_class[Priority.BATCH] <= self._limits.max_queued_batch
        assert all(count <= self._limits.max_queued_per_tenant for count in self._by_tenant.values())


def _turn(item: tuple[tuple[float, float, int], Waiting]) -> tuple[float, float, int]:
    return item[0]
