"""What workers say: they come, report, drain, go, and come back. All of it is checked against who they are.

A worker is spoken for by its newest connection; what another connection says of it is ignored. A worker that returns
with another epoch was started anew: all that it ran before is void.
"""

from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.fairness import FairShare
from services.scheduler.domain.instructions import (
    Accept,
    Acknowledge,
    AskDrain,
    AskResync,
    Cancel,
    Close,
    Instruction,
    RecordWorker,
)
from services.scheduler.domain.kv import Delta, SnapshotPart
from services.scheduler.domain.lease import Lease, LeasePhase, LeaseState
from services.scheduler.domain.leases import Report
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.placement import Placement, View
from services.scheduler.domain.spend import Spend
from services.scheduler.domain.stimuli import Leaving, WorkerHello
from services.scheduler.domain.stimuli import Report as Said
from services.scheduler.domain.worker import DEFAULT_RATES, Load, Worker, WorkerPhase

MAX_ID_BYTES = 256
# Beyond any engine: a batch, a context and a cache larger than these are a mistake.
MAX_SEQS, MAX_TOKENS, MAX_BLOCKS = 65_536, 1 << 28, 1 << 28


class Workforce:
    """Applies what workers say to the fleet, the index and the leases."""

    def __init__(self, view: View, placement: Placement, fair: FairShare, spend: Spend, limits: Limits) -> None:
        self._fleet, self._index, self._book = view.fleet, view.index, view.book
        self._lengths = view.lengths
        self._placement = placement
        self._fair = fair
        self._spend = spend
        self._limits = limits

    def hello(self, hello: WorkerHello, now: float) -> list[Instruction]:
        """Register a worker, or take it back, with the leases that it runs."""
        refusal = self._refusal(hello)
        if refusal is not None:
            return [Close(hello.connection, refusal)]
        found: list[Instruction] = [Accept(hello.connection)]
        previous = self._fleet.get(hello.worker_id)
        draining = self._displace(previous, hello, now, found) if previous is not None else False
        rates = hello.spec.rates if hello.spec.rates.plausible() else DEFAULT_RATES
        worker = Worker(
            worker_id=hello.worker_id,
            epoch=hello.epoch,
            endpoint=hello.endpoint,
            spec=hello.spec,
            connection=hello.connection,
            reported_at=now,
            rates=rates,
            draining=draining,
            settles_at=now + self._limits.settle_s if hello.spec.kv_events and self._limits.settle_s else None,
        )
        self._fleet.put(worker)
        self._rejoin(worker, hello.leases, now, found)
        if hello.spec.kv_events:
            self._ask_resync(worker, now, found)
        found.append(_step(worker, now))
        return found

    def _refusal(self, hello: WorkerHello) -> DownstackError | None:
        spec = hello.spec
        texts = (hello.worker_id, hello.epoch, hello.endpoint, spec.model)
        if not all(1 <= len(text.encode()) <= MAX_ID_BYTES for text in texts):
            message = f"worker_id, epoch, endpoint and spec.model must be from 1 to {MAX_ID_BYTES} bytes"
            return DownstackError(Reason.PARAM_OUT_OF_RANGE, message)
        counts = (
            (spec.max_num_seqs, MAX_SEQS),
            (spec.context_tokens, MAX_TOKENS),
            (spec.block_size, MAX_TOKENS),
            (spec.kv_blocks, MAX_BLOCKS),
        )
        if not all(1 <= count <= most for count, most in counts) or spec.price_per_hour_nano < 0:
            message = "spec's batch, context, block size and KV blocks must be those of an engine"
            return DownstackError(Reason.PARAM_OUT_OF_RANGE, message)
        if self._fleet.get(hello.worker_id) is None and len(self._fleet) >= self._limits.max_workers:
            return DownstackError(Reason.OVERLOADED, f"the fleet has {self._limits.max_workers} workers already")
        return None

    def _displace(self, previous: Worker, hello: WorkerHello, now: float, found: list[Instruction]) -> bool:
        """Put the worker's earlier connection or start out of force. True: it was draining, and is the same start."""
        if previous.connection is not None and previous.connection != hello.connection:
            error = DownstackError(Reason.STALE_EPOCH, "a newer connection speaks for this worker")
            found.append(Close(previous.connection, error))
        if previous.epoch == hello.epoch:
            self._index.distrust(hello.worker_id)
            return previous.draining
        self._index.drop(hello.worker_id)
        for lease in self._book.of_worker(hello.worker_id):
            self._book.orphan(lease, now=now)
        return False

    def _rejoin(self, worker: Worker, states: tuple[LeaseState, ...], now: float, found: list[Instruction]) -> None:
        self._take_leases(worker, states, now, found)
        named = {state.lease_id for state in states}
        for lease in self._book.of_worker(worker.worker_id):
            if lease.grant.worker_epoch != worker.epoch or lease.grant.lease_id in named:
                continue
            if lease.phase is LeasePhase.GRANTED:
                self._book.vouch(lease)
            else:
                self._book.orphan(lease, now=now)

    def gone(self, worker_id: str, *, connection: int, now: float) -> list[Instruction]:
        """A connection ended; if it spoke for the worker, the worker is lost until it is back."""
        worker = self._fleet.speaking(worker_id, connection=connection)
        if worker is None:
            return []
        worker.connection = None
        worker.lost_at = now
        worker.resync_asked_at = None
        self._fleet.mark(worker_id)
        self._index.distrust(worker_id)
        for lease in self._book.of_worker(worker_id):
            self._book.orphan(lease, now=now)
        return [_step(worker, now)]

    def reported(self, worker: Worker, report: Said, now: float) -> list[Instruction]:
        """A connected worker said something."""
        found: list[Instruction] = []
        before = worker.phase
        match report:
            case Load():
                self._fleet.report(worker, report, now=now)
            case Delta():
                if self._index.apply_delta(worker.worker_id, report):
                    self._ask_resync(worker, now, found)
            case SnapshotPart():
                if self._index.apply_snapshot(worker.worker_id, report):
                    self._ask_resync(worker, now, found)
                elif self._index.trusted(worker.worker_id):
                    self._settled(worker)
            case Leaving():
                worker.draining = True
                self._fleet.mark(worker.worker_id)
            case _:
                self._take_leases(worker, report, now, found)
        if worker.phase is not before:
            found.append(_step(worker, now))
        return found

    def _take_leases(
        self, worker: Worker, states: tuple[LeaseState, ...], now: float, found: list[Instruction]
    ) -> None:
        assert worker.connection is not None
        acknowledged, cancelled = [], []
        for state in states:
            verdict, lease = self._book.report(state, worker_id=worker.worker_id, epoch=worker.epoch)
            if state.phase is LeasePhase.FINISHED:
                acknowledged.append(state.lease_id)
            elif verdict is Report.FENCED:
                cancelled.append(state.lease_id)
            if verdict is Report.FINISHED and lease is not None:
                self._learn(lease, now)
            if verdict is Report.ADOPTED and lease is not None:
                self._adopted(lease, now)
        if states:
            self._fleet.touch()
        if acknowledged:
            found.append(Acknowledge(worker.connection, tuple(acknowledged)))
        if cancelled:
            found.append(Cancel(worker.connection, tuple(cancelled)))

    def _adopted(self, lease: Lease, now: float) -> None:
        """Another scheduler granted it, or this one before it was started anew: count it as if it had been now."""
        self._fair.charge(lease)
        if lease.phase is LeasePhase.STARTED:
            self._placement.given_elsewhere(lease, now=now)

    def _learn(self, lease: Lease, now: float) -> None:
        self._fair.settle(lease)
        self._spend.ended(lease, now=now)
        if lease.usage is not None and lease.usage.output_total is not None:
            self._lengths.learn(lease.grant.tenant_id, lease.grant.model, lease.usage.output_total)

    def drain(self, worker_id: str) -> list[Instruction]:
        """Ask a worker to leave."""
        worker = self._fleet.get(worker_id)
        if worker is None or worker.connection is None:
            return []
        return [AskDrain(worker.connection)]

    def tick(self, now: float) -> list[Instruction]:
        """Ask again for snapshots that did not come, and forget workers that were lost long ago."""
        found: list[Instruction] = []
        for worker in list(self._fleet):
            if worker.connection is None:
                if now >= worker.lost_at + self._limits.forget_worker_s and not self._book.count_of(worker.worker_id):
                    self._fleet.remove(worker.worker_id)
                    self._index.drop(worker.worker_id)
                continue
            if worker.settles_at is not None and now >= worker.settles_at:
                self._settled(worker)
            if self._awaits_snapshot(worker, now):
                self._ask_resync(worker, now, found)
        return found

    def _settled(self, worker: Worker) -> None:
        if worker.settles_at is not None:
            worker.settles_at = None
            self._fleet.mark(worker.worker_id)

    def _awaits_snapshot(self, worker: Worker, now: float) -> bool:
        if not worker.spec.kv_events or self._index.trusted(worker.worker_id):
            return False
        return worker.resync_asked_at is None or now >= worker.resync_asked_at + self._limits.resync_retry_s

    def _ask_resync(self, worker: Worker, now: float, found: list[Instruction]) -> None:
        assert worker.connection is not None
        worker.resync_asked_at = now
        found.append(AskResync(worker.connection))


def _step(worker: Worker, now: float) -> RecordWorker:
    phase: WorkerPhase = worker.phase
    return RecordWorker(worker_id=worker.worker_id, epoch=worker.epoch, phase=phase, spec=worker.spec, at=now)
