"""A scheduler behind a real gRPC server, journal and ledger in memory, and the workers and routers that call it."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from downstack.scheduler.v1 import scheduler_pb2 as pb
from downstack.scheduler.v1.ledger_pb2_grpc import LedgerServiceStub
from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub

from services.kit.channel import open_channel
from services.kit.clock import SystemClock
from services.kit.errors import DownstackError
from services.kit.identity import AssertionAuthenticator, Identity, internal_metadata, sign_assertion
from services.kit.server import ServiceParts, serving
from services.kit.status import error_from_rpc
from services.scheduler.adapters.fake_budgets import FakeBudgets
from services.scheduler.adapters.fake_journal import FakeJournal
from services.scheduler.adapters.fake_ledger import FakeLedger
from services.scheduler.adapters.meter import SilentMeter
from services.scheduler.app import Scheduler, ShellLimits
from services.scheduler.budget_keeper import BudgetKeeper, BudgetLimits
from services.scheduler.settings import SchedulerSettings
from services.scheduler.wiring import ACCESS, ENDLESS, bindings, make_brain

SECRET = b"a secret of the component tests"
TENANT = "5d7c6d1e-0b0f-4c55-9f2e-2b3c4d5e6f70"
OTHER_TENANT = "6e8d7e2f-1c1a-4d66-8a3f-3c4d5e6f7081"
CLOCK = SystemClock()
BLOCK = 16


def settings(**changed: Any) -> SchedulerSettings:
    fields: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "service_secret": SECRET.decode(),
        "postgres_dsn": "postgresql://none",
        "kafka_bootstrap": "none:1",
        "outbox_path": Path("none"),
        "key_pepper": "a pepper of the component tests",
        "drain_s": 1.0,
        "settle_s": 0.0,
        "seed": 1,
    }
    return SchedulerSettings(**{**fields, **changed})


def identity(tenant_id: str = TENANT, *, scopes: Iterable[str] = ()) -> Identity:
    return Identity(tenant_id, "someone", (), frozenset(scopes), "key00001")


def as_service(service: str, tenant_id: str = "") -> tuple[tuple[str, str], ...]:
    """Metadata of a service that acts for a tenant, or for nobody."""
    acting = identity(tenant_id) if tenant_id else None
    return internal_metadata(service, identity=acting, secret=SECRET, now=CLOCK.now())


def as_tenant(tenant_id: str = TENANT, *scopes: str) -> tuple[tuple[str, str], ...]:
    """Metadata of somebody with these scopes."""
    assertion = sign_assertion(identity(tenant_id, scopes=scopes), secret=SECRET, now=CLOCK.now())
    return (("x-downstack-assertion", assertion),)


def place_request(request_id: str = "req_1", **changed: Any) -> pb.PlaceRequest:
    candidate = pb.ModelCandidate(model="m", prompt_tokens=64, block_size=BLOCK, block_hashes=[1, 2, 3, 4])
    fields: dict[str, Any] = {
        "attempt": 1,
        "tenant_id": TENANT,
        "key_id": "key00001",
        "candidates": [candidate],
        "max_output_tokens": 32,
    }
    return pb.PlaceRequest(request_id=request_id, **{**fields, **changed})


@dataclass
class World:
    """A scheduler and how to reach it."""

    scheduler: Scheduler
    journal: FakeJournal
    ledger: FakeLedger
    budgets: FakeBudgets
    keeper: BudgetKeeper
    address: str
    channel: grpc.aio.Channel

    @property
    def stub(self) -> Any:
        return SchedulerServiceStub(self.channel)

    @property
    def ledger_stub(self) -> Any:
        return LedgerServiceStub(self.channel)

    async def place(self, request: pb.PlaceRequest | None = None, *, wait_s: float = 5.0) -> pb.PlaceResponse:
        request = request or place_request()
        return await self.stub.Place(request, timeout=wait_s, metadata=as_service("router", request.tenant_id))

    async def release(self, lease_id: str, reason: int = 1, tenant_id: str = TENANT) -> bool:
        request = pb.ReleaseRequest(lease_id=lease_id, finish_reason=reason)  # type: ignore[arg-type]
        response = await self.stub.Release(request, timeout=5, metadata=as_service("router", tenant_id))
        return bool(response.released)

    async def fleet(self) -> pb.Fleet:
        response = await self.stub.DescribeFleet(
            pb.DescribeFleetRequest(), timeout=5, metadata=as_tenant(TENANT, "usage")
        )
        return response.fleet


class StandInWorker:
    """A worker that says what the test tells it to, over a real stream."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._writing = asyncio.Lock()

    async def say(self, **message: Any) -> None:
        async with self._writing:  # gRPC takes one write at a time
            await self.call.write(pb.ConnectRequest(**message))

    async def hear(self, kind: str) -> Any:
        """The next message of a kind; the others are skipped."""
        while True:
            message = await asyncio.wait_for(self.call.read(), 5)
            assert message is not grpc.aio.EOF, f"the stream ended before {kind}"
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)

    async def report(self, lease_id: str, phase: int, **usage: int) -> None:
        state = pb.LeaseState(lease_id=lease_id, phase=phase, usage=usage)  # type: ignore[arg-type]
        await self.say(leases=pb.LeaseReport(leases=[state]))

    async def store(self, sequence: int, *hashes: int) -> None:
        changes = [pb.KvChange(stored=pb.KvBlocks(hashes=hashes))]
        await self.say(kv_delta=pb.KvDelta(epoch="kv", sequence=sequence, changes=changes))


def hello(worker_id: str = "w1", *, epoch: str = "e1", leases: Iterable[pb.LeaseState] = (), **spec: Any) -> pb.Hello:
    fields: dict[str, Any] = {
        "model": "m",
        "context_tokens": 4096,
        "block_size": BLOCK,
        "kv_blocks": 1024,
        "max_num_seqs": 4,
        "kv_events": True,
        "rates": pb.Rates(prefill_ms_per_token=1, decode_base_ms=10),
    }
    described = pb.WorkerSpec(**{**fields, **spec})
    return pb.Hello(worker_id=worker_id, epoch=epoch, endpoint=f"{worker_id}:1", spec=described, leases=leases)


@asynccontextmanager
async def connected(world: World, greeting: pb.Hello | None = None) -> AsyncIterator[StandInWorker]:
    """A worker that has been welcomed; its stream ends with the block."""
    call = world.stub.Connect(metadata=as_service("worker"))
    worker = StandInWorker(call)
    try:
        await worker.say(hello=greeting or hello())
        await worker.hear("welcome")
        yield worker
    finally:
        call.cancel()


@asynccontextmanager
async def make_world(**changed: Any) -> AsyncIterator[World]:
    chosen = settings(**changed)
    journal, ledger = FakeJournal(), FakeLedger()
    budgets = FakeBudgets(ledger)
    brain = make_brain(chosen, CLOCK)
    shell = ShellLimits(tick_s=0.01, max_orders=chosen.max_orders)
    scheduler = Scheduler(brain, clock=CLOCK, journal=journal, meter=SilentMeter(), limits=shell)
    keeper = BudgetKeeper(
        budgets, brain.budgets, apply=scheduler.apply, journal=journal, clock=CLOCK, limits=BudgetLimits()
    )
    await keeper.refresh()
    parts = ServiceParts(
        bindings=bindings(scheduler, ledger, keeper, scheduler_id="sch_test", secret=SECRET, clock=CLOCK),
        access=ACCESS,
        authenticator=AssertionAuthenticator(SECRET, CLOCK),
        on_drain=scheduler.drain,
        endless=ENDLESS,
    )
    tasks = [asyncio.create_task(task()) for task in (scheduler.run_ticks, scheduler.run_records)]
    try:
        async with serving(parts, chosen) as server, open_channel(server.address) as channel:
            yield World(scheduler, journal, ledger, budgets, keeper, server.address, channel)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def refused(call: Any) -> DownstackError:
    """The reason for which a call was refused."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    raise AssertionError("the call was not refused")


async def until(condition: Any) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  conditions of many kinds
            await asyncio.sleep(0.005)
