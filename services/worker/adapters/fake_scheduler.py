"""A scheduler that believes every worker, keeps what it says, and places nothing: for tests of the worker alone."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from downstack.scheduler.v1 import scheduler_pb2 as pb
from downstack.scheduler.v1 import scheduler_pb2_grpc


class FakeScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Applies the workers' reports as a scheduler does, and can be told to cancel, drain or ask for a snapshot.

    Attributes:
        hellos: What each connection began with.
        loads: Every load report.
        blocks: The blocks that the worker says it holds.
        phases: The phases of each lease, in the order they were told.
        finished: The last state of each lease that ended.
        acknowledges: Whether ends are acknowledged.
    """

    def __init__(self) -> None:
        self.hellos: list[pb.Hello] = []
        self.loads: list[pb.LoadReport] = []
        self.blocks: set[int] = set()
        self.snapshots = 0
        self.sequence = 0
        self.gaps = 0
        self.phases: dict[str, list[int]] = {}
        self.finished: dict[str, pb.LeaseState] = {}
        self.drained = False
        self.acknowledges = True
        self._parts: list[int] = []
        self._changed = asyncio.Condition()
        self._outgoing: asyncio.Queue[pb.ConnectResponse | None] = asyncio.Queue()

    async def Connect(  # noqa: N802  the contract's name
        self, request_iterator: AsyncIterator[pb.ConnectRequest], _context: Any
    ) -> AsyncGenerator[pb.ConnectResponse, None]:
        """A worker's life."""
        self._outgoing = asyncio.Queue()
        reading = asyncio.create_task(self._read(request_iterator))
        try:
            yield pb.ConnectResponse(welcome=pb.Welcome(scheduler_id="fake"))
            while (message := await self._outgoing.get()) is not None:
                yield message
        finally:
            reading.cancel()

    def send(self, message: pb.ConnectResponse | None) -> None:
        """Tells the worker something; None ends the connection."""
        self._outgoing.put_nowait(message)

    async def until(self, condition: Callable[["FakeScheduler"], Any], *, timeout_s: float = 10.0) -> None:
        """Returns when the condition holds."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: bool(condition(self)))

    async def _read(self, requests: AsyncIterator[pb.ConnectRequest]) -> None:
        async for request in requests:
            self._take(request)
            async with self._changed:
                self._changed.notify_all()

    def _take(self, request: pb.ConnectRequest) -> None:
        match request.WhichOneof("message"):
            case "hello":
                self.hellos.append(request.hello)
            case "load":
                self.loads.append(request.load)
            case "kv_delta":
                self._apply(request.kv_delta)
            case "kv_snapshot":
                self._replace(request.kv_snapshot)
            case "leases":
                self._note(request.leases)
            case "draining":
                self.drained = True

    def _apply(self, delta: pb.KvDelta) -> None:
        self.gaps += delta.sequence != self.sequence + 1
        self.sequence = delta.sequence
        for change in delta.changes:
            match change.WhichOneof("change"):
                case "stored":
                    self.blocks.update(change.stored.hashes)
                case "removed":
                    self.blocks.difference_update(change.removed.hashes)
                case "cleared":
                    self.blocks.clear()

    def _replace(self, snapshot: pb.KvSnapshot) -> None:
        self._parts += snapshot.hashes
        if snapshot.last:
            self.blocks, self._parts = set(self._parts), []
            self.sequence = snapshot.sequence
            self.snapshots += 1

    def _note(self, report: pb.LeaseReport) -> None:
        ended = []
        for lease in report.leases:
            self.phases.setdefault(lease.lease_id, []).append(lease.phase)
            if lease.phase == pb.LeasePhase.LEASE_PHASE_FINISHED:
                self.finished[lease.lease_id] = lease
                ended.append(lease.lease_id)
        if ended and self.acknowledges:
            self.send(pb.ConnectResponse(acknowledge=pb.AcknowledgeLeases(lease_ids=ended)))
