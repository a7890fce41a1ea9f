"""The event loop of a replay: arrivals, workers and schedulers under one virtual clock."""

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from downstack.replay.faults import Crash
from downstack.replay.measures import Outcome
from downstack.replay.station import MODEL, Progress, Station
from downstack.replay.trace import BLOCK_TOKENS
from downstack.replay.workload import Job
from services.scheduler.domain.brain import Brain
from services.scheduler.domain.instructions import AskResync, Cancel, Instruction, Place, Refuse
from services.scheduler.domain.request import Offer, Priority, Request
from services.scheduler.domain.stimuli import PlaceRequested, Stimulus, Tick, WorkerGone, WorkerReported
from services.worker.profiles import Profile

_TELL_EVERY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times of a replay beside those of the engines, in seconds.

    Attributes:
        hop_s: One message between two services.
        report_s: The least time between two batches of a worker's reports.
        beat_s: The longest time between two of them.
        tick_s: Between two looks of a scheduler at what is due.
        deadline_s: From a request's arrival to its deadline.
    """

    hop_s: float = 0.001
    report_s: float = 0.02
    beat_s: float = 1.0
    tick_s: float = 0.1
    deadline_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What every request asks for, beside its prompt."""

    priority: Priority = Priority.STANDARD
    max_output_tokens: int = 2048
    max_attempts: int = 3


class Simulation:
    """Runs jobs on a fleet. Request i goes to scheduler i modulo their number; each worker reports to all of them."""

    def __init__(
        self,
        jobs: Sequence[Job],
        brains: Sequence[Brain],
        profiles: Sequence[Profile],
        *,
        crashes: Sequence[Crash] = (),
        timing: Timing | None = None,
        demand: Demand | None = None,
    ) -> None:
        """One worker for each profile."""
        self._jobs = jobs
        self._brains = brains
        self._profiles = profiles
        self._timing = timing or Timing()
        self._demand = demand or Demand()
        self._clock = -self._timing.beat_s  # the fleet is there before the first request
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stations: dict[str, Station] = {}
        self._connections: dict[int, Station] = {}
        self._wakes: dict[str, float] = {}
        self._telling: set[str] = set()
        self._calls: dict[int, int] = {}
        self._leases: dict[str, int] = {}
        self._open = len(jobs)
        self.outcomes = [Outcome(job) for job in jobs]
        self.decisions = 0
        self.deciding_s = 0.0
        for crash in crashes:
            self._at(crash.at, lambda crash=crash: self._crash(crash))  # type: ignore[misc]

    def run(self, *, progress: Callable[[int], None] | None = None) -> None:
        """Until every request has got its answer or a refusal. `progress` is told how many have."""
        for number in range(len(self._profiles)):
            self._start(number, start=0)
        for job in self._jobs:
            self._at(job.at, lambda job=job: self._ask(job, attempt=1))  # type: ignore[misc]
        self._tick()
        told = 0
        while self._open and self._events:
            self._clock, _, action = heapq.heappop(self._events)
            action()
            settled = len(self._jobs) - self._open
            if progress is not None and (settled - told >= _TELL_EVERY or not self._open):
                told = settled
                progress(settled)

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), action))

    # Schedulers

    def _apply(self, which: int, stimulus: Stimulus) -> None:
        began = time.perf_counter()
        instructions = self._brains[which].apply(stimulus, self._clock)
        self.deciding_s += time.perf_counter() - began
        for instruction in instructions:
            self._carry_out(which, instruction)

    def _carry_out(self, which: int, instruction: Instruction) -> None:
        match instruction:
            case Place():
                self._placed(instruction)
            case Refuse(call, error):
                self._settle(self._calls.pop(call), refused=error.reason.value)
            case AskResync(connection):
                self._at(self._clock + self._timing.hop_s, lambda: self._resync(which, connection))
            case Cancel(connection, lease_ids):
                self._cancel(connection, lease_ids)
            case _:
                pass  # records and acknowledgements have nobody to reach here

    def _tick(self) -> None:
        for which in range(len(self._brains)):
            self._apply(which, Tick())
        self._at(self._clock + self._timing.tick_s, self._tick)

    # Requests

    def _ask(self, job: Job, *, attempt: int, excluded: frozenset[str] = frozenset()) -> None:
        call = next(self._numbers)
        self._calls[call] = job.number
        offer = Offer(model=MODEL, prompt_tokens=job.prompt_tokens, block_size=BLOCK_TOKENS, block_hashes=job.hashes)
        request = Request(
            request_id=f"req-{job.number}",
            attempt=attempt,
            tenant_id=job.tenant,
            offers=(offer,),
            max_output_tokens=max(self._demand.max_output_tokens, job.output_tokens),
            deadline_at=job.at + self._timing.deadline_s,
            priority=self._demand.priority,
            excluded_workers=excluded,
            conversation_id=job.conversation,
            labels={},
        )
        self.decisions += 1
        self._apply(job.number % len(self._brains), PlaceRequested(call, request))

    def _placed(self, placed: Place) -> None:
        number = self._calls.pop(placed.call)
        grant, outcome = placed.grant, self.outcomes[number]
        outcome.granted_at = self._clock
        outcome.predicted_cached_tokens = grant.predicted_cached_tokens
        outcome.worker_id = grant.worker_id
        self._leases[grant.lease_id] = number

        def begin() -> None:
            station = self._stations.get(grant.worker_id)
            if station is None or station.epoch != grant.worker_epoch:
                self._lost(grant.lease_id, attempt=grant.attempt)
                return
            job = self._jobs[number]
            output_tokens = min(job.output_tokens, grant.max_output_tokens)
            station.begin(grant, job.hashes, output_tokens=output_tokens, now=self._clock)
            self._rouse(station)

        self._at(self._clock + self._timing.hop_s, begin)

    def _settle(self, number: int, *, refused: str = "", failed: bool = False) -> None:
        outcome = self.outcomes[number]
        outcome.refused, outcome.failed = refused, failed
        if refused:
            outcome.refused_at = self._clock
        self._open -= 1

    def _note(self, progress: Progress) -> None:
        number = self._leases[progress.lease_id]
        outcome = self.outcomes[number]
        if progress.first:
            outcome.first_at = progress.at
            outcome.cached_tokens = progress.cached_tokens
        if progress.finished:
            del self._leases[progress.lease_id]
            outcome.finished_at = progress.at
            outcome.output_tokens = progress.output_tokens
            self._settle(number)

    def _lost(self, lease_id: str, *, attempt: int) -> None:
        """As the router does: another worker, unless a token was delivered already."""
        number = self._leases.pop(lease_id)
        outcome = self.outcomes[number]
        if outcome.first_at is not None or attempt >= self._demand.max_attempts:
            self._fail(number)
            return
        self._ask(self._jobs[number], attempt=attempt + 1, excluded=frozenset({outcome.worker_id}))

    def _fail(self, number: int) -> None:
        self.outcomes[number].first_at = None  # half an answer is none
        self._settle(number, failed=True)

    # Workers

    def _start(self, number: int, *, start: int) -> None:
        profile = self._profiles[number]
        station = Station(f"w{number:04d}", start=start, profile=profile, connection=next(self._numbers))
        self._stations[station.worker_id] = self._connections[station.connection] = station
        for which in range(len(self._brains)):
            self._apply(which, station.hello())
        self._beat(station)

    def _crash(self, crash: Crash) -> None:
        station = self._stations.pop(f"w{crash.worker:04d}", None)
        if station is None:
            return
        self._wakes.pop(station.worker_id, None)
        del self._connections[station.connection]
        for which in range(len(self._brains)):
            self._apply(which, WorkerGone(station.connection, station.worker_id))
        for grant in station.leases():
            self._lost(grant.lease_id, attempt=grant.attempt)
        if crash.down_s is not None:
            start = int(station.epoch.rpartition("/")[2]) + 1
            self._at(self._clock + crash.down_s, lambda: self._start(crash.worker, start=start))

    def _rouse(self, station: Station) -> None:
        """Wake the engine when its step ends, and let the worker report."""
        self._tell_soon(station)
        due = station.engine.next_at
        if due is None or self._wakes.get(station.worker_id) == due:
            return
        self._wakes[station.worker_id] = due

        def wake() -> None:
            if self._wakes.get(station.worker_id) != due or self._stations.get(station.worker_id) is not station:
                return
            del self._wakes[station.worker_id]
            for progress in station.advance(self._clock):
                self._note(progress)
            self._rouse(station)

        self._at(due, wake)

    def _tell_soon(self, station: Station) -> None:
        if station.epoch in self._telling or not station.has_news:
            return
        self._telling.add(station.epoch)

        def tell() -> None:
            self._telling.discard(station.epoch)
            self._tell(station)

        self._at(self._clock + self._timing.report_s, tell)

    def _beat(self, station: Station) -> None:
        if self._stations.get(station.worker_id) is station:
            self._tell(station)
            self._at(self._clock + self._timing.beat_s, lambda: self._beat(station))

    def _tell(self, station: Station) -> None:
        if self._stations.get(station.worker_id) is not station:
            return
        for report in station.reports():
            for which in range(len(self._brains)):
                self._apply(which, WorkerReported(station.connection, station.worker_id, report))

    def _resync(self, which: int, connection: int) -> None:
        station = self._connections.get(connection)
        if station is not None:
            for part in station.snapshot():
                self._apply(which, WorkerReported(connection, station.worker_id, part))

    def _cancel(self, connection: int, lease_ids: Sequence[str]) -> None:
        station = self._connections.get(connection)
        if station is None:
            return
        for lease_id in station.cancel(lease_ids, now=self._clock):
            self._fail(self._leases.pop(lease_id))
        self._rouse(station)


def sized(profile: Profile, *, kv_blocks: int = 0) -> Profile:
    """A profile whose KV blocks are as large as a trace's; `kv_blocks` of them, or as many tokens as it had."""
    shape = profile.shape
    blocks = kv_blocks or shape.kv_blocks * shape.block_size // BLOCK_TOKENS
    return replace(profile, shape=replace(shape, block_size=BLOCK_TOKENS, kv_blocks=blocks))
