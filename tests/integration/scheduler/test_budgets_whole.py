"""Budgets of the scheduler as it runs: on a real PostgreSQL and a real Kafka, and beside a second scheduler."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from downstack.local.kafka import LocalKafka
from downstack.scheduler.v1 import ledger_pb2, scheduler_pb2
from downstack.types.v1.usage_pb2 import Cost

from services.kit.errors import DownstackError, Reason
from services.kit.identity import Identity, internal_metadata
from services.kit.status import error_from_rpc
from tests.conftest import MakeDatabase
from tests.integration.scheduler.system import (
    CLOCK,
    PATIENCE_S,
    SECRET,
    Place,
    System,
    as_router,
    make_place,
    place_request,
    running,
    worker,
)

pytestmark = pytest.mark.timeout(240)
# What `place_request` can cost at the default price: 64 tokens in, 16 out.
MOST = 64 * 150 + 16 * 600
SPENT = 64 * 150 + 3 * 600


@pytest.fixture(scope="module")
async def place(make_database: MakeDatabase, kafka: LocalKafka, short_tmp: Path) -> Place:
    address = await make_database("services.kit.accounts")
    path = short_tmp / "budget-outbox"
    return await make_place(
        address, bootstrap=kafka.bootstrap, outbox_path=path, budget_refresh_s=0.1, settle_s=0.0, lost_grace_s=0.1
    )


@pytest.fixture(scope="module")
async def system(place: Place) -> AsyncIterator[System]:
    async with running(place) as made:
        yield made


def operator() -> Any:
    identity = Identity("", "operator", (), frozenset({"admin"}), "bootstrap")
    return internal_metadata("", identity=identity, secret=SECRET.encode(), now=CLOCK.now())


async def set_budget(system: System, tenant_id: str, nano: int, **changed: Any) -> ledger_pb2.BudgetStatus:
    request = ledger_pb2.SetBudgetRequest(
        tenant_id=tenant_id, period=ledger_pb2.BUDGET_PERIOD_MONTH, limit=Cost(nano_units=nano), **changed
    )
    return (await system.ledger.SetBudget(request, metadata=operator())).status


async def ask(system: System, request_id: str) -> scheduler_pb2.PlaceResponse | DownstackError:
    tenant = system.place.tenants[0]
    try:
        return await system.scheduler.Place(place_request(request_id, tenant), metadata=as_router(tenant), timeout=5)
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)


async def spend(system: System, request_id: str) -> None:
    """A lease that its worker runs for three tokens, and then is gone."""
    async with worker(system) as call:
        placed = await ask(system, request_id)
        assert isinstance(placed, scheduler_pb2.PlaceResponse)
        state = scheduler_pb2.LeaseState(
            lease_id=placed.lease_id,
            phase=scheduler_pb2.LEASE_PHASE_DECODING,
            usage={"input_total": 64, "input_cached": 0, "output_total": 3},
        )
        await call.write(scheduler_pb2.ConnectRequest(leases=scheduler_pb2.LeaseReport(leases=[state])))
        await call.done_writing()


async def until_spent(system: System, nano: int) -> ledger_pb2.BudgetStatus:
    """The tenant's first budget, once so much is spent of it and nothing is reserved."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await system.ledger.ListBudgets(ledger_pb2.ListBudgetsRequest(), metadata=system.key())
            status = found.budgets[0]
            if (status.spent.nano_units, status.reserved.nano_units) == (nano, 0):
                return status
            await asyncio.sleep(0.05)


async def test_a_spent_budget_refuses_here_elsewhere_and_after_a_restart(
    place: Place, system: System, short_tmp: Path
) -> None:
    """What is spent is what the ledger says, so every scheduler says the same, one that has just begun too."""
    tenant = place.tenants[0]
    limit = SPENT + MOST - 1
    await set_budget(system, tenant, limit)
    await spend(system, "req_a")
    await until_spent(system, SPENT)
    refused = await ask(system, "req_b")
    assert isinstance(refused, DownstackError)
    assert refused.reason is Reason.QUOTA_EXCEEDED
    assert refused.retry_after_s is not None
    assert 0 < refused.retry_after_s <= 31 * 86_400
    (total,) = (await system.rows(1)).totals
    assert total.cost.nano_units == SPENT == int(refused.metadata["spent_nano"])
    settings = place.settings.model_copy(update={"outbox_path": short_tmp / "budget-outbox-2"})
    async with running(Place(settings, place.tenants, place.keys)) as other:
        again = await ask(other, "req_c")
        assert isinstance(again, DownstackError)
        assert again.metadata["spent_nano"] == str(SPENT), "known before anything is granted"
        await set_budget(other, tenant, limit + 1)
        async with worker(system), asyncio.timeout(PATIENCE_S):
            while isinstance(found := await ask(system, "req_d"), DownstackError):
                assert found.reason is Reason.QUOTA_EXCEEDED
                await asyncio.sleep(0.05)


async def test_a_soft_budget_marks_the_decision(place: Place, system: System) -> None:
    """The placement goes through, and says that a budget is passed."""
    await set_budget(system, place.tenants[0], 10 * MOST)
    await set_budget(system, place.tenants[0], 0, soft=True)
    async with worker(system):
        placed = await ask(system, "req_e")
    assert isinstance(placed, scheduler_pb2.PlaceResponse)
    assert list(placed.decision.budget_warnings) == ["tenant per month"]


async def test_a_tenant_that_is_not_there_has_no_budget(system: System) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await set_budget(system, "00000000-0000-0000-0000-000000000000", 1)
    assert error_from_rpc(caught.value).reason is Reason.TENANT_NOT_FOUND
