"""Whatever happens in whatever order: no lease is lost or granted twice, nobody starves, no place stays empty."""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.scheduler.domain.instructions import Cancel, Instruction, Place, RecordUsage, Refuse
from services.scheduler.domain.lease import Grant, LeasePhase, LeaseState, Usage
from services.scheduler.domain.request import Priority
from services.scheduler.domain.stimuli import LeaseReleased, Leaving, PlaceRequested, WorkerReported
from services.scheduler.domain.worker import Load
from tests.unit.scheduler.making import Desk, offer

WORKERS = ("w1", "w2", "w3")


class SchedulerMachine(RuleBasedStateMachine):
    """Callers, workers and faults in any order. The machine keeps its own account of every call and every lease."""

    @initialize(seed=st.integers(0, 3), policy=st.sampled_from(["worth", "round-robin", "least-loaded"]))
    def start(self, *, seed: int, policy: str) -> None:
        self.desk = Desk(
            seed=seed,
            policy=policy,
            look_ahead=1,
            prefix_ahead=1,
            max_queued=12,
            max_queued_batch=5,
            max_queued_per_tenant=8,
            lost_grace_s=10.0,
        )
        self.open_calls: set[int] = set()
        self.granted: dict[str, Grant] = {}
        self.recorded: set[str] = set()
        self.finished: set[str] = set()
        self.running: dict[str, set[str]] = {worker: set() for worker in WORKERS}
        self.count = 0

    def take(self, found: list[Instruction]) -> None:
        for each in found:
            match each:
                case Place():
                    assert each.call in self.open_calls, "a call is answered once"
                    self.open_calls.remove(each.call)
                    self._grant(each)
                case Refuse(call, _):
                    assert call in self.open_calls
                    self.open_calls.remove(call)
                case RecordUsage(lease):
                    lease_id = lease.grant.lease_id
                    assert lease_id not in self.recorded, "a lease is recorded once"
                    assert lease_id not in self.finished, "the worker recorded it"
                    self.recorded.add(lease_id)
                case Cancel(_, lease_ids):
                    for held in self.running.values():
                        held.difference_update(lease_ids)
                case _:
                    pass

    def _grant(self, placed: Place) -> None:
        grant = placed.grant
        assert grant.lease_id not in self.granted, "a lease is granted once"
        self.granted[grant.lease_id] = grant
        worker = self.desk.brain.fleet.get(grant.worker_id)
        assert worker is not None
        assert worker.epoch == grant.worker_epoch
        assert worker.ready
        ahead = self.desk.limits.look_ahead + self.desk.limits.prefix_ahead
        assert self.desk.brain.book.occupancy(grant.worker_id).requests <= worker.spec.max_num_seqs + ahead

    @rule(
        tenant=st.sampled_from(["a", "b", "c"]),
        priority=st.sampled_from(Priority),
        tokens=st.integers(1, 300),
        prefix=st.integers(0, 3),
        patience=st.sampled_from([1.0, 30.0, 200.0]),
    )
    def ask(self, *, tenant: str, priority: Priority, tokens: int, prefix: int, patience: float) -> None:
        self.count += 1
        request = self.desk.request(
            f"r{self.count}",
            tenant_id=tenant,
            priority=priority,
            offers=(offer(tokens, first_hash=1000 * prefix),),
            deadline_at=self.desk.now + patience,
        )
        call = -self.count
        self.open_calls.add(call)
        self.take(self.desk.apply(PlaceRequested(call, request)))

    @rule(choice=st.randoms(use_true_random=False))
    def abandon(self, choice: Random) -> None:
        if self.open_calls:
            call = choice.choice(sorted(self.open_calls))
            self.open_calls.remove(call)
            self.take(self.desk.abandon(call))

    @rule(worker=st.sampled_from(WORKERS), fresh=st.booleans(), forgets=st.booleans())
    def connect(self, *, worker: str, fresh: bool, forgets: bool) -> None:
        epoch = self.desk.epochs.get(worker, "e0")
        if fresh:
            epoch = f"e{int(epoch[1:]) + 1}"
            self.running[worker].clear()
        if forgets and self.running[worker]:
            self.running[worker].pop()
        states = [
            LeaseState(lease_id=lease_id, phase=LeasePhase.DECODING, grant=self.granted[lease_id])
            for lease_id in sorted(self.running[worker])
        ]
        self.take(self.desk.hello(worker, epoch=epoch, leases=states, max_num_seqs=2))

    def _connected(self, worker: str) -> bool:
        known = self.desk.brain.fleet.get(worker)
        return known is not None and known.connection == self.desk.connections.get(worker)

    @rule(worker=st.sampled_from(WORKERS))
    def disconnect(self, worker: str) -> None:
        if self._connected(worker):
            self.take(self.desk.gone(worker))

    @rule(worker=st.sampled_from(WORKERS), serving=st.booleans())
    def report_load(self, *, worker: str, serving: bool) -> None:
        if self._connected(worker):
            self.take(self.desk.say(Load(serving=serving), worker))

    @rule(worker=st.sampled_from(WORKERS))
    def leave(self, worker: str) -> None:
        if self._connected(worker):
            self.take(self.desk.say(Leaving(), worker))

    @rule(choice=st.randoms(use_true_random=False), phase=st.sampled_from([LeasePhase.STARTED, LeasePhase.DECODING]))
    def run_lease(self, choice: Random, phase: LeasePhase) -> None:
        usable = [g for g in self.granted.values() if self._usable(g)]
        if usable:
            grant = choice.choice(usable)
            self.running[grant.worker_id].add(grant.lease_id)
            self.take(self.desk.say((LeaseState(lease_id=grant.lease_id, phase=phase),), grant.worker_id))

    def _usable(self, grant: Grant) -> bool:
        current = self.desk.epochs[grant.worker_id] == grant.worker_epoch and self._connected(grant.worker_id)
        return current and grant.lease_id not in self.finished and self.desk.now <= grant.expires_at

    @rule(choice=st.randoms(use_true_random=False), output=st.integers(0, 100), twice=st.booleans())
    def finish(self, choice: Random, output: int, *, twice: bool) -> None:
        running = [(w, lease) for w in WORKERS for lease in sorted(self.running[w]) if self._connected(w)]
        if not running:
            return
        worker, lease_id = choice.choice(running)
        self.running[worker].discard(lease_id)
        if lease_id not in self.recorded:
            self.finished.add(lease_id)
        state = LeaseState(lease_id=lease_id, phase=LeasePhase.FINISHED, usage=Usage(output_total=output))
        for _ in range(1 + twice):
            self.take(self.desk.say((state,), worker))

    @rule(choice=st.randoms(use_true_random=False), unused=st.booleans(), aborted=st.booleans())
    def release(self, choice: Random, *, unused: bool, aborted: bool) -> None:
        if self.granted:
            grant = choice.choice(list(self.granted.values()))
            released = LeaseReleased(lease_id=grant.lease_id, tenant_id="", aborted=aborted, unused=unused)
            self.take(self.desk.apply(released))

    @rule(worker=st.sampled_from(WORKERS))
    def a_dead_connection_speaks(self, worker: str) -> None:
        leases = tuple(LeaseState(lease_id=lease_id, phase=LeasePhase.FINISHED) for lease_id in sorted(self.granted))
        assert self.desk.apply(WorkerReported(10**9, worker, leases)) == [] or len(self.desk.brain.queue)

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0, 11.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.take(self.desk.after(seconds))

    @invariant()
    def every_call_and_lease_is_accounted_for(self) -> None:
        brain = self.desk.brain
        assert len(brain.queue) == len(self.open_calls)
        live = {lease.grant.lease_id for lease in brain.book}
        assert live == set(self.granted) - self.recorded - self.finished

    @invariant()
    def no_place_stays_empty_while_something_waits(self) -> None:
        brain = self.desk.brain
        if len(brain.queue):
            for worker in brain.fleet:
                held = brain.book.occupancy(worker.worker_id).requests
                assert not (worker.ready and held == 0), "an idle worker takes whatever waits"

    def teardown(self) -> None:
        """In the end everything ends: nobody waits for ever, and every lease has its record."""
        if not hasattr(self, "desk"):
            return
        for worker in WORKERS:
            if self._connected(worker):
                self.take(self.desk.gone(worker))
        self.take(self.desk.after(400))
        self.take(self.desk.after(400))
        assert not self.open_calls
        assert len(self.desk.brain.book) == 0
        assert set(self.granted) == self.recorded | self.finished


SchedulerMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
test_the_scheduler_keeps_its_invariants = SchedulerMachine.TestCase
