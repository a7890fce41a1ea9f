"""The scheduler as a state machine: `apply(stimulus, now)` changes the state and returns what is to be done.

Deterministic: time, chance and ids come from outside, so the service, the tests and a replay run the same code.
"""

from collections.abc import Callable, Iterable

from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.admission import Admission, displaced
from services.scheduler.domain.affordable import unaffordable
from services.scheduler.domain.board import Board
from services.scheduler.domain.budgets import Budgets
from services.scheduler.domain.checks import check, no_model
from services.scheduler.domain.decision import Decision
from services.scheduler.domain.demand import Demand, DemandLimits
from services.scheduler.domain.dispatch import Dispatcher
from services.scheduler.domain.fairness import FairShare
from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.grammar import Chance, Policy
from services.scheduler.domain.index import BlockIndex
from services.scheduler.domain.instructions import (
    Cancel,
    Instruction,
    Place,
    RecordPassed,
    RecordUsage,
    Refuse,
    Released,
)
from services.scheduler.domain.kv import Delta, SnapshotPart
from services.scheduler.domain.lease import Ending, Lease, LeasePhase
from services.scheduler.domain.leases import LeaseBook
from services.scheduler.domain.lengths import OutputLengths
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.placement import Outlook, Placement, View
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.queue import Lane, Queue, Waiting, attempt_of
from services.scheduler.domain.request import Request
from services.scheduler.domain.spend import Spend
from services.scheduler.domain.stimuli import (
    BudgetsLoaded,
    BudgetStimulus,
    ClockRead,
    DrainWanted,
    LeaseReleased,
    PlaceAbandoned,
    PlaceRequested,
    SpendRead,
    Stimulus,
    Tick,
    WorkerGone,
    WorkerHello,
    WorkerReported,
)
from services.scheduler.domain.workforce import Workforce


class Brain:
    """Fleet, index, leases and queue, and the one decision over them."""

    def __init__(
        self,
        *,
        limits: Limits,
        policy: Policy,
        prices: PriceList,
        chance: Chance,
        new_lease_id: Callable[[], str],
        known_models: Iterable[str] = (),
        started_at: float,
        demand_limits: DemandLimits | None = None,
    ) -> None:
        self.limits = limits
        self.prices = prices
        self.fleet = Fleet(known_models=known_models)
        self.index = BlockIndex(
            max_blocks_per_worker=limits.max_blocks_per_worker,
            max_pending_deltas=limits.max_pending_deltas,
            max_predicted_blocks=limits.max_predicted_blocks,
        )
        self.budgets = Budgets(max_settled=limits.max_settled_leases, max_ended=limits.max_ended_leases)
        self.book = LeaseBook(limits, self.budgets)
        self.fair = FairShare(limits)
        self.queue = Queue(limits, self.fair)
        lengths = OutputLengths(max_entries=limits.max_tenants)
        self.board = Board(self.fleet, self.index, self.book, limits)
        view = View(
            fleet=self.fleet,
            index=self.index,
            book=self.book,
            lengths=lengths,
            board=self.board,
            budgets=self.budgets,
        )
        self._placement = Placement(view, policy=policy, prices=prices, limits=limits, chance=chance)
        self._admission = Admission(self.queue, self.fair, limits)
        self._dispatcher = Dispatcher(
            view,
            queue=self.queue,
            fair=self.fair,
            admission=self._admission,
            placement=self._placement,
            prices=prices,
            limits=limits,
            new_lease_id=new_lease_id,
        )
        self.demand = Demand(self.fleet, self.book, self.queue, limits=demand_limits or DemandLimits())
        self.spend = Spend(now=started_at)
        self._workforce = Workforce(view, self._placement, self.fair, self.spend, limits)
        self._started_at = started_at

    def apply(self, stimulus: Stimulus, now: float) -> list[Instruction]:
        """Take note of what happened, and say what is to be done."""
        self.budgets.advance(now)
        found = self._react(stimulus, now)
        if len(self.queue) and self._may_place(stimulus) and self._settled(now):
            found.extend(self._dispatcher.dispatch(now))
        found.extend(RecordPassed(status, now) for status in self.budgets.passed())
        self.demand.note(stimulus, found, now=now)
        return found

    def _may_place(self, stimulus: Stimulus) -> bool:
        """Whether something that waits may be placeable after a stimulus and was not before: most free no place."""
        match stimulus:
            case WorkerReported(report=Delta() | SnapshotPart()):
                return False
            case PlaceRequested(call, request):
                lane = self.queue.lane_of(request)
                return lane is not None and lane.head().call == call
            case _:
                return True

    def _settled(self, now: float) -> bool:
        """Whether the fleet has had time to connect since the start. Requests placed before would miss their caches."""
        return now >= self._started_at + self.limits.settle_s

    def _react(self, stimulus: Stimulus, now: float) -> list[Instruction]:
        match stimulus:
            case PlaceRequested(call, request):
                return self._requested(call, request, now)
            case PlaceAbandoned(call):
                return self._abandoned(call)
            case LeaseReleased():
                return self._released(stimulus, now)
            case Tick():
                return self._tick(now)
            case ClockRead() | BudgetsLoaded() | SpendRead():
                return self._learn_budgets(stimulus)
            case _:
                return self._worker_spoke(stimulus, now)

    def _worker_spoke(
        self, stimulus: WorkerHello | WorkerGone | WorkerReported | DrainWanted, now: float
    ) -> list[Instruction]:
        match stimulus:
            case WorkerHello():
                return self._workforce.hello(stimulus, now)
            case WorkerGone(connection, worker_id):
                return self._workforce.gone(worker_id, connection=connection, now=now)
            case WorkerReported(connection, worker_id, report):
                worker = self.fleet.speaking(worker_id, connection=connection)
                return [] if worker is None else self._workforce.reported(worker, report, now)
            case DrainWanted(worker_id):
                return self._workforce.drain(worker_id)

    def _learn_budgets(self, stimulus: BudgetStimulus) -> list[Instruction]:
        match stimulus:
            case ClockRead(offset):
                self.budgets.set_clock(offset)
            case BudgetsLoaded(budgets):
                self.budgets.load(budgets)
            case SpendRead(tenant_id, day, sums, rows):
                self.budgets.answer(tenant_id, day, sums, rows)
        return []

    # Requests

    def _requested(self, call: int, request: Request, now: float) -> list[Instruction]:
        try:
            check(request, self.limits)
            self._check_models(request, now)
            again = self._repeated(call, request)
            return again if again is not None else self._placed_or_queued(call, request, now)
        except DownstackError as error:
            return [Refuse(call, error)]

    def _placed_or_queued(self, call: int, request: Request, now: float) -> list[Instruction]:
        found = self._supersede(request)
        entry = self.queue.entry(call, request, now=now)
        try:
            outcome = self._dispatcher.place_at_once(entry, now) if self._settled(now) else None
            found += self._wait(entry, now) if outcome is None else [outcome]
        except DownstackError as error:
            found.append(Refuse(call, error))
        return found

    def _wait(self, entry: Waiting, now: float) -> list[Instruction]:
        """Let a request wait, unless that is no use. Cheap reasons come first: most are refused under overload."""
        request = entry.request
        refusal = unaffordable(request, budgets=self.budgets, prices=self.prices)
        if refusal is not None:
            raise refusal
        self._admission.check_again(request, now)
        self._admission.check_wait(request, Outlook(), now)
        outlook = self._placement.outlook(request, now=now)
        entry.wait_ms = self._admission.check_wait(request, outlook, now)
        entry.work_tokens, entry.fleet_ms = outlook.work_tokens, outlook.fleet_ms
        entry.resident_tokens, entry.looked_at = outlook.cached_tokens, now
        victim = self._admission.make_room(request)
        if victim is not None:
            self.queue.remove(victim)
        self.queue.push(entry, now=now)
        return [] if victim is None else [Refuse(victim.call, displaced(victim))]

    def _check_models(self, request: Request, now: float) -> None:
        # Until the workers have had time to connect, any model may be one of theirs.
        settled = now >= self._started_at + self.limits.no_worker_wait_s
        if settled and not any(self.fleet.knows(offer.model) for offer in request.offers):
            raise no_model(request)

    def _repeated(self, call: int, request: Request) -> list[Instruction] | None:
        """A repeated call for an attempt that was placed gets the same lease, as long as nobody used it."""
        lease = self.book.of_attempt(*attempt_of(request))
        if lease is None:
            return None
        grant = lease.grant
        worker = self.fleet.get(grant.worker_id)
        decision = self._dispatcher.decision(grant.lease_id)
        idle = lease.phase is LeasePhase.GRANTED and not lease.released and lease.orphaned_at is None
        if not idle or worker is None or decision is None:
            message = f"attempt {request.attempt} of this request was placed already"
            raise DownstackError(Reason.CONFLICTING_UPDATE, message)
        return [Place(call, grant, worker.endpoint, decision, again=True)]

    def _supersede(self, request: Request) -> list[Instruction]:
        """A repeated call for an attempt that still waits takes the earlier call's place."""
        earlier = self.queue.of_attempt(attempt_of(request))
        if earlier is None:
            return []
        self.queue.remove(earlier)
        message = "a newer call asks for the same attempt"
        return [Refuse(earlier.call, DownstackError(Reason.CONFLICTING_UPDATE, message))]

    def _abandoned(self, call: int) -> list[Instruction]:
        entry = self.queue.of_call(call)
        if entry is not None:
            self.queue.remove(entry)
        return []

    # Leases

    def _released(self, stimulus: LeaseReleased, now: float) -> list[Instruction]:
        lease = self.book.get(stimulus.lease_id)
        if lease is None or (stimulus.tenant_id and lease.grant.tenant_id != stimulus.tenant_id):
            return [Released(released=False)]
        done = self.book.release(stimulus.lease_id) is not None
        found: list[Instruction] = [Released(done)]
        self.fleet.touch()
        if stimulus.unused and lease.phase is LeasePhase.GRANTED:
            found.append(self._close(lease, Ending.UNUSED, now))
        elif done and stimulus.aborted and lease.phase is not LeasePhase.GRANTED:
            found.extend(self._cancel(lease))
        return found

    def _close(self, lease: Lease, ending: Ending, now: float) -> RecordUsage:
        self.book.end(lease)
        self.fleet.touch()
        self.fair.settle(lease, used=ending is not Ending.UNUSED)
        return RecordUsage(lease, ending, now)

    def _cancel(self, lease: Lease) -> list[Instruction]:
        worker = self.fleet.get(lease.grant.worker_id)
        if worker is None or worker.connection is None or worker.epoch != lease.grant.worker_epoch:
            return []
        return [Cancel(worker.connection, (lease.grant.lease_id,))]

    # Time

    def _tick(self, now: float) -> list[Instruction]:
        self.index.expire(now)
        found = self._workforce.tick(now)
        for due in self.book.due(now):
            found.append(self._close(due.lease, due.ending, now))
            found.extend(self._cancel(due.lease))
        for entry in self.queue.expired(now):
            self.queue.remove(entry)
            message = f"the request waited {now - entry.arrived_at:.1f} s for a worker"
            found.append(Refuse(entry.call, DownstackError(Reason.DEADLINE_IN_QUEUE, message)))
        for lane in self.queue.lanes():
            found.extend(self._give_up(lane, now))
        return found

    def _give_up(self, lane: Lane, now: float) -> list[Instruction]:
        """Refuse the requests that have had no worker to wait for, for too long."""
        if self.fleet.has_ready(lane.models, excluded=lane.excluded):
            lane.unserved_since = None
            return []
        since = lane.unserved_since = now if lane.unserved_since is None else lane.unserved_since
        wait_s = self.limits.no_worker_wait_s
        hopeless = [entry for entry in lane.waiting() if now - max(since, entry.arrived_at) >= wait_s]
        for entry in hopeless:
            self.queue.remove(entry)
        return [Refuse(entry.call, self._no_worker(entry.request)) for entry in hopeless]

    def _no_worker(self, request: Request) -> DownstackError:
        if not any(self.fleet.knows(offer.model) for offer in request.offers):
            return no_model(request)
        names = ", ".join(sorted({offer.model for offer in request.offers}))
        message = f"no worker of {names} is ready"
        return DownstackError(Reason.NO_HEALTHY_WORKER, message, retry_after_s=self.limits.no_worker_wait_s)

    def decisions_of(self, *, tenant_id: str, request_id: str) -> list[Decision]:
        """The recent decisions of a request, first to last."""
        return self._dispatcher.decisions_of(tenant_id=tenant_id, request_id=request_id)

    def validate(self) -> None:
        """Check every invariant of the whole state; for tests."""
        self.fleet.validate()
        self.index.validate()
        self.book.validate()
        self.budgets.validate()
        self.queue.validate()
        self.fair.validate({lease.grant.lease_id for lease in self.book})
        self.board.validate()
