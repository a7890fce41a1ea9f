"""Places requests, releases leases and reads the ledger over gRPC."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio
from downstack.scheduler.v1 import ledger_pb2 as ledger_pb
from downstack.scheduler.v1 import scheduler_pb2 as scheduler_pb
from downstack.scheduler.v1.ledger_pb2_grpc import LedgerServiceStub
from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from downstack.types.v1 import chat_pb2 as chat_pb

from services.kit.clock import Clock
from services.kit.identity import Identity, internal_metadata
from services.kit.status import error_from_rpc
from services.router.adapters.wire_answer import (
    cost_of,
    finish_reason_of,
    finish_reason_to,
    timings_of,
    usage_of,
    usage_to,
)
from services.router.adapters.wire_request import ns_of
from services.router.domain.explanation import Billed, Placed
from services.router.domain.outcome import FinishReason, Usage
from services.router.ports import Placement, PlaceOrder

if TYPE_CHECKING:
    # The asynchronous stubs exist for the type checker only.
    from downstack.scheduler.v1.ledger_pb2_grpc import LedgerServiceAsyncStub
    from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceAsyncStub


class SchedulerClient:
    """The scheduler at one address, and the ledger that it serves."""

    def __init__(self, channel: grpc.aio.Channel, *, secret: bytes, clock: Clock, release_timeout_s: float) -> None:
        self._scheduler = cast("SchedulerServiceAsyncStub", SchedulerServiceStub(channel))
        self._ledger = cast("LedgerServiceAsyncStub", LedgerServiceStub(channel))
        self._secret = secret
        self._clock = clock
        self._release_timeout_s = release_timeout_s

    async def place(self, identity: Identity, order: PlaceOrder, *, timeout_s: float) -> Placement:
        try:
            response = await self._scheduler.Place(
                _order_to(identity, order), timeout=timeout_s, metadata=self._metadata(identity)
            )
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return Placement(
            lease_id=response.lease_id,
            endpoint=response.endpoint,
            ticket=response.ticket,
            expires_at_ns=ns_of(response.expires_at),
            model=order.name,
            worker_id=response.decision.worker_id,
            queue_ms=response.decision.queue_ms,
            record=response.decision,
        )

    async def release(self, identity: Identity, *, lease_id: str, finish_reason: FinishReason, usage: Usage) -> None:
        request = scheduler_pb.ReleaseRequest(
            lease_id=lease_id, finish_reason=finish_reason_to(finish_reason), usage=usage_to(usage)
        )
        try:
            await self._scheduler.Release(request, timeout=self._release_timeout_s, metadata=self._metadata(identity))
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    async def describe(
        self, identity: Identity, *, request_id: str, timeout_s: float
    ) -> tuple[Sequence[Placed], Sequence[Billed]]:
        request = ledger_pb.DescribeRequestRequest(request_id=request_id)
        try:
            response = await self._ledger.DescribeRequest(request, timeout=timeout_s, metadata=self._metadata(identity))
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return [_placed_of(d) for d in response.decisions], [_billed_of(row) for row in response.rows]

    def _metadata(self, identity: Identity) -> tuple[tuple[str, str], ...]:
        return internal_metadata("router", identity=identity, secret=self._secret, now=self._clock.now())


def _order_to(identity: Identity, order: PlaceOrder) -> scheduler_pb.PlaceRequest:
    candidate = scheduler_pb.ModelCandidate(
        model=order.model,
        adapter=order.adapter,
        prompt_tokens=order.prompt_tokens,
        block_size=order.block_size,
        block_hashes=order.block_hashes,
    )
    return scheduler_pb.PlaceRequest(
        request_id=order.request_id,
        attempt=order.attempt,
        tenant_id=identity.tenant_id,
        key_id=identity.key_id,
        priority=cast("chat_pb.Priority.ValueType", order.priority),
        candidates=[candidate],
        max_output_tokens=order.max_output_tokens,
        cache_salt=order.cache_salt,
        excluded_workers=order.excluded_workers,
        conversation_id=order.conversation_id,
        labels=dict(order.labels),
        value=order.value,
        max_cost=order.max_cost,
        min_quality=order.min_quality,
        retrieved_tokens=order.retrieved_tokens,
        answers=order.answers,
    )


def _placed_of(decided: ledger_pb.DecidedPlacement) -> Placed:
    return Placed(
        lease_id=decided.decision.lease_id,
        attempt=decided.decision.attempt,
        decided_at_ns=ns_of(decided.decided_at),
        record=decided.decision,
    )


def _billed_of(row: ledger_pb.UsageRow) -> Billed:
    return Billed(
        lease_id=row.lease_id,
        attempt=row.attempt,
        model=row.model,
        worker_id=row.worker_id,
        finish_reason=finish_reason_of(row.finish_reason),
        usage=usage_of(row.usage),
        cost=cost_of(row.cost) if row.HasField("cost") else None,
        timings=timings_of(row.timings),
    )
