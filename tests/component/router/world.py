"""A router on a real server, over scripted services on real servers, all on the loopback interface."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from downstack.events.v1 import events_pb2 as events_pb
from downstack.inference.v1 import inference_pb2 as inference_pb
from downstack.inference.v1.inference_pb2_grpc import InferenceServiceStub
from downstack.scheduler.v1 import scheduler_pb2 as scheduler_pb
from downstack.types.v1 import chat_pb2 as chat_pb
from pydantic import SecretStr

from services.kit.clock import SystemClock
from services.kit.errors import DownstackError
from services.kit.events.event import Event
from services.kit.events.outbox import Outbox
from services.kit.identity import Identity
from services.kit.models import Tokenizer, model_folder
from services.kit.server import ServiceParts, serving
from services.kit.settings import ServiceSettings
from services.kit.status import error_from_rpc
from services.router.adapters.audit import OutboxAudit
from services.router.adapters.fakes.keys import FakeKeys
from services.router.adapters.fakes.retriever import FakeRetriever
from services.router.adapters.fakes.scheduler import FakeScheduler
from services.router.adapters.fakes.worker import FakeWorker
from services.router.settings import RouterSettings
from services.router.wiring import assemble

SECRET = "a secret of the tests"
MODEL = "sim-small"
TENANT, OTHER_TENANT = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
REVISION = Tokenizer.load(model_folder("builtin:sim")).revision


def identity(tenant_id: str, *, scopes: tuple[str, ...] = ("generate", "usage")) -> Identity:
    return Identity(tenant_id=tenant_id, principal="ann", groups=("staff",), scopes=frozenset(scopes), key_id="k1")


KEYS = {
    "key": identity(TENANT),
    "other": identity(OTHER_TENANT),
    "scopeless": identity(TENANT, scopes=("ingest",)),
    "operator": identity(""),
}


def spec(*contents: str, **fields: Any) -> inference_pb.GenerationSpec:
    """A request of user messages; without any, one that asks for something."""
    messages = [chat_pb.Message(role=chat_pb.ROLE_USER, content=content) for content in contents or ("What is it?",)]
    return inference_pb.GenerationSpec(**({"model": MODEL, "messages": messages} | fields))


def worker_view(worker_id: str, endpoint: str, **fields: Any) -> scheduler_pb.Worker:
    given = {
        "model": MODEL,
        "tokenizer_revision": REVISION,
        "context_tokens": 512,
        "block_size": 16,
        "engine": "sim",
    }
    return scheduler_pb.Worker(
        worker_id=worker_id,
        endpoint=endpoint,
        spec=scheduler_pb.WorkerSpec(**(given | fields)),
        phase=scheduler_pb.WORKER_PHASE_READY,
    )


@dataclass
class World:
    """A running router and everything around it."""

    scheduler: FakeScheduler
    retriever: FakeRetriever
    workers: list[FakeWorker]
    outbox: Outbox
    channel: grpc.aio.Channel
    address: str

    endpoints: list[str]

    @property
    def worker(self) -> FakeWorker:
        return self.workers[0]

    @property
    def stub(self) -> Any:
        return InferenceServiceStub(self.channel)

    def stream(self, request: inference_pb.GenerationSpec, *, key: str = "key", timeout_s: float | None = 30) -> Any:
        return self.stub.Generate(inference_pb.GenerateRequest(spec=request), metadata=bearer(key), timeout=timeout_s)

    async def frames(self, request: inference_pb.GenerationSpec, **call: Any) -> list[inference_pb.GenerateResponse]:
        return [frame async for frame in self.stream(request, **call)]

    async def once(
        self, request: inference_pb.GenerationSpec, *, key: str = "key", timeout_s: float | None = 30
    ) -> Any:
        message = inference_pb.GenerateOnceRequest(spec=request)
        return await self.stub.GenerateOnce(message, metadata=bearer(key), timeout=timeout_s)

    async def explain(self, request_id: str, *, key: str = "key") -> Any:
        message = inference_pb.ExplainRequestRequest(request_id=request_id)
        return await self.stub.ExplainRequest(message, metadata=bearer(key))

    async def until_models(self, names: list[str]) -> None:
        """Return once the router sees exactly these models."""
        async with asyncio.timeout(10):
            while True:
                listed = await self.stub.ListModels(inference_pb.ListModelsRequest(), metadata=bearer("key"))
                if [model.name for model in listed.models] == names:
                    return

    async def until_recorded(self, kind: str) -> events_pb.AuditRecorded:
        """The first fact of a kind, once it is there."""
        async with asyncio.timeout(10):
            while not (found := await self.facts(kind)):
                pass
        return found[0]

    async def fill_outbox(self, count: int) -> None:
        event = Event(id="x", source="test", type="t", topic="t", key="k", payload=b"x", time=0.0)
        await self.outbox.append(*(replace(event, id=str(number)) for number in range(count)))

    async def facts(self, kind: str) -> list[events_pb.AuditRecorded]:
        """What the router wrote of one kind, in order."""
        entries = await self.outbox.read(1000)
        records = [events_pb.AuditRecorded.FromString(entry.event.payload) for entry in entries]
        return [record for record in records if record.WhichOneof("fact") == kind]


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


@contextmanager
def refused() -> Iterator[list[DownstackError]]:
    """Catches the status of a call; the block's value is the error that it meant."""
    caught: list[DownstackError] = []
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        yield caught
    caught.append(error_from_rpc(raised.value))


Build = Callable[..., AbstractAsyncContextManager[World]]


@asynccontextmanager
async def make_world(
    folder: Path,
    *,
    workers: int = 1,
    dead: int = 0,
    dead_schedulers: int = 0,
    view: dict[str, Any] | None = None,
    **fields: Any,
) -> AsyncIterator[World]:
    """A router over so many workers, behind `dead` ones that nobody answers for; `view` changes their description."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        scheduler, retriever = FakeScheduler(SECRET.encode()), FakeRetriever(SECRET.encode())
        backends = {
            "scheduler": ",".join(
                [*(f"127.0.0.1:{1 + n}" for n in range(dead_schedulers)), await enter(served(scheduler.parts()))]
            ),
            "retriever": await enter(served(retriever.parts())),
        }
        for number in range(dead):
            await scheduler.add_worker(worker_view(f"dead-{number}", "127.0.0.1:1", **(view or {})))
        live = [FakeWorker(SECRET.encode()) for _ in range(workers)]
        endpoints = [await enter(served(worker.parts())) for worker in live]
        for number, endpoint in enumerate(endpoints):
            await scheduler.add_worker(worker_view(f"worker-{number}", endpoint, **(view or {})))
        outbox = await enter(Outbox.open(folder / "outbox", max_events=1000, max_bytes=2**20))
        settings = router_settings(folder, **(backends | fields))
        audit = OutboxAudit(outbox, SystemClock())
        parts = await enter(assemble(settings, authenticator=FakeKeys(KEYS), audit=audit))
        await enter(running(parts))
        server = await enter(serving(parts, settings))
        channel = await enter(grpc.aio.insecure_channel(server.address))
        yield World(scheduler, retriever, live, outbox, channel, server.address, endpoints)


@asynccontextmanager
async def running(parts: ServiceParts) -> AsyncIterator[None]:
    """Runs the tasks that live as long as the service."""
    tasks = [asyncio.ensure_future(task()) for task in parts.tasks]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def served(parts: ServiceParts) -> AsyncIterator[str]:
    settings = ServiceSettings(
        listen="127.0.0.1:0", metrics_listen="", service_secret=SecretStr(SECRET), drain_s=0.2, reflection=False
    )
    async with serving(parts, settings) as server:
        yield server.address


def router_settings(folder: Path, **fields: Any) -> RouterSettings:
    given = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "service_secret": SecretStr(SECRET),
        "key_pepper": SecretStr("a pepper of the tests"),
        "postgres_dsn": SecretStr("postgresql://nowhere"),
        "kafka_bootstrap": "127.0.0.1:1",
        "outbox_path": folder / "outbox",
        "models": {MODEL: "builtin:sim"},
        "fleet_interval_s": 0.1,
        "drain_s": 2.0,
    }
    return RouterSettings(**(given | fields))
