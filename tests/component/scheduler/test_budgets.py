"""Budgets over gRPC: who sets and sees them, what a refusal says, and what is warned of."""

from typing import Any

import grpc.aio
import pytest
from downstack.scheduler.v1 import ledger_pb2 as pb
from downstack.scheduler.v1 import scheduler_pb2 as place_pb
from downstack.types.v1.usage_pb2 import Cost
from google.rpc import error_details_pb2, status_pb2

from services.kit.errors import Reason
from tests.component.scheduler.world import (
    OTHER_TENANT,
    TENANT,
    World,
    as_service,
    as_tenant,
    connected,
    place_request,
    refused,
    until,
)

DAY = pb.BUDGET_PERIOD_DAY
# What `place_request` can cost at the default price: 64 tokens in, 32 out.
MOST = 64 * 150 + 32 * 600
STARTED, FINISHED = place_pb.LEASE_PHASE_STARTED, place_pb.LEASE_PHASE_FINISHED


def operator() -> Any:
    return as_tenant(OTHER_TENANT, "admin")


def reader(tenant_id: str = TENANT) -> Any:
    return as_tenant(tenant_id, "usage")


async def set_budget(world: World, nano: int, **changed: Any) -> pb.BudgetStatus:
    fields: dict[str, Any] = {"tenant_id": TENANT, "period": DAY, "limit": Cost(nano_units=nano)}
    request = pb.SetBudgetRequest(**{**fields, **changed})
    return (await world.ledger_stub.SetBudget(request, metadata=operator())).status


async def budgets(world: World, caller: Any = None, **changed: Any) -> list[pb.BudgetStatus]:
    found = await world.ledger_stub.ListBudgets(pb.ListBudgetsRequest(**changed), metadata=caller or reader())
    return list(found.budgets)


async def test_a_hard_budget_refuses_before_any_work(world: World) -> None:
    """What is reserved counts at once, what was not used is given back, and what was spent stays."""
    async with connected(world) as worker:
        status = await set_budget(world, 2 * MOST - 1)
        assert (status.spent.nano_units, status.reserved.nano_units) == (0, 0)
        first = await world.place()
        (status,) = await budgets(world)
        assert status.reserved.nano_units == MOST
        error = await refused(world.place(place_request("req_2")))
        assert error.reason is Reason.QUOTA_EXCEEDED
        assert error.retry_after_s == 1.0, "what is reserved may be given back soon"
        await worker.report(first.lease_id, FINISHED, input_total=64, input_cached=0, output_total=2)
        await worker.hear("acknowledge")
        (status,) = await budgets(world)
        assert (status.spent.nano_units, status.reserved.nano_units) == (64 * 150 + 2 * 600, 0)
        second = await world.place(place_request("req_2"))
        await world.release(second.lease_id, reason=6)
        assert (await budgets(world))[0].reserved.nano_units == 0
    assert len(world.journal.decisions) == 2


async def test_a_refusal_says_how_much_is_left_and_until_when(world: World) -> None:
    """The status carries the reason, whose quota failed, and when a repetition has a chance."""
    async with connected(world):
        status = await set_budget(world, MOST - 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.place()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    packed = [value for key, value in caught.value.trailing_metadata() or () if key == "grpc-status-details-bin"]
    found = status_pb2.Status.FromString(bytes(packed[0]))
    info, retry, quota = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
    for detail in found.details:
        for message in (info, retry, quota):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    assert info.reason == "QUOTA_EXCEEDED"
    assert info.metadata["limit_nano"] == str(MOST - 1)
    assert info.metadata["request_nano"] == str(MOST)
    assert info.metadata["period_ends"] == status.period_end.ToJsonString()
    assert quota.violations[0].subject == f"tenant:{TENANT}"
    left_s = (status.period_end.ToDatetime() - status.period_start.ToDatetime()).total_seconds()
    assert 0 < retry.retry_delay.seconds <= left_s == 86_400


async def test_several_answers_are_reserved_for(world: World) -> None:
    """A request for three answers may cost three times its output."""
    async with connected(world):
        await set_budget(world, MOST + 2 * 32 * 600 - 1)
        error = await refused(world.place(place_request(answers=3)))
        assert error.reason is Reason.QUOTA_EXCEEDED
        await world.place(place_request("req_2", answers=2))
        error = await refused(world.place(place_request("req_3", answers=9)))
        assert error.reason is Reason.PARAM_OUT_OF_RANGE


async def test_a_soft_budget_warns(world: World) -> None:
    """The decision is marked, each time; the audit stream tells once that it is passed."""
    async with connected(world):
        await set_budget(world, MOST, soft=True, model="m")
        assert not (await world.place()).decision.budget_warnings
        for number in (2, 3):
            placed = await world.place(place_request(f"req_{number}"))
            assert list(placed.decision.budget_warnings) == ["tenant on m per day"]
    assert [each.budget_warnings for each in world.journal.decisions] == [(), *[("tenant on m per day",)] * 2]
    await until(lambda: world.journal.passed)
    (record,) = world.journal.passed
    assert (record.status.spent_nano, record.status.reserved_nano) == (0, 2 * MOST)


async def test_another_model_may_still_be_affordable(world: World) -> None:
    """Of several offers, those within their budgets are placed; the record says why not the others."""
    async with connected(world), connected(world, hello_of("w2", "n")):
        await set_budget(world, 0, model="m")
        offers = [place_pb.ModelCandidate(model=model, prompt_tokens=64) for model in ("m", "n")]
        placed = await world.place(place_request(candidates=offers))
        assert placed.decision.model == "n"
        assert {each.model: each.filtered_by for each in placed.decision.candidates} == {"n": "", "m": "budget"}
        assert (await refused(world.place(place_request("req_2")))).reason is Reason.QUOTA_EXCEEDED


def hello_of(worker_id: str, model: str) -> place_pb.Hello:
    spec = place_pb.WorkerSpec(model=model, context_tokens=4096, block_size=16, kv_blocks=1024, max_num_seqs=4)
    return place_pb.Hello(worker_id=worker_id, epoch="e1", endpoint=f"{worker_id}:1", spec=spec)


async def test_a_lease_of_another_scheduler_counts(world: World) -> None:
    """What a worker runs for somebody else is reserved here as soon as it reports it, and settled when it ends."""
    await set_budget(world, 2 * MOST)
    async with connected(world) as worker:
        mine = await world.place()
        grant = place_pb.LeaseGrant(
            lease_id="lse_foreign",
            request_id="req_9",
            attempt=1,
            tenant_id=TENANT,
            worker_id="w1",
            worker_epoch="e1",
            model="m",
            prompt_tokens=64,
            max_output_tokens=32,
            price={"currency": "USD", "input_nano": 150, "cached_nano": 75, "output_nano": 600},
            granted_at=mine.expires_at,
            expires_at=mine.expires_at,
        )
        state = place_pb.LeaseState(lease_id="lse_foreign", phase=STARTED, grant=grant)
        await worker.say(leases=place_pb.LeaseReport(leases=[state]))
        await until(lambda: world.scheduler.brain.book.get("lse_foreign"))
        assert (await budgets(world))[0].reserved.nano_units == 2 * MOST
        assert (await refused(world.place(place_request("req_2")))).reason is Reason.QUOTA_EXCEEDED
        await worker.report("lse_foreign", FINISHED, input_total=64, input_cached=64, output_total=1)
        await worker.hear("acknowledge")
        assert (await budgets(world))[0].spent.nano_units == 64 * 75 + 600


async def test_who_sets_and_who_sees(world: World) -> None:
    """An operator sets and sees all; a tenant sees its own; each change leaves a record."""
    stub = world.ledger_stub
    await set_budget(world, 5)
    await set_budget(world, 6, soft=True)
    await set_budget(world, 7, tenant_id=OTHER_TENANT, period=pb.BUDGET_PERIOD_MONTH, key_id="key00001")
    for caller in (reader(), as_service("router", TENANT), as_tenant(TENANT, "generate")):
        request = pb.SetBudgetRequest(tenant_id=TENANT, period=DAY, limit=Cost(nano_units=9))
        assert (await refused(stub.SetBudget(request, metadata=caller))).reason is Reason.ACTION_NOT_ALLOWED
    assert [each.budget.limit.nano_units for each in await budgets(world)] == [5, 6]
    assert [each.budget.limit.nano_units for each in await budgets(world, reader(OTHER_TENANT))] == [7]
    assert [each.budget.limit.nano_units for each in await budgets(world, operator())] == [5, 6, 7]
    assert len(await budgets(world, operator(), tenant_id=TENANT)) == 2
    foreign = stub.ListBudgets(pb.ListBudgetsRequest(tenant_id=OTHER_TENANT), metadata=reader())
    assert (await refused(foreign)).reason is Reason.ACTION_NOT_ALLOWED
    request = pb.RemoveBudgetRequest(tenant_id=TENANT, period=DAY)
    assert [(await stub.RemoveBudget(request, metadata=operator())).removed for _ in range(2)] == [True, False]
    assert [each.budget.soft for each in await budgets(world)] == [True]
    assert [action for action, _ in world.journal.changes] == ["budget.set"] * 3 + ["budget.remove"]


async def test_budgets_are_listed_in_pages(world: World) -> None:
    """A list is walked to its end; a token serves its own question only."""
    for number in range(5):
        await set_budget(world, number, model=f"m{number}")
    stub, seen, token = world.ledger_stub, [], ""
    while True:
        request = pb.ListBudgetsRequest(page_size=2, page_token=token)
        page = await stub.ListBudgets(request, metadata=reader())
        seen += [each.budget.model for each in page.budgets]
        if not page.next_page_token:
            break
        token = page.next_page_token
    assert seen == [f"m{number}" for number in range(5)]
    wrong = stub.ListBudgets(pb.ListBudgetsRequest(page_token=token), metadata=reader(OTHER_TENANT))
    assert (await refused(wrong)).reason is Reason.PARAM_OUT_OF_RANGE


@pytest.mark.parametrize(
    "changed",
    [
        {"tenant_id": "nobody"},
        {"period": 0},
        {"period": 9},
        {"limit": None},
        {"limit": Cost(nano_units=-1)},
        {"limit": Cost(nano_units=1, currency="EUR")},
        {"model": "a\0b"},
        {"key_id": "k" * 257},
    ],
)
async def test_budgets_that_cannot_be(world: World, changed: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"tenant_id": TENANT, "period": DAY, "limit": Cost(nano_units=1)}
    request = pb.SetBudgetRequest(**{**fields, **changed})
    error = await refused(world.ledger_stub.SetBudget(request, metadata=operator()))
    assert error.reason is Reason.PARAM_OUT_OF_RANGE
    assert await budgets(world) == []


async def test_while_the_store_is_away_what_is_known_is_kept_to(world: World) -> None:
    """A budget cannot be changed then, but goes on refusing."""
    async with connected(world):
        await set_budget(world, MOST)
        world.budgets.away = True
        await world.place()
        assert (await refused(world.place(place_request("req_2")))).reason is Reason.QUOTA_EXCEEDED
        request = pb.RemoveBudgetRequest(tenant_id=TENANT, period=DAY)
        call = world.ledger_stub.RemoveBudget(request, metadata=operator())
        assert (await refused(call)).reason is Reason.DEPENDENCY_UNAVAILABLE
        assert len(await budgets(world)) == 1
