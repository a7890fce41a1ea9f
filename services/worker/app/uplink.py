"""What one scheduler has still to be told by this worker."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from downstack.scheduler.v1.scheduler_pb2 import (
    ConnectRequest,
    Draining,
    Hello,
    KvBlocks,
    KvChange,
    KvCleared,
    KvDelta,
    KvSnapshot,
    LeaseReport,
    LeaseState,
    LoadReport,
)

from services.worker.app import metrics
from services.worker.domain.mirror import Cleared, Delta, Removed, SnapshotPart, Stored
from services.worker.domain.mirror import KvChange as MirrorChange


class Subject(Protocol):
    """The worker, as far as schedulers hear of it."""

    @property
    def epoch(self) -> str: ...

    @property
    def draining(self) -> bool: ...

    def hello(self) -> Hello: ...

    def load(self) -> LoadReport: ...

    def snapshot(self, part_size: int) -> Sequence[SnapshotPart]: ...

    def lease_states(self, lease_ids: Iterable[str]) -> list[LeaseState]: ...

    def unacknowledged(self) -> list[LeaseState]: ...


@dataclass(frozen=True)
class UplinkLimits:
    """How often and how much a scheduler is told.

    Attributes:
        report_s: The longest time between two load reports.
        pause_s: The least time between two batches of messages, so that changes gather.
        repeat_s: The time after which an end that was not acknowledged is told again.
        max_deltas: The most KV deltas that wait; more become a snapshot.
        max_ends: The most ends of leases that wait; the oldest give way.
        part_size: The most blocks in one part of a snapshot.
    """

    report_s: float = 1.0
    pause_s: float = 0.02
    repeat_s: float = 2.0
    max_deltas: int = 1024
    max_ends: int = 65_536
    part_size: int = 8192


class Uplink:
    """The messages of one connection, made when it can take them: so nothing piles up behind a slow scheduler."""

    def __init__(self, subject: Subject, limits: UplinkLimits) -> None:
        self._subject = subject
        self._limits = limits
        self._report_s = limits.report_s
        self._deltas: deque[Delta] = deque()
        self._leases: dict[str, None] = {}
        self._ends: deque[LeaseState] = deque(maxlen=limits.max_ends)
        self._snapshot_due = True
        self._draining_due = subject.draining
        self._ended = False
        self._woken = asyncio.Event()
        self._repeated_at = 0.0
        self._batch_at = 0.0

    def set_report_interval(self, seconds: float) -> None:
        """The scheduler wants reports at least this often."""
        self._report_s = min(self._limits.report_s, seconds)

    def add_delta(self, delta: Delta) -> None:
        """The KV cache changed."""
        if not self._snapshot_due:
            self._deltas.append(delta)
            if len(self._deltas) > self._limits.max_deltas:
                metrics.DELTAS_DROPPED.inc(len(self._deltas))
                self.resync()
        self._woken.set()

    def resync(self) -> None:
        """The scheduler wants the whole KV cache."""
        self._deltas.clear()
        self._snapshot_due = True
        self._woken.set()

    def lease_changed(self, lease_id: str) -> None:
        """A lease has moved on."""
        self._leases[lease_id] = None
        self._woken.set()

    def lease_ended(self, state: LeaseState) -> None:
        """A lease has ended. This scheduler hears of it, even if another one acknowledges it before."""
        self._leases.pop(state.lease_id, None)
        self._ends.append(state)
        self._woken.set()

    def load_changed(self) -> None:
        """The load has changed."""
        self._woken.set()

    def drain(self) -> None:
        """The worker takes no more leases."""
        self._draining_due = True
        self._woken.set()

    def end(self) -> None:
        """The worker has another engine now: what this connection began with is void."""
        self._ended = True
        self._woken.set()

    async def next_batch(self) -> list[ConnectRequest]:
        """Waits for something to tell, at most the report interval, and returns it; the load always comes last.

        Nothing at all: the connection is to end.
        """
        loop = asyncio.get_running_loop()
        # The next report is due an interval after the last one, not after the pause.
        await self._wait_for_wake(self._batch_at + self._report_s)
        await asyncio.sleep(self._batch_at + self._limits.pause_s - loop.time())
        if self._ended:
            return []
        self._woken.clear()
        self._batch_at = loop.time()
        return [*self._kv(), *self._lease_report(), *self._draining(), ConnectRequest(load=self._subject.load())]

    async def _wait_for_wake(self, due: float) -> None:
        try:
            async with asyncio.timeout_at(due):
                await self._woken.wait()
        except TimeoutError:
            return

    def _kv(self) -> list[ConnectRequest]:
        epoch = self._subject.epoch
        if self._snapshot_due:
            self._snapshot_due = False
            self._deltas.clear()
            parts = self._subject.snapshot(self._limits.part_size)
            return [ConnectRequest(kv_snapshot=_snapshot(part, epoch=epoch)) for part in parts]
        deltas = list(self._deltas)
        self._deltas.clear()
        return [ConnectRequest(kv_delta=_delta(delta, epoch=epoch)) for delta in deltas]

    def _lease_report(self) -> list[ConnectRequest]:
        changed, self._leases = self._leases, {}
        states = [*self._subject.lease_states(changed), *self._ends]
        self._ends.clear()
        now = asyncio.get_running_loop().time()
        if now - self._repeated_at >= self._limits.repeat_s:
            self._repeated_at = now
            told = {state.lease_id for state in states}
            states += [state for state in self._subject.unacknowledged() if state.lease_id not in told]
        return [ConnectRequest(leases=LeaseReport(leases=states))] if states else []

    def _draining(self) -> list[ConnectRequest]:
        if not self._draining_due:
            return []
        self._draining_due = False
        return [ConnectRequest(draining=Draining())]


def _snapshot(part: SnapshotPart, *, epoch: str) -> KvSnapshot:
    return KvSnapshot(epoch=epoch, sequence=part.sequence, hashes=part.hashes, last=part.last)


def _delta(delta: Delta, *, epoch: str) -> KvDelta:
    return KvDelta(epoch=epoch, sequence=delta.sequence, changes=[_change(change) for change in delta.changes])


def _change(change: MirrorChange) -> KvChange:
    match change:
        case Stored(hashes):
            return KvChange(stored=KvBlocks(hashes=hashes))
        case Removed(hashes):
            return KvChange(removed=KvBlocks(hashes=hashes))
        case Cleared():
            return KvChange(cleared=KvCleared())
