"""A toy fleet in virtual time around a scheduler: engines that step as the cost model says, and open-loop arrivals."""

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from services.scheduler.domain.instructions import Place, Refuse
from services.scheduler.domain.lease import Grant, LeasePhase, LeaseState, Usage
from services.scheduler.domain.request import Priority
from services.scheduler.domain.stimuli import PlaceRequested, Stimulus, Tick, WorkerReported
from tests.unit.scheduler.making import RATES, Desk, offer

SEATS = 4
# From the start of a lease to when the other schedulers know of it: a worker's pause between reports, and the ways.
HEARD_AFTER_S = 0.022


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request of a workload."""

    at: float
    tenant: str
    prompt: int = 64
    output: int = 16
    priority: Priority = Priority.STANDARD
    patience_s: float = 1e6


@dataclass(slots=True, kw_only=True)
class Fate:
    """What became of a request."""

    arrival: Arrival
    first_at: float | None = None
    finished_at: float | None = None
    refused: str = ""

    @property
    def ttft_s(self) -> float:
        assert self.first_at is not None
        return self.first_at - self.arrival.at


@dataclass(slots=True)
class _Engine:
    """One prompt a step, beside one token for each request that decodes."""

    waiting: list[Place] = field(default_factory=list)
    decoding: dict[str, int] = field(default_factory=dict)
    stepping: tuple[str, ...] | None = None
    """The leases whose prompts the step that runs computes; None between steps."""

    def begin(self) -> float:
        """Begin a step, if there is work, and say how many seconds it takes."""
        took, prefilled = 0.0, ()
        if self.waiting and len(self.decoding) < SEATS:
            grant = self.waiting.pop(0).grant
            prefilled = (grant.lease_id,)
            took += RATES.prefill_base_ms + RATES.prefill_ms_per_token * grant.prompt_tokens
        if self.decoding:
            took += RATES.decode_base_ms + RATES.decode_ms_per_request * (len(self.decoding) - 1)
        if took:
            self.stepping = prefilled
        return took / 1000

    def end(self, outputs: Mapping[str, int]) -> tuple[Sequence[str], list[str]]:
        """The leases that got their first token in the step, and those that ended."""
        first = self.stepping or ()
        self.stepping = None
        self.decoding = {lease_id: made + 1 for lease_id, made in self.decoding.items()}
        self.decoding.update(dict.fromkeys(first, 1))
        ended = [lease_id for lease_id, made in self.decoding.items() if made >= outputs[lease_id]]
        for lease_id in ended:
            del self.decoding[lease_id]
        return first, ended


class Toy:
    """Runs arrivals to their ends; of several schedulers each gets the next one."""

    def __init__(self, *, workers: int = 1, schedulers: int = 1, **limits: object) -> None:
        names = [f"{number}_" for number in range(schedulers)]
        self.desks = [Desk(name=name, **limits) for name in names]  # type: ignore[arg-type]
        self.desk = self.desks[0]
        self._engines = {f"w{number}": _Engine() for number in range(workers)}
        for desk, worker_id in itertools.product(self.desks, self._engines):
            desk.hello(worker_id, max_num_seqs=SEATS, kv_events=False, kv_blocks=4096)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._fates: dict[int, Fate] = {}
        self._leases: dict[str, Fate] = {}
        self._outputs: dict[str, int] = {}
        self._start = self.desk.now

    def run(self, arrivals: Sequence[Arrival], *, until: float) -> list[Fate]:
        """Each request's fate at virtual second `until`."""
        for arrival in arrivals:
            self._at(arrival.at, lambda arrival=arrival: self._ask(arrival))  # type: ignore[misc]
        for tick in range(int(until * 10)):
            self._at(tick / 10, self._tick)
        while self._events and self._events[0][0] <= until:
            at, _, action = heapq.heappop(self._events)
            for desk in self.desks:
                desk.now = self._start + at
            action()
        return list(self._fates.values())

    @property
    def _clock(self) -> float:
        return self.desk.now - self._start

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), action))

    def _tick(self) -> None:
        for desk in self.desks:
            self._apply(desk, Tick())

    def _ask(self, arrival: Arrival) -> None:
        call = len(self._fates) + 1
        desk = self.desks[call % len(self.desks)]
        self._fates[call] = Fate(arrival=arrival)
        request = desk.request(
            f"r{call}",
            tenant_id=arrival.tenant,
            priority=arrival.priority,
            offers=(offer(arrival.prompt, block_size=0, block_hashes=(), output_tokens=arrival.output),),
            deadline_at=desk.now + arrival.patience_s,
        )
        self._apply(desk, PlaceRequested(call, request))

    def _tell(self, worker_id: str, states: Sequence[LeaseState]) -> None:
        for desk in self.desks:
            self._apply(desk, WorkerReported(desk.connections[worker_id], worker_id, tuple(states)))

    def _started(self, grant: Grant) -> None:
        if self._leases[grant.lease_id].finished_at is None:
            self._tell(grant.worker_id, [LeaseState(lease_id=grant.lease_id, phase=LeasePhase.STARTED, grant=grant)])

    def _apply(self, desk: Desk, stimulus: Stimulus) -> None:
        for each in desk.brain.apply(stimulus, desk.now):
            match each:
                case Place(call, grant):
                    self._leases[grant.lease_id] = self._fates[call]
                    self._outputs[grant.lease_id] = self._fates[call].arrival.output
                    self._engines[grant.worker_id].waiting.append(each)
                    if len(self.desks) > 1:
                        self._at(self._clock + HEARD_AFTER_S, lambda grant=grant: self._started(grant))  # type: ignore[misc]
                    self._wake(grant.worker_id)
                case Refuse(call, error):
                    self._fates[call].refused = error.reason.value
                case _:
                    pass

    def _wake(self, worker_id: str) -> None:
        engine = self._engines[worker_id]
        if engine.stepping is not None or not (took := engine.begin()):
            return

        def done() -> None:
            first, ended = engine.end(self._outputs)
            for lease_id in first:
                self._leases[lease_id].first_at = self._clock
            for lease_id in ended:
                self._leases[lease_id].finished_at = self._clock
            states = [LeaseState(lease_id=lease_id, phase=LeasePhase.DECODING) for lease_id in first]
            states += [
                LeaseState(
                    lease_id=lease_id, phase=LeasePhase.FINISHED, usage=Usage(output_total=self._outputs[lease_id])
                )
                for lease_id in ended
            ]
            if states:
                self._tell(worker_id, states)
            self._wake(worker_id)

        self._at(self._clock + took, done)
