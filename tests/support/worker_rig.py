"""A worker over real gRPC, with a fake scheduler beside it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from downstack.events.v1.events_pb2 import UsageRecorded
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.scheduler.v1.scheduler_pb2_grpc import add_SchedulerServiceServicer_to_server
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.types.v1.usage_pb2 import Price
from downstack.worker.v1 import worker_pb2
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceStub, add_WorkerServiceServicer_to_server

from services.kit.clock import SystemClock
from services.kit.errors import StartupError
from services.kit.identity import AssertionAuthenticator, internal_metadata
from services.kit.ids import new_id
from services.kit.server import Binding, ServiceParts, serving
from services.kit.settings import ServiceSettings
from services.kit.tickets import sign_ticket
from services.worker.adapters.adapter_files import AdapterFolder
from services.worker.adapters.fake_scheduler import FakeScheduler
from services.worker.adapters.memory_journal import MemoryJournal
from services.worker.adapters.scheduler_link import SchedulerLink
from services.worker.adapters.servicer import ACCESS, NAME, WorkerServicer
from services.worker.app.embedding import Embedding
from services.worker.app.engine_life import EngineLife, LifeLimits
from services.worker.app.outlet import OutletLimits
from services.worker.app.reports import WorkerIdentity
from services.worker.app.uplink import UplinkLimits
from services.worker.app.worker import Worker, WorkerLimits
from services.worker.ports import Engine

SECRET = b"a secret of at least sixteen bytes"
MODEL = "test-model"
PRICE = Price(version="v1", currency="EUR", input_nano=100, cached_nano=10, output_nano=1000)
LIMITS = WorkerLimits(
    outlet=OutletLimits(),
    uplink=UplinkLimits(),
    max_leases=256,
    max_remembered=1000,
    needs_scheduler=True,
)
LIFE = LifeLimits(progress_s=60.0)


@dataclass
class Answer:
    """A stream that was read."""

    frames: list[worker_pb2.GenerateResponse] = field(default_factory=list)

    @property
    def deltas(self) -> list[worker_pb2.GenerateResponse]:
        return [frame for frame in self.frames if frame.WhichOneof("frame") == "delta"]

    @property
    def finished(self) -> worker_pb2.GenerateResponse:
        return self.frames[-1]

    def text(self, index: int = 0) -> str:
        return "".join(frame.delta.text for frame in self.deltas if frame.delta.index == index)

    def token_ids(self, index: int = 0) -> list[int]:
        return [token for frame in self.deltas if frame.delta.index == index for token in frame.delta.token_ids]

    @property
    def cached_tokens(self) -> int:
        return self.deltas[0].delta.cached_tokens


@dataclass
class Rig:
    """The worker, and what stands around it."""

    worker: Worker
    life: EngineLife
    stub: WorkerServiceStub
    scheduler: FakeScheduler
    journal: MemoryJournal
    address: str

    @property
    def engine(self) -> Engine:
        """The engine that runs now."""
        return self.life.engine

    def metadata(self, service: str = "router") -> tuple[tuple[str, str], ...]:
        return internal_metadata(service, identity=None, secret=SECRET, now=SystemClock().now())

    def grant(self, prompt: Sequence[int], **changes: object) -> LeaseGrant:
        now = SystemClock().now()
        grant = LeaseGrant(
            lease_id=new_id("lse"),
            request_id=new_id("req"),
            attempt=1,
            tenant_id="7b1d9a52-6a1e-4c2e-9a55-0d1c3c1d9f10",
            worker_id="wkr-test",
            worker_epoch=self.worker.epoch,
            model=MODEL,
            prompt_tokens=len(prompt),
            max_output_tokens=64,
            price=PRICE,
            queue_ms=1.5,
        )
        grant.expires_at.FromNanoseconds(round((now + 60) * 1e9))
        for name, value in changes.items():
            setattr(grant, name, value)
        return grant

    def request(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        grant: LeaseGrant | None = None,
        secret: bytes = SECRET,
        **changes: object,
    ) -> worker_pb2.GenerateRequest:
        ticket = sign_ticket(grant or self.grant(prompt, **changes), secret=secret)
        return worker_pb2.GenerateRequest(ticket=ticket, prompt_token_ids=prompt, sampling=sampling)

    async def generate(
        self, prompt: Sequence[int], sampling: SamplingParams | None = None, **changes: object
    ) -> Answer:
        """Reads a whole stream."""
        answer = Answer()
        async for frame in self.stub.Generate(self.request(prompt, sampling, **changes), timeout=60):
            answer.frames.append(frame)
        return answer

    def usage(self, lease_id: str) -> UsageRecorded:
        """The one usage record of a lease."""
        (event,) = [event for event in self.journal.events if event.subject == lease_id]
        return UsageRecorded.FromString(event.payload)

    async def until_idle(self, timeout_s: float = 10.0) -> None:
        """Returns when the scheduler is told, from now on, that nothing runs."""
        past = len(self.scheduler.loads) + 1  # the next one may have been on its way

        def idle(seen: FakeScheduler) -> bool:
            last = seen.loads[-1]
            return len(seen.loads) > past and not last.running_requests and not last.waiting_requests

        await self.scheduler.until(idle, timeout_s=timeout_s)


@asynccontextmanager
async def worker_rig(
    engine: Engine,
    *,
    tokenizer_revision: str,
    limits: WorkerLimits = LIMITS,
    life_limits: LifeLimits = LIFE,
    restart: Callable[[], Engine] | None = None,
    adapters: AdapterFolder | None = None,
    encode: Callable[[str], Sequence[int]] | None = None,
    max_texts: int = 1024,
) -> AsyncIterator[Rig]:
    """A worker around an engine that has not started; `restart` makes the one that follows a lost one.

    It can load adapters from the folder, if there is one, and embed texts, if they can be encoded.
    """
    engines = itertools.chain([engine], iter(restart or _no_engine, None))
    clock, scheduler, journal = SystemClock(), FakeScheduler(), MemoryJournal()
    async with scheduler_server(scheduler) as target:
        identity = WorkerIdentity(
            worker_id="wkr-test",
            endpoint="127.0.0.1:1",
            model=MODEL,
            tokenizer_revision=tokenizer_revision,
            device_kind="cpu",
            price_per_hour_nano=1,
        )
        life = EngineLife(engines.__next__, limits=life_limits, clock=clock)
        worker = Worker(life, identity, limits=limits, journal=journal, clock=clock)
        link = SchedulerLink(worker, target, secret=SECRET, clock=clock)
        embedding = Embedding(life, encode=encode, max_texts=max_texts) if encode else None
        servicer = WorkerServicer(
            worker, secret=SECRET, drain_s=5.0, adapters=adapters or AdapterFolder(), embedding=embedding
        )
        parts = ServiceParts(
            bindings=[Binding(add_WorkerServiceServicer_to_server, servicer, NAME)],
            access=ACCESS,
            authenticator=AssertionAuthenticator(SECRET, clock),
            ready=worker.start,
        )
        settings = ServiceSettings(listen="127.0.0.1:0", metrics_listen="", service_secret=SECRET.decode(), drain_s=1)
        async with (
            background(worker.keep_engine, link.run),
            serving(parts, settings) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            yield Rig(worker, life, WorkerServiceStub(channel), scheduler, journal, server.address)


def _no_engine() -> Engine:
    raise StartupError("There is no other engine.")


@asynccontextmanager
async def background(*bodies: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Runs these inside the block."""
    tasks = [asyncio.create_task(body()) for body in bodies]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def scheduler_server(scheduler: FakeScheduler, *, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serves a fake scheduler; yields its address."""
    server = grpc.aio.server()
    add_SchedulerServiceServicer_to_server(scheduler, server)
    port = server.add_insecure_port(listen)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
