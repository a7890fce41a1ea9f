"""A scheduler that places on the first worker it knows, remembers everything, and answers for its ledger."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from downstack.scheduler.v1 import ledger_pb2 as ledger_pb
from downstack.scheduler.v1 import scheduler_pb2 as scheduler_pb
from downstack.scheduler.v1.ledger_pb2_grpc import LedgerServiceServicer, add_LedgerServiceServicer_to_server
from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceServicer, add_SchedulerServiceServicer_to_server
from downstack.types.v1 import decision_pb2 as decision_pb
from downstack.types.v1 import usage_pb2 as usage_pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.clock import SystemClock
from services.kit.errors import DownstackError, Reason
from services.kit.identity import Access, AssertionAuthenticator, Identity, current_identity
from services.kit.server import Binding, ServiceParts
from services.kit.tickets import sign_ticket

_SCHEDULER = "downstack.scheduler.v1.SchedulerService"
_LEDGER = "downstack.scheduler.v1.LedgerService"
PRICE = usage_pb.Price(version="fake-1", currency="EUR", input_nano=100, cached_nano=10, output_nano=400)


@dataclass
class FakeScheduler(SchedulerServiceServicer, LedgerServiceServicer):
    """The script and the memory of one fake scheduler.

    Attributes:
        secret: Signs the tickets.
        refusal: Every Place is refused with it.
        gate: Place waits for it.
        placing: Set when a Place arrives.
        place_cancelled: Set when a waiting Place was cancelled.
        orders: The Place requests, in order.
        callers: Their identities.
        releases: The Release requests, in order.
        released: Set at every release.
        tenants: The tenant of each request, for the ledger.
    """

    secret: bytes
    refusal: DownstackError | None = None
    gate: asyncio.Event | None = None
    placing: asyncio.Event = field(default_factory=asyncio.Event)
    place_cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    orders: list[scheduler_pb.PlaceRequest] = field(default_factory=list)
    callers: list[Identity] = field(default_factory=list)
    releases: list[scheduler_pb.ReleaseRequest] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    tenants: dict[str, str] = field(default_factory=dict)
    _workers: list[scheduler_pb.Worker] = field(default_factory=list)
    _decisions: list[ledger_pb.DecidedPlacement] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def parts(self) -> ServiceParts:
        """The service, for the router and for nobody else."""
        router = Access.service("router")
        return ServiceParts(
            bindings=(
                Binding(add_SchedulerServiceServicer_to_server, self, _SCHEDULER),
                Binding(add_LedgerServiceServicer_to_server, self, _LEDGER),
            ),
            access={
                **{f"/{_SCHEDULER}/{method}": router for method in ("Place", "Release", "WatchFleet")},
                f"/{_LEDGER}/DescribeRequest": router,
            },
            authenticator=AssertionAuthenticator(self.secret, SystemClock()),
            endless=(f"/{_SCHEDULER}/WatchFleet",),
        )

    async def add_worker(self, worker: scheduler_pb.Worker) -> None:
        await self.set_workers([*self._workers, worker])

    async def set_workers(self, workers: list[scheduler_pb.Worker]) -> None:
        """Replace the fleet; everybody who watches is told."""
        async with self._changed:
            self._workers = workers
            self._changed.notify_all()

    async def releases_are(self, count: int) -> list[scheduler_pb.ReleaseRequest]:
        """Return once there were so many releases."""
        while len(self.releases) < count:
            await self.released.wait()
            self.released.clear()
        return self.releases

    async def WatchFleet(  # noqa: N802
        self, _request: scheduler_pb.WatchFleetRequest, _context: Any
    ) -> AsyncIterator[scheduler_pb.WatchFleetResponse]:
        while True:
            async with self._changed:
                yield scheduler_pb.WatchFleetResponse(fleet=self._fleet())
                await self._changed.wait()

    async def Place(  # noqa: N802
        self, request: scheduler_pb.PlaceRequest, _context: Any
    ) -> scheduler_pb.PlaceResponse:
        self.orders.append(request)
        self.callers.append(current_identity())
        self.placing.set()
        if self.gate is not None:
            await self._wait_at(self.gate)
        if self.refusal is not None:
            raise self.refusal
        return self._placed(request, self._pick(request))

    async def Release(  # noqa: N802
        self, request: scheduler_pb.ReleaseRequest, _context: Any
    ) -> scheduler_pb.ReleaseResponse:
        self.releases.append(request)
        self.released.set()
        return scheduler_pb.ReleaseResponse(released=True)

    async def DescribeRequest(  # noqa: N802
        self, request: ledger_pb.DescribeRequestRequest, _context: Any
    ) -> ledger_pb.DescribeRequestResponse:
        own = self.tenants.get(request.request_id) == current_identity().tenant_id
        decisions = [d for d in self._decisions if own and d.decision.request_id == request.request_id]
        leases = {d.decision.lease_id: d.decision for d in decisions}
        rows = [
            ledger_pb.UsageRow(
                lease_id=release.lease_id,
                request_id=request.request_id,
                attempt=leases[release.lease_id].attempt,
                finish_reason=release.finish_reason,
                usage=release.usage,
            )
            for release in self.releases
            if release.lease_id in leases
        ]
        return ledger_pb.DescribeRequestResponse(decisions=decisions, rows=rows)

    async def _wait_at(self, gate: asyncio.Event) -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.place_cancelled.set()
            raise

    def _fleet(self) -> scheduler_pb.Fleet:
        names = sorted({worker.spec.model for worker in self._workers})
        models = [scheduler_pb.FleetModel(name=name, price=PRICE) for name in names]
        return scheduler_pb.Fleet(scheduler_id="fake", workers=self._workers, models=models)

    def _pick(self, request: scheduler_pb.PlaceRequest) -> scheduler_pb.Worker:
        model = request.candidates[0].model
        for worker in self._workers:
            if worker.spec.model == model and worker.worker_id not in request.excluded_workers:
                return worker
        raise DownstackError(Reason.NO_HEALTHY_WORKER, f"no worker serves {model}", retry_after_s=2.0)

    def _placed(self, request: scheduler_pb.PlaceRequest, worker: scheduler_pb.Worker) -> scheduler_pb.PlaceResponse:
        now = Timestamp()
        now.GetCurrentTime()
        expires_at = Timestamp(seconds=now.seconds + 30)
        candidate = request.candidates[0]
        grant = scheduler_pb.LeaseGrant(
            lease_id=f"lse_{len(self.orders)}",
            request_id=request.request_id,
            attempt=request.attempt,
            tenant_id=request.tenant_id,
            worker_id=worker.worker_id,
            model=candidate.model,
            adapter=candidate.adapter,
            cache_salt=request.cache_salt,
            prompt_tokens=candidate.prompt_tokens,
            max_output_tokens=request.max_output_tokens,
            price=PRICE,
            expires_at=expires_at,
        )
        decision = decision_pb.Decision(
            request_id=request.request_id,
            attempt=request.attempt,
            lease_id=grant.lease_id,
            model=candidate.model,
            worker_id=worker.worker_id,
            reason="the first worker",
            queue_ms=1.5,
        )
        self.tenants[request.request_id] = request.tenant_id
        self._decisions.append(ledger_pb.DecidedPlacement(decision=decision, decided_at=now))
        return scheduler_pb.PlaceResponse(
            lease_id=grant.lease_id,
            endpoint=worker.endpoint,
            ticket=sign_ticket(grant, secret=self.secret),
            expires_at=expires_at,
            decision=decision,
        )
