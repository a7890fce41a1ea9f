"""One simulated worker of a replay: an engine in virtual time, and what a worker would tell the schedulers of it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from services.scheduler.domain import kv
from services.scheduler.domain.lease import Grant, LeasePhase, LeaseState, Usage
from services.scheduler.domain.stimuli import Report, WorkerHello
from services.scheduler.domain.worker import Load, Rates, WorkerSpec
from services.worker.domain import mirror
from services.worker.domain.sim.core import SimSequence
from services.worker.domain.sim.virtual import Ended, StepDone, VirtualEngine
from services.worker.profiles import Profile

MODEL = "model"
_SNAPSHOT_PART = 65_536


@dataclass(frozen=True, slots=True)
class Progress:
    """What a wake of the engine did for one lease, and when."""

    lease_id: str
    at: float
    first: bool = False
    finished: bool = False
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class _Run:
    grant: Grant
    phase: LeasePhase = LeasePhase.STARTED
    cached_tokens: int | None = None
    output_tokens: int = 0


@dataclass(slots=True)
class _Unsaid:
    """What the schedulers have not been told yet."""

    deltas: list[mirror.Delta] = field(default_factory=list)
    leases: dict[str, LeaseState] = field(default_factory=dict)


class Station:
    """A worker from one start to its crash."""

    def __init__(self, worker_id: str, *, start: int, profile: Profile, connection: int) -> None:
        """`connection` is its number at every scheduler."""
        self.worker_id = worker_id
        self.connection = connection
        self.epoch = f"{worker_id}/{start}"
        self._profile = profile
        self._rates = Rates(**asdict(profile.rates))
        self.engine = VirtualEngine(profile.shape, profile.rates)
        self._mirror = mirror.Mirror()
        self._runs: dict[str, _Run] = {}
        self._unsaid = _Unsaid()

    def hello(self) -> WorkerHello:
        """What it says first."""
        shape = self._profile.shape
        spec = WorkerSpec(
            model=MODEL,
            context_tokens=shape.context_tokens,
            block_size=shape.block_size,
            kv_blocks=shape.kv_blocks,
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
            engine="sim",
            device_kind=self._profile.name,
            price_per_hour_nano=self._profile.price_per_hour_nano,
            rates=self._rates,
            kv_events=True,
        )
        return WorkerHello(
            connection=self.connection, worker_id=self.worker_id, epoch=self.epoch, endpoint=self.worker_id, spec=spec
        )

    def begin(self, grant: Grant, hashes: tuple[int, ...], *, output_tokens: int, now: float) -> None:
        """Take a lease: the worker says so, and the engine has it in its queue."""
        run = self._runs[grant.lease_id] = _Run(grant)
        self._say(run)
        sequence = SimSequence.of_hashes(
            key=grant.lease_id,
            prompt_tokens=grant.prompt_tokens,
            hashes=hashes,
            output_tokens=output_tokens,
            priority=int(grant.priority),
        )
        self.engine.add(sequence, now=now)

    def cancel(self, lease_ids: Iterable[str], *, now: float) -> list[str]:
        """End leases that the schedulers do not want any more; returns those that ran."""
        found = [lease_id for lease_id in lease_ids if lease_id in self._runs]
        self.engine.abort(found, now=now)
        for lease_id in found:
            self._finish(lease_id)
        return found

    def advance(self, now: float) -> list[Progress]:
        """Let the engine end the steps that end by now."""
        return [progress for step in self.engine.advance(now) for progress in self._take(step)]

    def leases(self) -> list[Grant]:
        """The grants of the leases that run."""
        return [run.grant for run in self._runs.values()]

    @property
    def has_news(self) -> bool:
        return bool(self._unsaid.deltas or self._unsaid.leases)

    def reports(self) -> list[Report]:
        """What there is to tell, as a worker's uplink batches it; the load comes last."""
        unsaid, self._unsaid = self._unsaid, _Unsaid()
        found: list[Report] = [_delta(delta, self.epoch) for delta in unsaid.deltas]
        if unsaid.leases:
            found.append(tuple(unsaid.leases.values()))
        found.append(self._load())
        return found

    def snapshot(self) -> list[kv.SnapshotPart]:
        """The whole cache; the deltas that it holds need not be told."""
        self._unsaid.deltas.clear()
        parts = self._mirror.snapshot(_SNAPSHOT_PART)
        return [
            kv.SnapshotPart(epoch=self.epoch, sequence=part.sequence, hashes=part.hashes, last=part.last)
            for part in parts
        ]

    def _take(self, step: StepDone) -> list[Progress]:
        delta = self._mirror.apply(step.changes)
        if delta is not None:
            self._unsaid.deltas.append(delta)
        for admitted in step.admitted:
            self._runs[admitted.key].cached_tokens = admitted.cached_tokens
        found = [self._first_token(key, step.ended_at) for key in step.first_tokens]
        return found + [self._last_token(ended, step.ended_at) for ended in step.ended]

    def _first_token(self, lease_id: str, at: float) -> Progress:
        run = self._runs[lease_id]
        run.phase = LeasePhase.DECODING
        run.output_tokens = 1
        self._say(run)
        return Progress(lease_id, at, first=True, cached_tokens=run.cached_tokens or 0)

    def _last_token(self, ended: Ended, at: float) -> Progress:
        self._runs[ended.key].output_tokens = ended.output_tokens
        self._finish(ended.key)
        return Progress(ended.key, at, finished=True, output_tokens=ended.output_tokens)

    def _finish(self, lease_id: str) -> None:
        run = self._runs.pop(lease_id)
        run.phase = LeasePhase.FINISHED
        self._say(run)

    def _say(self, run: _Run) -> None:
        usage = Usage(
            input_total=run.grant.prompt_tokens, input_cached=run.cached_tokens, output_total=run.output_tokens
        )
        lease_id = run.grant.lease_id
        self._unsaid.leases[lease_id] = LeaseState(lease_id=lease_id, phase=run.phase, usage=usage, grant=run.grant)

    def _load(self) -> Load:
        engine = self.engine
        return Load(
            running_requests=engine.running,
            waiting_requests=engine.waiting,
            kv_usage=engine.kv_usage,
            steps=engine.steps,
            rates=self._rates,
        )


def _delta(delta: mirror.Delta, epoch: str) -> kv.Delta:
    return kv.Delta(epoch=epoch, sequence=delta.sequence, changes=tuple(_change(change) for change in delta.changes))


def _change(change: mirror.KvChange) -> kv.Change:
    match change:
        case mirror.Stored(hashes):
            return kv.Stored(hashes)
        case mirror.Removed(hashes):
            return kv.Removed(hashes)
        case mirror.Cleared():
            return kv.Cleared()
