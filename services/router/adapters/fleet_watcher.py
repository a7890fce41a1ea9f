"""Keeps the fleet as the scheduler last described it."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio
import structlog
from downstack.scheduler.v1 import scheduler_pb2 as scheduler_pb
from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from google.protobuf.duration_pb2 import Duration

from services.kit.clock import Clock
from services.kit.identity import internal_metadata
from services.kit.status import error_from_rpc
from services.router.adapters.wire_answer import price_of
from services.router.domain.models import ServedModel, WorkerView, served_models

if TYPE_CHECKING:
    # The asynchronous stubs exist for the type checker only.
    from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceAsyncStub

_log = structlog.get_logger(__name__)

_BACKOFF_FIRST_S = 0.1
_BACKOFF_MOST_S = 2.0
_LIVE = frozenset(
    {
        scheduler_pb.WORKER_PHASE_READY,
        scheduler_pb.WORKER_PHASE_UNHEALTHY,
        scheduler_pb.WORKER_PHASE_DRAINING,
    }
)


class FleetWatcher:
    """Follows SchedulerService.WatchFleet of one scheduler, and of the next where that one ends, for life.

    While the scheduler is away the last view stays: the workers are most likely still there, and the scheduler itself
    refuses what it cannot place.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel], *, secret: bytes, clock: Clock, interval_s: float) -> None:
        stubs = [cast("SchedulerServiceAsyncStub", SchedulerServiceStub(channel)) for channel in channels]
        self._stubs = itertools.cycle(stubs)
        self._secret = secret
        self._clock = clock
        self._interval_s = interval_s
        self._served: Mapping[str, ServedModel] = {}
        self._seen = asyncio.Event()

    def served(self) -> Mapping[str, ServedModel]:
        return self._served

    async def first_view(self) -> None:
        """Return once the fleet has been seen."""
        await self._seen.wait()

    async def run(self) -> None:
        """Watch for ever; a broken stream is opened again, sooner after one that worked."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            views = 0
            try:
                async for fleet in self._watch():
                    views += 1
                    self._take(fleet)
            except grpc.RpcError as error:
                _log.info("fleet stream ended", reason=error_from_rpc(error).reason.value)
            backoff_s = _BACKOFF_FIRST_S if views else min(backoff_s * 2, _BACKOFF_MOST_S)
            # Jitter keeps the routers of one restarted scheduler apart.
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311

    async def _watch(self) -> AsyncIterator[scheduler_pb.Fleet]:
        interval = Duration()
        interval.FromNanoseconds(round(self._interval_s * 1e9))
        metadata = internal_metadata("router", identity=None, secret=self._secret, now=self._clock.now())
        call = next(self._stubs).WatchFleet(scheduler_pb.WatchFleetRequest(interval=interval), metadata=metadata)
        try:
            async for response in call:
                yield response.fleet
        finally:
            call.cancel()

    def _take(self, fleet: scheduler_pb.Fleet) -> None:
        prices = {model.name: price_of(model.price) for model in fleet.models if model.HasField("price")}
        self._served = served_models([_view_of(worker) for worker in fleet.workers], prices)
        self._seen.set()


def _view_of(worker: scheduler_pb.Worker) -> WorkerView:
    return WorkerView(
        worker_id=worker.worker_id,
        model=worker.spec.model,
        tokenizer_revision=worker.spec.tokenizer_revision,
        context_tokens=worker.spec.context_tokens,
        block_size=worker.spec.block_size,
        engine=worker.spec.engine,
        ready=worker.phase == scheduler_pb.WORKER_PHASE_READY,
        live=worker.phase in _LIVE,
        adapters={adapter.name: adapter.id for adapter in worker.spec.adapters},
    )
