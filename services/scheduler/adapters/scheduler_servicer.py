"""SchedulerService over gRPC."""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
from downstack.scheduler.v1 import scheduler_pb2 as pb
from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceServicer

from services.kit.channel import remaining_s
from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason, Violations
from services.kit.identity import current_identity
from services.kit.tickets import sign_ticket
from services.scheduler.adapters.reading import hello_of, released_of, report_of, request_of
from services.scheduler.adapters.timeline import Timeline
from services.scheduler.adapters.writing import decision_message, fleet_message, grant_message, order_message
from services.scheduler.app import Connection, Scheduler
from services.scheduler.domain.instructions import Place as Placed

# A refusal needs this much of the caller's deadline to reach it.
_ANSWER_S = 0.05
_WATCH_DEFAULT_S, _WATCH_MIN_S, _WATCH_MAX_S = 1.0, 0.1, 3600.0


class SchedulerServicer(SchedulerServiceServicer):
    """Translates; decides nothing."""

    def __init__(self, scheduler: Scheduler, *, scheduler_id: str, secret: bytes, clock: Clock) -> None:
        self._scheduler = scheduler
        self._scheduler_id = scheduler_id
        self._secret = secret
        self._clock = clock
        self._timeline = Timeline(clock)

    async def Place(  # noqa: N802  gRPC's names
        self, request: pb.PlaceRequest, context: grpc.aio.ServicerContext
    ) -> pb.PlaceResponse:
        _check_tenant(request.tenant_id)
        left = remaining_s(context)
        wait_s = self._scheduler.brain.limits.max_wait_s if left is None else max(0.0, left - _ANSWER_S)
        placed = await self._scheduler.place(request_of(request, deadline_at=self._clock.monotonic() + wait_s))
        return self._placement(placed)

    def _placement(self, placed: Placed) -> pb.PlaceResponse:
        grant = grant_message(placed.grant, timeline=self._timeline)
        return pb.PlaceResponse(
            lease_id=grant.lease_id,
            endpoint=placed.endpoint,
            ticket=sign_ticket(grant, secret=self._secret),
            expires_at=grant.expires_at,
            decision=decision_message(
                placed.decision, scheduler_id=self._scheduler_id, prices=self._scheduler.brain.prices
            ),
        )

    async def Release(  # noqa: N802
        self,
        request: pb.ReleaseRequest,
        context: grpc.aio.ServicerContext,  # noqa: ARG002  gRPC's signature
    ) -> pb.ReleaseResponse:
        if not request.lease_id:
            violations = Violations()
            violations.add("lease_id", "is required")
            violations.check()
        released = released_of(request, tenant_id=current_identity().tenant_id)
        return pb.ReleaseResponse(released=self._scheduler.release(released))

    async def Connect(  # type: ignore[override]  # noqa: N802  writes by itself
        self, requests: AsyncIterator[pb.ConnectRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """One worker's stream, from its hello to its end. Of its two tasks, the first to end takes the other along."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "hello":
            raise DownstackError(Reason.PARAM_CONFLICT, "the first message must be a hello")
        number = self._scheduler.next_number()
        connection = self._scheduler.connect(hello_of(first.hello, connection=number, timeline=self._timeline))
        halves = [
            asyncio.create_task(self._read(requests, connection)),
            asyncio.create_task(self._write(connection, context)),
        ]
        try:
            await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        finally:
            connection.end()
            for half in halves:
                half.cancel()
            ended = await asyncio.gather(*halves, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _read(self, requests: AsyncIterator[pb.ConnectRequest], connection: Connection) -> None:
        async for message in requests:
            if message.WhichOneof("message") == "hello":
                raise DownstackError(Reason.PARAM_CONFLICT, "a stream has one hello")
            report = report_of(message, timeline=self._timeline)
            if report is not None:
                connection.report(report)

    async def _write(self, connection: Connection, context: grpc.aio.ServicerContext) -> None:
        interval_s = self._scheduler.brain.limits.report_interval_s
        async for order in connection.orders():
            await context.write(order_message(order, scheduler_id=self._scheduler_id, report_interval_s=interval_s))

    async def DescribeFleet(  # noqa: N802
        self,
        request: pb.DescribeFleetRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext,  # noqa: ARG002
    ) -> pb.DescribeFleetResponse:
        return pb.DescribeFleetResponse(fleet=self._fleet())

    async def WatchFleet(  # noqa: N802
        self,
        request: pb.WatchFleetRequest,
        context: grpc.aio.ServicerContext,  # noqa: ARG002
    ) -> AsyncIterator[pb.WatchFleetResponse]:
        interval_s = _interval_of(request)
        while True:
            yield pb.WatchFleetResponse(fleet=self._fleet())
            changed = asyncio.create_task(self._scheduler.changed())
            try:
                await asyncio.sleep(interval_s)
                await changed
            finally:
                changed.cancel()

    def _fleet(self) -> pb.Fleet:
        identity = current_identity()
        return fleet_message(
            self._scheduler.brain,
            scheduler_id=self._scheduler_id,
            now=self._clock.monotonic(),
            tenant_id="" if "admin" in identity.scopes else identity.tenant_id,
        )


def _interval_of(request: pb.WatchFleetRequest) -> float:
    if not request.HasField("interval"):
        return _WATCH_DEFAULT_S
    interval_s = request.interval.seconds + request.interval.nanos / 1e9
    if interval_s < _WATCH_MIN_S:
        violations = Violations()
        violations.add("interval", f"must be at least {_WATCH_MIN_S} s")
        violations.check()
    return min(interval_s, _WATCH_MAX_S)


def _check_tenant(tenant_id: str) -> None:
    """A service that acts for a tenant acts for that one only."""
    acting_for = current_identity().tenant_id
    if acting_for and acting_for != tenant_id:
        raise DownstackError(Reason.ACTION_NOT_ALLOWED, "the request is another tenant's than the caller's")
