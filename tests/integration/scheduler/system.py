"""The scheduler as it runs, on a real PostgreSQL and a real Kafka, and the routers, workers and readers around it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from downstack.local.postgres import DatabaseAddress
from downstack.scheduler.v1 import ledger_pb2, scheduler_pb2
from downstack.scheduler.v1.ledger_pb2_grpc import LedgerServiceStub
from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub

from services.kit.accounts.store import AccountStore
from services.kit.channel import open_channel
from services.kit.clock import SystemClock
from services.kit.events.event import Event
from services.kit.events.outbox import Outbox
from services.kit.events.relay import Relay
from services.kit.identity import Identity, internal_metadata
from services.kit.pg.pool import Database
from services.kit.server import serving
from services.scheduler.settings import SchedulerSettings
from services.scheduler.wiring import wire

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


async def make_place(address: DatabaseAddress, *, bootstrap: str, outbox_path: Path, **changed: Any) -> Place:
    """The settings of a scheduler on a database with accounts, with short times."""
    fields: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "service_secret": SECRET,
        "postgres_dsn": address.app_dsn,
        "postgres_owner_dsn": address.owner_dsn,
        "kafka_bootstrap": bootstrap,
        "outbox_path": outbox_path,
        "key_pepper": PEPPER,
        "drain_s": 1.0,
        "lost_grace_s": 0.3,
        "tick_s": 0.02,
    }
    tenants, keys = await accounts(address)
    return Place(SchedulerSettings(**{**fields, **changed}), tenants, keys)


async def accounts(address: DatabaseAddress) -> tuple[tuple[str, str], tuple[str, str]]:
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


def as_router(tenant_id: str) -> tuple[tuple[str, str], ...]:
    identity = Identity(tenant_id, "someone", (), frozenset(), "key00001")
    return internal_metadata("router", identity=identity, secret=SECRET.encode(), now=CLOCK.now())


def place_request(request_id: str, tenant_id: str) -> scheduler_pb2.PlaceRequest:
    candidate = scheduler_pb2.ModelCandidate(model="m", prompt_tokens=64)
    return scheduler_pb2.PlaceRequest(
        request_id=request_id, attempt=1, tenant_id=tenant_id, candidates=[candidate], max_output_tokens=16
    )


@asynccontextmanager
async def worker(system: System, *leases: scheduler_pb2.LeaseState) -> AsyncIterator[Any]:
    metadata = internal_metadata("worker", identity=None, secret=SECRET.encode(), now=CLOCK.now())
    call = system.scheduler.Connect(metadata=metadata)
    spec = scheduler_pb2.WorkerSpec(model="m", context_tokens=1024, block_size=16, kv_blocks=64, max_num_seqs=4)
    hello = scheduler_pb2.Hello(worker_id="w1", epoch="e1", endpoint="w1:1", spec=spec, leases=leases)
    await call.write(scheduler_pb2.ConnectRequest(hello=hello))
    assert (await call.read()).WhichOneof("message") == "welcome"
    try:
        yield call
    finally:
        call.cancel()


async def publish(place: Place, path: Path, *events: Event) -> None:
    """Bring events to Kafka, in this order, as a service's outbox does."""
    async with Outbox.open(path, max_events=100, max_bytes=1_000_000) as outbox:
        await outbox.append(*events)
        relay = asyncio.create_task(Relay(outbox, bootstrap=place.settings.kafka_bootstrap).run())
        try:
            await asyncio.wait_for(outbox.until_emptied(), PATIENCE_S)
        finally:
            relay.cancel()
            with suppress(asyncio.CancelledError):
                await relay
