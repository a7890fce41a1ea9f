"""What every engine does alike when its batch is full: order, and aborts in the queue."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.types.v1.chat_pb2 import Priority
from downstack.types.v1.usage_pb2 import FinishReason
from downstack.worker.v1.worker_pb2 import AbortRequest

from services.kit.errors import Reason
from services.kit.status import error_from_rpc
from tests.support.engine_features import Feature, lacks
from tests.support.prompts import greedy, prompt_of
from tests.support.worker_rig import Rig

pytestmark = pytest.mark.timeout(900)
SEATS = 8


@asynccontextmanager
async def full_batch(rig: Rig, *, first_ends: int) -> AsyncIterator[None]:
    """Every seat of the batch is taken inside the block; one is free after so many tokens, the others much later."""
    lengths = [first_ends] + [150] * (SEATS - 1)
    tasks = [
        asyncio.create_task(rig.generate(prompt_of(300 + seat, 20), greedy(length), max_output_tokens=length))
        for seat, length in enumerate(lengths)
    ]
    try:
        await rig.scheduler.until(lambda seen: seen.loads[-1].running_requests == SEATS, timeout_s=30)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await rig.until_idle(timeout_s=60)


async def until_waiting(rig: Rig, count: int) -> None:
    await rig.scheduler.until(lambda seen: seen.loads[-1].waiting_requests == count, timeout_s=30)


async def test_of_two_that_wait_the_urgent_one_goes_first(rig: Rig, kind: str) -> None:
    """It came later and starts earlier; an engine without priorities keeps the order of arrival."""
    started: list[str] = []

    async def run(name: str, priority: "Priority.ValueType") -> None:
        grant = rig.grant(prompt_of(320, 20), priority=priority)
        call = rig.stub.Generate(rig.request(prompt_of(320, 20), greedy(2), grant=grant))
        async for frame in call:
            if frame.WhichOneof("frame") == "delta" and name not in started:
                started.append(name)

    async with full_batch(rig, first_ends=40):
        patient = asyncio.create_task(run("patient", Priority.PRIORITY_BATCH))
        await until_waiting(rig, 1)
        urgent = asyncio.create_task(run("urgent", Priority.PRIORITY_INTERACTIVE))
        await until_waiting(rig, 2)
        await asyncio.gather(patient, urgent)
    assert sorted(started) == ["patient", "urgent"]
    assert (started[0] == "urgent") is not lacks(kind, Feature.PRIORITIES)


@pytest.mark.parametrize("how", ["revoked", "cancelled", "deadline"])
async def test_what_ends_in_the_queue_costs_nothing(rig: Rig, how: str) -> None:
    """The lease ends with its reason, no token is charged, and nothing waits any more."""
    grant = rig.grant(prompt_of(330, 200))
    async with full_batch(rig, first_ends=150):
        call = rig.stub.Generate(
            rig.request(prompt_of(330, 200), greedy(20), grant=grant), timeout=1.0 if how == "deadline" else 60
        )
        assert (await anext(aiter(call))).WhichOneof("frame") == "started"
        if how != "deadline":  # which does not wait for a report
            await until_waiting(rig, 1)
        await end(rig, call, grant, how=how)
        await rig.scheduler.until(lambda seen: grant.lease_id in seen.finished, timeout_s=30)
        await until_waiting(rig, 0)
    record = rig.usage(grant.lease_id)
    late = how == "deadline"
    wanted = FinishReason.FINISH_REASON_DEADLINE if late else FinishReason.FINISH_REASON_CANCELLED
    assert record.finish_reason == wanted
    assert record.usage.output_total == 0
    assert not record.usage.HasField("input_total")
    assert record.cost.nano_units == 0


async def end(rig: Rig, call: "grpc.aio.UnaryStreamCall", grant: LeaseGrant, *, how: str) -> None:
    """Ends a stream that has not brought a token yet."""
    if how == "cancelled":
        call.cancel()
        return
    if how == "revoked":
        request = AbortRequest(lease_ids=[grant.lease_id])
        assert (await rig.stub.Abort(request, metadata=rig.metadata())).aborted == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    wanted = {"revoked": Reason.CLIENT_CANCELLED, "deadline": Reason.DEADLINE_IN_GENERATION}
    assert error_from_rpc(caught.value).reason == wanted[how]
