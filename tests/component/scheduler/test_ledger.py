"""LedgerService over gRPC, on a ledger in memory."""

from typing import Any

import pytest
from downstack.scheduler.v1 import ledger_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import Reason
from services.scheduler.domain.lease import Usage
from services.scheduler.domain.ledger import Times, UsageEntry
from tests.component.scheduler.world import (
    OTHER_TENANT,
    TENANT,
    World,
    as_service,
    as_tenant,
    connected,
    refused,
)

READER = "usage"
DAY_S = 86_400


def entry(number: int, **changed: Any) -> UsageEntry:
    fields: dict[str, Any] = {
        "lease_id": f"lse_{number:04}",
        "request_id": f"req_{number // 2}",
        "attempt": number % 2 + 1,
        "key_id": "key00001",
        "model": "m",
        "requested_model": "m",
        "worker_id": "w1",
        "worker_epoch": "e1",
        "engine": "sim",
        "usage": Usage(input_total=100, input_cached=40, output_total=10),
        "cost_nano": 3_000_000_000_000,
        "currency": "USD",
        "price_version": "1",
        "finish": "stop",
        "source": "engine",
        "times": Times(ttft_ms=12.5),
        "gpu_seconds": None,
        "predicted_cached_tokens": 48,
        "granted_at": 1_800_000_000.0 + number,
        "started_at": None,
        "finished_at": 1_800_000_000.0 + number,
        "labels": {"team": "a"},
    }
    return UsageEntry(**{**fields, **changed})


@pytest.fixture
async def filled(world: World) -> World:
    await world.ledger.add_usage(TENANT, [entry(n, model="m" if n % 2 else "n") for n in range(5)])
    await world.ledger.add_usage(OTHER_TENANT, [entry(9, lease_id="lse_other")])
    return world


def reader(tenant_id: str = TENANT) -> Any:
    return as_tenant(tenant_id, READER)


async def test_totals(filled: World) -> None:
    """Sums are exact, grouped as asked, and of the caller's tenant."""
    stub = filled.ledger_stub
    (total,) = (await stub.GetUsage(pb.GetUsageRequest(), metadata=reader())).totals
    assert (total.group, total.requests, total.rows) == ("", 3, 5)
    assert (total.input_tokens, total.cached_tokens, total.output_tokens) == (500, 200, 50)
    assert (total.cost.nano_units, total.cost.currency) == (15_000_000_000_000, "USD")
    by_model = await stub.GetUsage(pb.GetUsageRequest(group_by=pb.USAGE_GROUP_MODEL), metadata=reader())
    assert [(each.group, each.rows) for each in by_model.totals] == [("m", 2), ("n", 3)]
    one = pb.UsageFilter(model="m", **{"from": Timestamp(seconds=1_800_000_002)})
    filtered = await stub.GetUsage(pb.GetUsageRequest(filter=one), metadata=reader())
    assert filtered.totals[0].rows == 1


async def test_pages(filled: World) -> None:
    """A list is walked to its end, newest first; a token serves its own tenant and filter only."""
    stub, seen, token = filled.ledger_stub, [], ""
    while True:
        request = pb.ListUsageRequest(page_size=2, page_token=token)
        page = await stub.ListUsage(request, metadata=reader())
        seen += [row.lease_id for row in page.rows]
        token = page.next_page_token or ""
        if not token:
            break
        first_token = token
        for wrong, caller in (
            (pb.ListUsageRequest(page_token=token), OTHER_TENANT),
            (pb.ListUsageRequest(page_token=token, filter=pb.UsageFilter(model="m")), TENANT),
            (pb.ListUsageRequest(page_token=first_token[:-1]), TENANT),
            (pb.ListUsageRequest(page_token="made up"), TENANT),
            (pb.ListUsageRequest(page_size=1001), TENANT),
        ):
            error = await refused(stub.ListUsage(wrong, metadata=reader(caller)))
            assert error.reason is Reason.PARAM_OUT_OF_RANGE
    assert seen == [f"lse_{n:04}" for n in (4, 3, 2, 1, 0)]


async def test_a_request_is_described(filled: World) -> None:
    """Decisions that the ledger has not seen yet come from the scheduler's memory; rows come first to last."""
    stub = filled.ledger_stub
    async with connected(filled):
        placed = await filled.place()
    found = await stub.DescribeRequest(pb.DescribeRequestRequest(request_id="req_1"), metadata=reader())
    assert [each.decision.lease_id for each in found.decisions] == [placed.lease_id]
    assert found.decisions[0].decided_at.seconds > 0
    assert [row.attempt for row in found.rows] == [1, 2]
    assert found.rows[0].timings.ttft_ms == 12.5
    assert not found.rows[0].timings.HasField("tpot_ms"), "what is unknown is absent"
    for request_id, caller in (("req_1", OTHER_TENANT), ("req_none", TENANT)):
        call = stub.DescribeRequest(pb.DescribeRequestRequest(request_id=request_id), metadata=reader(caller))
        assert (await refused(call)).reason is Reason.REQUEST_NOT_FOUND


async def test_who_may_read(filled: World) -> None:
    """A key needs the scope, an operator has no tenant; the router reads for the tenant it acts for."""
    stub = filled.ledger_stub
    error = await refused(stub.GetUsage(pb.GetUsageRequest(), metadata=as_tenant(TENANT, "generate")))
    assert error.reason is Reason.ACTION_NOT_ALLOWED
    error = await refused(stub.GetUsage(pb.GetUsageRequest(), metadata=as_service("router")))
    assert error.reason is Reason.ACTION_NOT_ALLOWED
    found = await stub.GetUsage(pb.GetUsageRequest(), metadata=as_service("router", OTHER_TENANT))
    assert found.totals[0].rows == 1


@pytest.mark.parametrize(
    "request_message",
    [
        pb.GetUsageRequest(group_by=99),  # type: ignore[arg-type]
        pb.GetUsageRequest(filter=pb.UsageFilter(model="a\0b")),
        pb.GetUsageRequest(filter=pb.UsageFilter(to=Timestamp(seconds=-1))),
        pb.GetUsageRequest(filter=pb.UsageFilter(to=Timestamp(seconds=10**12))),
    ],
)
async def test_bad_questions(filled: World, request_message: pb.GetUsageRequest) -> None:
    error = await refused(filled.ledger_stub.GetUsage(request_message, metadata=reader()))
    assert error.reason is Reason.PARAM_OUT_OF_RANGE
