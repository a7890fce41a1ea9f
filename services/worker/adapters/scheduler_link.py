"""The worker's life at one scheduler: SchedulerService.Connect, kept up for as long as the process lives."""

import asyncio
import random
from typing import Any

import grpc.aio
import structlog
from downstack.scheduler.v1.scheduler_pb2 import ConnectRequest, ConnectResponse
from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub

from services.kit.channel import open_channel
from services.kit.clock import Clock
from services.kit.identity import internal_metadata
from services.worker.app import metrics
from services.worker.app.uplink import Uplink
from services.worker.app.worker import Worker

_log = structlog.get_logger()
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_LEAST_INTERVAL_S = 0.05


class SchedulerLink:
    """One connection, renewed with pauses of at most a second."""

    def __init__(self, worker: Worker, target: str, *, secret: bytes, clock: Clock) -> None:
        self._worker = worker
        self._target = target
        self._secret = secret
        self._clock = clock
        self._pause_s = _FIRST_PAUSE_S

    async def run(self) -> None:
        """Connects again and again. For life."""
        await self._worker.until_started()
        channel = open_channel(self._target)
        try:
            while True:
                await self._connect(SchedulerServiceStub(channel))
                await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311  jitter
                self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        finally:
            await channel.close()

    async def _connect(self, stub: Any) -> None:
        metadata = internal_metadata("worker", identity=None, secret=self._secret, now=self._clock.now())
        call = stub.Connect(metadata=metadata)
        with self._worker.uplink() as uplink, metrics.LINKS_UP.track_inprogress():
            try:
                await call.write(ConnectRequest(hello=self._worker.hello()))
                async with asyncio.TaskGroup() as group:
                    sending = group.create_task(_send(call, uplink))
                    listening = group.create_task(self._listen(call, uplink))
                    await asyncio.wait([sending, listening], return_when=asyncio.FIRST_COMPLETED)
                    why = "the engine is another one" if sending.done() else "the scheduler ended the stream"
                    sending.cancel()
                    listening.cancel()
            except* (grpc.aio.AioRpcError, asyncio.InvalidStateError) as failed:
                why = _why(failed)
            finally:
                call.cancel()
        _log.warning("scheduler_link_lost", scheduler=self._target, why=why)

    async def _listen(self, call: Any, uplink: Uplink) -> None:
        async for response in call:
            self._handle(response, uplink)

    def _handle(self, response: ConnectResponse, uplink: Uplink) -> None:
        match response.WhichOneof("message"):
            case "welcome":
                self._pause_s = _FIRST_PAUSE_S
                if response.welcome.HasField("report_interval"):
                    interval_s = response.welcome.report_interval.ToTimedelta().total_seconds()
                    uplink.set_report_interval(max(_LEAST_INTERVAL_S, interval_s))
                self._worker.welcomed()
                _log.info("scheduler_link_up", scheduler=self._target, id=response.welcome.scheduler_id)
            case "cancel":
                self._worker.cancel(response.cancel.lease_ids)
            case "drain":
                self._worker.begin_drain()
            case "resync":
                uplink.resync()
            case "acknowledge":
                self._worker.acknowledge(response.acknowledge.lease_ids)


async def _send(call: Any, uplink: Uplink) -> None:
    while messages := await uplink.next_batch():
        for message in messages:
            await call.write(message)


def _why(failed: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error.details() or error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
