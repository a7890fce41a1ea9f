"""The scheduler as it runs: its wiring on a real PostgreSQL and a real Kafka, called over gRPC with API keys."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from downstack.local.kafka import LocalKafka
from downstack.local.postgres import DatabaseAddress
from downstack.scheduler.v1 import ledger_pb2, scheduler_pb2
from downstack.scheduler.v1.ledger_pb2_grpc import LedgerServiceStub
from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub

from services.kit.accounts.store import AccountStore
from services.kit.channel import open_channel
from services.kit.clock import SystemClock
from services.kit.events.outbox import Outbox
from services.kit.events.relay import Relay
from services.kit.identity import Identity, internal_metadata
from services.kit.pg.pool import Database
from services.kit.server import serving
from services.scheduler.settings import SchedulerSettings
from services.scheduler.wiring import wire
from tests.conftest import MakeDatabase
from tests.integration.scheduler.arrange import usage

SECRET, PEPPER = "a secret of the whole scheduler", "a pepper of the whole scheduler"
CLOCK = SystemClock()
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Place:
    """Where everything is, and two tenants with a key each."""

    settings: SchedulerSettings
    tenants: tuple[str, str]
    keys: tuple[str, str]


@dataclass
class System:
    channel: grpc.aio.Channel
    place: Place

    @property
    def scheduler(self) -> Any:
        return SchedulerServiceStub(self.channel)

    @property
    def ledger(self) -> Any:
        return LedgerServiceStub(self.channel)

    def key(self, number: int = 0) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.place.keys[number]}"),)

    async def rows(self, count: int, number: int = 0) -> ledger_pb2.GetUsageResponse:
        """The one total, once the ledger has that many rows."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await self.ledger.GetUsage(ledger_pb2.GetUsageRequest(), metadata=self.key(number))
                if sum(total.rows for total in found.totals) >= count:
                    return found
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
async def place(make_database: MakeDatabase, kafka: LocalKafka, short_tmp: Path) -> Place:
    address = await make_database("services.kit.accounts")
    settings = SchedulerSettings(
        listen="127.0.0.1:0",
        service_secret=SECRET,
        postgres_dsn=address.app_dsn,
        postgres_owner_dsn=address.owner_dsn,
        kafka_bootstrap=kafka.bootstrap,
        outbox_path=short_tmp / "whole-scheduler-outbox",
        key_pepper=PEPPER,
        drain_s=1.0,
        lost_grace_s=0.3,
        tick_s=0.02,
    )
    tenants, keys = await _accounts(address)
    return Place(settings, tenants, keys)


async def _accounts(address: DatabaseAddress) -> tuple[tuple[str, str], tuple[str, str]]:
    async with Database.open(address.app_dsn) as db:
        store = AccountStore(db, pepper=PEPPER.encode(), clock=CLOCK)
        made = [(await store.create_tenant(name), await store.create_key(name)) for name in ("one", "two")]
    (one, first), (two, second) = made
    return (str(one.tenant_id), str(two.tenant_id)), (first.secret, second.secret)


@asynccontextmanager
async def running(place: Place) -> AsyncIterator[System]:
    """The scheduler from its wiring, its tasks included, until the block ends."""
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(wire(place.settings))
        server = await stack.enter_async_context(serving(parts, place.settings))
        tasks = [asyncio.ensure_future(task()) for task in parts.tasks]
        try:
            async with open_channel(server.address) as channel:
                yield System(channel, place)
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


@pytest.fixture(scope="module")
async def system(place: Place) -> AsyncIterator[System]:
    async with running(place) as made:
        yield made


def as_router(tenant_id: str) -> tuple[tuple[str, str], ...]:
    identity = Identity(tenant_id, "someone", (), frozenset(), "key00001")
    return internal_metadata("router", identity=identity, secret=SECRET.encode(), now=CLOCK.now())


def place_request(request_id: str, tenant_id: str) -> scheduler_pb2.PlaceRequest:
    candidate = scheduler_pb2.ModelCandidate(model="m", prompt_tokens=64)
    return scheduler_pb2.PlaceRequest(
        request_id=request_id, attempt=1, tenant_id=tenant_id, candidates=[candidate], max_output_tokens=16
    )


@asynccontextmanager
async def worker(system: System) -> AsyncIterator[Any]:
    metadata = internal_metadata("worker", identity=None, secret=SECRET.encode(), now=CLOCK.now())
    call = system.scheduler.Connect(metadata=metadata)
    spec = scheduler_pb2.WorkerSpec(model="m", context_tokens=1024, block_size=16, kv_blocks=64, max_num_seqs=4)
    hello = scheduler_pb2.Hello(worker_id="w1", epoch="e1", endpoint="w1:1", spec=spec)
    await call.write(scheduler_pb2.ConnectRequest(hello=hello))
    assert (await call.read()).WhichOneof("message") == "welcome"
    try:
        yield call
    finally:
        call.cancel()


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
    """A request can be explained by a scheduler that did not decide it: the decision is in the tables."""
    tenant = place.tenants[0]
    async with worker(system):
        placed = await system.scheduler.Place(place_request("req_c", tenant), metadata=as_router(tenant), timeout=5)
    await system.rows(3)
    async with Database.open(place.settings.postgres_dsn.get_secret_value()) as db, asyncio.timeout(PATIENCE_S):
        statement = "SELECT lease_id FROM ledger.decisions WHERE request_id = 'req_c'"
        found = []
        while not found:
            async with db.transaction(Identity(tenant, "tests", (), frozenset(), "")) as connection:
                found = await connection.fetch(statement)
            await asyncio.sleep(0.05)
    assert [row["lease_id"] for row in found] == [placed.lease_id]
    request = ledger_pb2.DescribeRequestRequest(request_id="req_c")
    explained = await system.ledger.DescribeRequest(request, metadata=system.key())
    assert [each.decision.lease_id for each in explained.decisions] == [placed.lease_id]
    assert explained.decisions[0].decision.reason.startswith("w1 holds none of the prompt")


async def test_a_record_delivered_twice_counts_once(place: Place, system: System, short_tmp: Path) -> None:
    """A worker's record that comes again through Kafka, and the scheduler's own of the same lease, leave one row."""
    tenant = place.tenants[1]
    events = [usage(f"lse_{n}", tenant) for n in range(3)]
    path = short_tmp / "whole-worker-outbox"
    async with Outbox.open(path, max_events=100, max_bytes=1_000_000) as outbox:
        relay = asyncio.create_task(Relay(outbox, bootstrap=place.settings.kafka_bootstrap).run())
        await outbox.append(*events, *events)
        await outbox.append(usage("lse_last", tenant))
        await system.rows(4, number=1)
        relay.cancel()
        with suppress(asyncio.CancelledError):
            await relay
    (total,) = (await system.rows(4, number=1)).totals
    assert (total.rows, total.input_tokens) == (4, 400)
