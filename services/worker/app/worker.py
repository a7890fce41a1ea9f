"""The worker: one engine, its leases, its mirror, and the schedulers that hear of them."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from downstack.scheduler.v1.scheduler_pb2 import Hello, LeaseGrant, LeaseState, LoadReport, WorkerSpec

from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason
from services.worker.app import metrics
from services.worker.app.accounts import Accounts, Journal
from services.worker.app.engine_life import EngineLife
from services.worker.app.lease_run import Desk, LeaseRun, Stop, Work
from services.worker.app.outlet import OutletLimits
from services.worker.app.reports import WorkerIdentity, grant_of, load_of, spec_of, state_of
from services.worker.app.shelf import Shelf
from services.worker.app.uplink import Uplink, UplinkLimits
from services.worker.domain.adapters import Adapter
from services.worker.domain.leases import Counts, Lease, LeaseBook, Phase
from services.worker.domain.mirror import SnapshotPart
from services.worker.domain.pace import Pace
from services.worker.domain.sampling import Bounds

_log = structlog.get_logger()
# For streams to end, and for the schedulers to hear of it.
_LAST_WORDS_S = 2.0


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker bounds.

    Attributes:
        max_leases: The most leases at once.
        max_remembered: The most used tickets, and unacknowledged ends, that are remembered.
        needs_scheduler: Whether the worker is ready only once a scheduler has welcomed it.
        max_adapters: The most adapters at once.
    """

    outlet: OutletLimits
    uplink: UplinkLimits
    max_leases: int
    max_remembered: int
    needs_scheduler: bool
    max_adapters: int = 0


class Worker:
    """Ties them together. `start`, then `keep_engine` as a task for life."""

    def __init__(
        self, life: EngineLife, identity: WorkerIdentity, *, limits: WorkerLimits, journal: Journal, clock: Clock
    ) -> None:
        self._life = life
        self._identity = identity
        self._limits = limits
        self._journal = journal
        self._clock = clock
        self._book = LeaseBook(
            worker_id=identity.worker_id,
            epoch=life.epoch,
            model=identity.model,
            max_running=limits.max_leases,
            max_remembered=limits.max_remembered,
        )
        self._pace = Pace(shortest_s=limits.outlet.flush_s, longest_s=limits.outlet.longest_flush_s)
        self.shelf = Shelf(life, most=limits.max_adapters, changed=self._introduce_again)
        self._grants: dict[str, LeaseGrant] = {}
        self._runs: dict[str, tuple[LeaseRun, asyncio.Task[None]]] = {}
        self._uplinks: set[Uplink] = set()
        self._started = asyncio.Event()
        self._welcomed = asyncio.Event()
        self._acknowledged = asyncio.Event()
        self._draining = False

    @property
    def epoch(self) -> str:
        return self._life.epoch

    @property
    def worker_id(self) -> str:
        return self._identity.worker_id

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def kv_blocks_resident(self) -> int:
        return len(self._life.mirror)

    async def start(self, adapters: Iterable[Adapter] = ()) -> None:
        """Starts the engine with these adapters; returns when it can serve, and a scheduler knows of it."""
        await self._life.start()
        await self.shelf.start(adapters)
        self._started.set()
        if self._limits.needs_scheduler:
            await self._welcomed.wait()

    async def until_started(self) -> None:
        """Returns when the engine has started."""
        await self._started.wait()

    def healthy(self) -> bool:
        """Whether the engine is alive and makes progress."""
        return self._life.healthy

    async def keep_engine(self) -> None:
        """Follows the engine, and puts another one in its place when it is lost. For life.

        Raises:
            DownstackError: ENGINE_DEAD, where no other one can be started. The process ends, and whoever supervises it
                decides.
        """
        await self._started.wait()
        while True:
            async with asyncio.TaskGroup() as group:
                following = [group.create_task(self._follow_cache()), group.create_task(self._follow_load())]
                why = await self._life.until_lost()
                for task in following:
                    task.cancel()
            await self._end_all(why)
            await self._life.renew()
            self._book.renew(self._life.epoch)
            await self.shelf.restore()
            self._life.serve()
            self._introduce_again()
            _log.info("engine_restarted", epoch=self._life.epoch)

    def _introduce_again(self) -> None:
        """What schedulers were told at first is no longer so: each link begins anew."""
        for uplink in self._uplinks:
            uplink.end()

    async def _follow_cache(self) -> None:
        """Keeps the mirror, and tells the schedulers of its changes."""
        mirror = self._life.mirror
        async for changes in self._life.engine.kv_events():
            delta = mirror.apply(changes)
            metrics.KV_RESIDENT.set(len(mirror))
            if delta is not None:
                for uplink in self._uplinks:
                    uplink.add_delta(delta)

    async def _follow_load(self) -> None:
        """Tells the schedulers of each change of the load."""
        while True:
            await self._life.engine.changed()
            metrics.FRAME_INTERVAL.set(self._pace.interval_s)
            for uplink in self._uplinks:
                uplink.load_changed()

    async def _end_all(self, why: str) -> None:
        """Ends every lease of a lost engine; returns when the schedulers know, or after a moment."""
        _log.critical("engine_lost", why=why, leases=len(self._runs))
        for uplink in self._uplinks:
            uplink.load_changed()
        tasks = [task for _, task in self._runs.values()]
        self.cancel(list(self._runs), cause=Stop.ENGINE_LOST)
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WORDS_S)
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                while self._limits.needs_scheduler and self._uplinks and self._book.unacknowledged:
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
        except TimeoutError:
            return  # they are told again until they are acknowledged

    def check_open(self) -> None:
        """Raises DownstackError where no lease can begin: METHOD_DISABLED, DRAINING, ENGINE_DEAD, JOURNAL_FULL."""
        self.check_serving()
        if self._life.engine.spec.embeds:
            raise DownstackError(Reason.METHOD_DISABLED, "This worker's model makes embeddings, and no answers.")
        self._journal.check_open()

    def check_serving(self) -> None:
        """Raises DownstackError where nothing can begin: DRAINING, ENGINE_DEAD."""
        if self._draining:
            raise DownstackError(Reason.DRAINING, "This worker is leaving.")
        if not self.healthy():
            raise DownstackError(Reason.ENGINE_DEAD, "This worker's engine is not healthy.", retry_after_s=1.0)

    def bounds(self, grant: LeaseGrant) -> Bounds:
        """What engine and ticket allow."""
        spec = self._life.engine.spec
        return Bounds(spec.context_tokens, spec.vocab_size, grant.max_output_tokens)

    def begin(self, work: Work) -> LeaseRun:
        """Starts a lease. Raises DownstackError as LeaseBook.admit does."""
        grant = work.grant
        lease = self._book.admit(
            grant_of(grant),
            now=self._clock.now(),
            prompt_tokens=len(work.prompt),
            adapters=self.shelf.table.ids if grant.adapter else (),
        )
        self.shelf.take(grant.adapter)
        engine = self._life.engine
        name = f"{engine.spec.engine} {engine.spec.engine_version}"
        accounts = Accounts(self._journal, worker_id=self.worker_id, engine=name)
        run = LeaseRun(work, Desk(engine, accounts, self._clock, self._limits.outlet, self._pace, self._advance))
        self._grants[grant.lease_id] = grant
        self._tell_lease(lease)
        task = asyncio.create_task(run.run(), name=f"lease {grant.lease_id}")
        self._runs[grant.lease_id] = (run, task)
        task.add_done_callback(lambda _: self._ended(grant))
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
        self._acknowledged.set()

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
        """Somebody who hears of this worker inside the block: a scheduler, or a subscriber to its KV cache."""
        uplink = Uplink(self, self._limits.uplink)
        self._uplinks.add(uplink)
        try:
            yield uplink
        finally:
            self._uplinks.discard(uplink)

    def welcomed(self) -> None:
        """A scheduler has taken this worker in."""
        self._welcomed.set()

    def hello(self) -> Hello:
        identity = self._identity
        return Hello(
            worker_id=identity.worker_id,
            epoch=self.epoch,
            endpoint=identity.endpoint,
            spec=self.spec(),
            leases=self.running_leases(),
        )

    def spec(self) -> WorkerSpec:
        """What this worker is."""
        return spec_of(self._identity, self._life.engine, adapters=self.shelf.table.offered)

    def load(self) -> LoadReport:
        """How busy it is."""
        return load_of(self._life.engine, serving=self.healthy())

    def snapshot(self, part_size: int) -> Sequence[SnapshotPart]:
        return self._life.mirror.snapshot(part_size)

    def lease_states(self, lease_ids: Iterable[str]) -> list[LeaseState]:
        """The states of those of the leases that run."""
        running = self._book.running
        return [self._state(running[lease_id]) for lease_id in lease_ids if lease_id in running]

    def running_leases(self) -> list[LeaseState]:
        """The states of the leases that run."""
        return self.lease_states(list(self._book.running))

    def unacknowledged(self) -> list[LeaseState]:
        return [self._state(lease) for lease in self._book.unacknowledged.values()]

    def _ended(self, grant: LeaseGrant) -> None:
        self._runs.pop(grant.lease_id, None)
        self.shelf.give_back(grant.adapter)

    def _advance(self, lease_id: str, phase: Phase, counts: Counts) -> None:
        lease = self._book.advance(lease_id, phase=phase, counts=counts)
        if phase is Phase.FINISHED:
            del self._grants[lease_id]
        self._tell_lease(lease)

    def _tell_lease(self, lease: Lease) -> None:
        state = self._state(lease) if lease.phase is Phase.FINISHED else None
        for uplink in self._uplinks:
            if state is None:
                uplink.lease_changed(lease.lease_id)
            else:
                uplink.lease_ended(state)

    def _state(self, lease: Lease) -> LeaseState:
        return state_of(lease, self._grants.get(lease.lease_id))
