"""The worker: one engine, its leases, its mirror, and the schedulers that hear of them."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from downstack.scheduler.v1.scheduler_pb2 import (
    Hello,
    LeaseGrant,
    LeasePhase,
    LeaseState,
    LoadReport,
    Rates,
    WorkerSpec,
)

from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason
from services.worker.app import metrics
from services.worker.app.accounts import Accounts, Journal, token_usage
from services.worker.app.lease_run import Desk, LeaseRun, Stop, Work
from services.worker.app.outlet import OutletLimits
from services.worker.app.uplink import Uplink, UplinkLimits
from services.worker.domain.leases import Counts, Grant, Lease, LeaseBook, Phase
from services.worker.domain.mirror import Mirror, SnapshotPart
from services.worker.domain.progress import Progress
from services.worker.domain.sampling import Bounds
from services.worker.ports import Engine

_log = structlog.get_logger()
_WATCH_S = 0.5
# For the streams of a dead engine to end, and for the schedulers to hear of it.
_LAST_WORDS_S = 2.0
_PHASES = {
    Phase.STARTED: LeasePhase.LEASE_PHASE_STARTED,
    Phase.DECODING: LeasePhase.LEASE_PHASE_DECODING,
    Phase.FINISHED: LeasePhase.LEASE_PHASE_FINISHED,
}


@dataclass(frozen=True)
class WorkerIdentity:
    """What a worker calls itself.

    Attributes:
        worker_id: Its name across restarts.
        epoch: New at each start.
        endpoint: Where callers reach it, host:port.
        price_per_hour_nano: What an hour of it costs, in 1e-9 of the currency's unit.
    """

    worker_id: str
    epoch: str
    endpoint: str
    model: str
    tokenizer_revision: str
    device_kind: str
    price_per_hour_nano: int


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker bounds.

    Attributes:
        progress_s: The longest that an engine with work may go without a step.
        max_leases: The most leases at once.
        max_remembered: The most used tickets, and unacknowledged ends, that are remembered.
        needs_scheduler: Whether the worker is ready only once a scheduler has welcomed it.
    """

    outlet: OutletLimits
    uplink: UplinkLimits
    progress_s: float
    max_leases: int
    max_remembered: int
    needs_scheduler: bool


class Worker:
    """Ties them together. `start`, then `follow_engine` and `watch_engine` as tasks for life."""

    def __init__(
        self, engine: Engine, identity: WorkerIdentity, *, limits: WorkerLimits, journal: Journal, clock: Clock
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._limits = limits
        self._journal = journal
        self._clock = clock
        self._mirror = Mirror()
        self._book = LeaseBook(
            worker_id=identity.worker_id,
            epoch=identity.epoch,
            model=identity.model,
            max_running=limits.max_leases,
            max_remembered=limits.max_remembered,
        )
        self._grants: dict[str, LeaseGrant] = {}
        self._runs: dict[str, tuple[LeaseRun, asyncio.Task[None]]] = {}
        self._uplinks: set[Uplink] = set()
        self._progress = Progress(timeout_s=limits.progress_s)
        self._started = asyncio.Event()
        self._welcomed = asyncio.Event()
        self._draining = False

    @property
    def epoch(self) -> str:
        return self._identity.epoch

    @property
    def worker_id(self) -> str:
        return self._identity.worker_id

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def kv_blocks_resident(self) -> int:
        return len(self._mirror)

    async def start(self) -> None:
        """Starts the engine; returns when it can serve, and a scheduler knows of it."""
        await self._engine.start()
        self._progress.observe(steps=-1, unfinished=0, now=self._clock.monotonic())
        self._started.set()
        if self._limits.needs_scheduler:
            await self._welcomed.wait()

    async def until_started(self) -> None:
        """Returns when the engine has started."""
        await self._started.wait()

    def healthy(self) -> bool:
        """Whether the engine is alive and makes progress."""
        now = self._clock.monotonic()
        return self._started.is_set() and not self._engine.dead and self._progress.healthy(now=now)

    async def follow_engine(self) -> None:
        """Keeps the mirror, and tells the schedulers of its changes. For life."""
        await self._started.wait()
        async for changes in self._engine.kv_events():
            delta = self._mirror.apply(changes)
            metrics.KV_RESIDENT.set(len(self._mirror))
            if delta is not None:
                for uplink in self._uplinks:
                    uplink.add_delta(delta)

    async def follow_load(self) -> None:
        """Tells the schedulers of each change of the load. For life."""
        await self._started.wait()
        while True:
            await self._engine.changed()
            for uplink in self._uplinks:
                uplink.load_changed()

    async def watch_engine(self) -> None:
        """Notices an engine that hangs or has died; ends with an error if it has died.

        Raises:
            DownstackError: ENGINE_DEAD, after streams and schedulers were told. The process ends, and whoever
                supervises it starts it anew: nothing of a dead engine is worth keeping.
        """
        await self._started.wait()
        while not self._engine.dead:
            stats = self._engine.stats()
            self._progress.observe(steps=stats.steps, unfinished=stats.unfinished, now=self._clock.monotonic())
            metrics.RUNNING.set(stats.running)
            metrics.WAITING.set(stats.waiting)
            metrics.KV_USAGE.set(stats.kv_usage)
            await asyncio.sleep(_WATCH_S)
        _log.critical("engine_died", leases=len(self._runs))
        for uplink in self._uplinks:
            uplink.load_changed()
        tasks = [task for _, task in self._runs.values()]
        await asyncio.sleep(self._limits.uplink.pause_s * 2)
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WORDS_S)
        raise DownstackError(Reason.ENGINE_DEAD, "The engine has died.")

    def check_open(self) -> None:
        """Raises DownstackError where no lease can begin: DRAINING, ENGINE_DEAD, JOURNAL_FULL."""
        if self._draining:
            raise DownstackError(Reason.DRAINING, "This worker is leaving.")
        if not self.healthy():
            raise DownstackError(Reason.ENGINE_DEAD, "This worker's engine is not healthy.", retry_after_s=1.0)
        self._journal.check_open()

    def bounds(self, grant: LeaseGrant) -> Bounds:
        """What engine and ticket allow."""
        spec = self._engine.spec
        return Bounds(spec.context_tokens, spec.vocab_size, grant.max_output_tokens)

    def begin(self, work: Work) -> LeaseRun:
        """Starts a lease. Raises DownstackError as LeaseBook.admit does."""
        grant = work.grant
        lease = self._book.admit(_grant(grant), now=self._clock.now(), prompt_tokens=len(work.prompt))
        spec = self._engine.spec
        accounts = Accounts(self._journal, worker_id=self.worker_id, engine=f"{spec.engine} {spec.engine_version}")
        run = LeaseRun(work, Desk(self._engine, accounts, self._clock, self._limits.outlet, self._advance))
        self._grants[grant.lease_id] = grant
        self._tell_lease(lease)
        task = asyncio.create_task(run.run(), name=f"lease {grant.lease_id}")
        self._runs[grant.lease_id] = (run, task)
        task.add_done_callback(lambda _: self._runs.pop(grant.lease_id, None))
        return run

    def cancel(self, lease_ids: Iterable[str], *, cause: Stop = Stop.REVOKED) -> int:
        """Ends leases; returns how many of them ran."""
        found = [self._runs[lease_id] for lease_id in set(lease_ids) if lease_id in self._runs]
        for run, _ in found:
            run.stop(cause)
        return len(found)

    def acknowledge(self, lease_ids: Sequence[str]) -> None:
        """A scheduler knows of these ends."""
        self._book.acknowledge(lease_ids)

    def begin_drain(self) -> None:
        """Takes no more leases, and says so."""
        if not self._draining:
            self._draining = True
            for uplink in self._uplinks:
                uplink.drain()

    async def drain(self, budget_s: float) -> int:
        """Lets the running leases finish within the budget, ends the others; returns how many those were."""
        self.begin_drain()
        tasks = [task for _, task in self._runs.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=budget_s)
        late = dict(self._runs)
        self.cancel(late, cause=Stop.DRAINING)
        if late:
            await asyncio.wait([task for _, task in late.values()], timeout=_LAST_WORDS_S)
        return len(late)

    @contextmanager
    def uplink(self) -> Iterator[Uplink]:
        """A scheduler that is connected inside the block."""
        uplink = Uplink(self, self._limits.uplink)
        self._uplinks.add(uplink)
        metrics.LINKS_UP.set(len(self._uplinks))
        try:
            yield uplink
        finally:
            self._uplinks.discard(uplink)
            metrics.LINKS_UP.set(len(self._uplinks))

    def welcomed(self) -> None:
        """A scheduler has taken this worker in."""
        self._welcomed.set()

    def hello(self) -> Hello:
        identity = self._identity
        leases = self.lease_states(list(self._book.running))
        return Hello(
            worker_id=identity.worker_id,
            epoch=identity.epoch,
            endpoint=identity.endpoint,
            spec=self.spec(),
            leases=leases,
        )

    def spec(self) -> WorkerSpec:
        """What this worker is."""
        engine, identity = self._engine.spec, self._identity
        return WorkerSpec(
            model=identity.model,
            tokenizer_revision=identity.tokenizer_revision,
            context_tokens=engine.context_tokens,
            block_size=engine.block_size,
            kv_blocks=engine.kv_blocks,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            engine=engine.engine,
            engine_version=engine.engine_version,
            device_kind=identity.device_kind,
            price_per_hour_nano=identity.price_per_hour_nano,
            rates=self._rates(),
            kv_events=True,
        )

    def load(self) -> LoadReport:
        """How busy it is."""
        stats = self._engine.stats()
        return LoadReport(
            running_requests=stats.running,
            waiting_requests=stats.waiting,
            kv_usage=stats.kv_usage,
            steps=stats.steps,
            generated_tokens=stats.generated_tokens,
            serving=self.healthy(),
            rates=self._rates(),
            prefix_queries=stats.prefix_queries,
            prefix_hits=stats.prefix_hits,
        )

    def snapshot(self, part_size: int) -> Sequence[SnapshotPart]:
        return self._mirror.snapshot(part_size)

    def lease_states(self, lease_ids: Iterable[str]) -> list[LeaseState]:
        """The states of leases that run, or have ended and were not acknowledged."""
        books = (self._book.running, self._book.unacknowledged)
        return [self._state(book[lease_id]) for lease_id in lease_ids for book in books if lease_id in book]

    def running_leases(self) -> list[LeaseState]:
        """The states of the leases that run."""
        return self.lease_states(list(self._book.running))

    def unacknowledged(self) -> list[LeaseState]:
        return [self._state(lease) for lease in self._book.unacknowledged.values()]

    def _advance(self, lease_id: str, phase: Phase, counts: Counts) -> None:
        lease = self._book.advance(lease_id, phase=phase, counts=counts)
        if phase is Phase.FINISHED:
            del self._grants[lease_id]
        self._tell_lease(lease)

    def _tell_lease(self, lease: Lease) -> None:
        for uplink in self._uplinks:
            uplink.lease_changed(lease.lease_id)

    def _state(self, lease: Lease) -> LeaseState:
        grant = self._grants.get(lease.lease_id)
        return LeaseState(
            lease_id=lease.lease_id, phase=_PHASES[lease.phase], usage=token_usage(lease.counts), grant=grant
        )

    def _rates(self) -> Rates:
        rates = self._engine.rates()
        return Rates(
            prefill_base_ms=rates.prefill_base_ms,
            prefill_ms_per_token=rates.prefill_ms_per_token,
            decode_base_ms=rates.decode_base_ms,
            decode_ms_per_request=rates.decode_ms_per_request,
            prefill_ms_per_pair=rates.prefill_ms_per_pair,
            decode_ms_per_context_token=rates.decode_ms_per_context_token,
        )


def _grant(grant: LeaseGrant) -> Grant:
    return Grant(
        lease_id=grant.lease_id,
        worker_id=grant.worker_id,
        worker_epoch=grant.worker_epoch,
        model=grant.model,
        adapter=grant.adapter,
        prompt_tokens=grant.prompt_tokens,
        max_output_tokens=grant.max_output_tokens,
        expires_at=grant.expires_at.ToNanoseconds() / 1e9,
    )
