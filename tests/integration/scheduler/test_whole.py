"""The scheduler as it runs: its wiring on a real PostgreSQL and a real Kafka, called over gRPC with API keys."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from downstack.local.kafka import LocalKafka
from downstack.scheduler.v1 import ledger_pb2, scheduler_pb2

from services.kit.identity import Identity
from services.kit.pg.pool import Database
from services.kit.tickets import verify_ticket
from tests.conftest import MakeDatabase
from tests.integration.scheduler.arrange import usage
from tests.integration.scheduler.system import (
    PATIENCE_S,
    SECRET,
    Place,
    System,
    as_router,
    make_place,
    place_request,
    publish,
    running,
    worker,
)


@pytest.fixture(scope="module")
async def place(make_database: MakeDatabase, kafka: LocalKafka, short_tmp: Path) -> Place:
    address = await make_database("services.kit.accounts")
    return await make_place(address, bootstrap=kafka.bootstrap, outbox_path=short_tmp / "whole-scheduler-outbox")


@pytest.fixture(scope="module")
async def system(place: Place) -> AsyncIterator[System]:
    async with running(place) as made:
        yield made


async def test_from_the_lease_to_the_ledger(system: System) -> None:
    """A lease that the scheduler closes itself reaches the ledger through outbox and Kafka, and its tenant only."""
    tenant = system.place.tenants[0]
    async with worker(system) as call:
        unused = await system.scheduler.Place(place_request("req_a", tenant), metadata=as_router(tenant), timeout=5)
        release = scheduler_pb2.ReleaseRequest(lease_id=unused.lease_id, finish_reason=6)  # type: ignore[arg-type]
        assert (await system.scheduler.Release(release, metadata=as_router(tenant), timeout=5)).released
        ran = await system.scheduler.Place(place_request("req_b", tenant), metadata=as_router(tenant), timeout=5)
        state = scheduler_pb2.LeaseState(
            lease_id=ran.lease_id,
            phase=scheduler_pb2.LEASE_PHASE_DECODING,
            usage={"input_total": 64, "input_cached": 0, "output_total": 3},
        )
        await call.write(scheduler_pb2.ConnectRequest(leases=scheduler_pb2.LeaseReport(leases=[state])))
        load = scheduler_pb2.LoadReport(running_requests=7, serving=True)
        await call.write(scheduler_pb2.ConnectRequest(load=load))
        await _seen(system, running=7)
    (total,) = (await system.rows(2)).totals
    assert (total.rows, total.requests) == (2, 2)
    assert (total.input_tokens, total.output_tokens) == (64, 3)
    assert total.cost.nano_units == 64 * 150 + 3 * 600
    listed = await system.ledger.ListUsage(ledger_pb2.ListUsageRequest(), metadata=system.key())
    assert {row.lease_id for row in listed.rows} == {unused.lease_id, ran.lease_id}
    assert not (await system.ledger.GetUsage(ledger_pb2.GetUsageRequest(), metadata=system.key(1))).totals


async def _seen(system: System, *, running: int) -> None:
    """Return when the fleet shows a load, and so has taken in what its worker said before it."""
    call = system.scheduler.WatchFleet(
        scheduler_pb2.WatchFleetRequest(interval={"nanos": 100_000_000}), metadata=system.key(), timeout=10
    )
    fleet = (await call.read()).fleet
    while [each.load.running_requests for each in fleet.workers] != [running]:
        fleet = (await call.read()).fleet
    call.cancel()


async def test_the_decision_reaches_the_ledger(place: Place, system: System) -> None:
    """A request can be explained by a scheduler that did not decide it, and its lease closed: all is in the tables."""
    tenant = place.tenants[0]
    async with worker(system):
        request = place_request("req_c", tenant)
        request.cache_salt = "a salt"
        placed = await system.scheduler.Place(request, metadata=as_router(tenant), timeout=5)
    await system.rows(3)
    async with Database.open(place.settings.postgres_dsn.get_secret_value()) as db, asyncio.timeout(PATIENCE_S):
        statement = "SELECT lease_id, lease_grant FROM ledger.decisions WHERE request_id = 'req_c'"
        found = []
        while not found:
            async with db.transaction(Identity(tenant, "tests", (), frozenset(), "")) as connection:
                found = await connection.fetch(statement)
            await asyncio.sleep(0.05)
    assert [row["lease_id"] for row in found] == [placed.lease_id]
    kept, ticket = (
        scheduler_pb2.LeaseGrant.FromString(found[0]["lease_grant"]),
        verify_ticket(placed.ticket, secret=SECRET.encode()),
    )
    assert (kept.cache_salt, ticket.cache_salt) == ("", "a salt")
    for grant in (kept, ticket):  # their times are read from the clocks one after the other
        for field in ("granted_at", "expires_at", "cache_salt"):
            grant.ClearField(field)
    assert kept == ticket
    about = ledger_pb2.DescribeRequestRequest(request_id="req_c")
    explained = await system.ledger.DescribeRequest(about, metadata=system.key())
    assert [each.decision.lease_id for each in explained.decisions] == [placed.lease_id]
    assert explained.decisions[0].decision.reason.startswith("w1 holds none of the prompt")


async def test_a_record_delivered_twice_counts_once(place: Place, system: System, short_tmp: Path) -> None:
    """A worker's record that comes again through Kafka, and the scheduler's own of the same lease, leave one row."""
    tenant = place.tenants[1]
    events = [usage(f"lse_{n}", tenant) for n in range(3)]
    await publish(place, short_tmp / "whole-worker-outbox", *events, *events, usage("lse_last", tenant))
    (total,) = (await system.rows(4, number=1)).totals
    assert (total.rows, total.input_tokens) == (4, 400)
