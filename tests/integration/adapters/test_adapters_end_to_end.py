"""From a caller's MODEL:ADAPTER to the engine: router, scheduler and two workers' processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from downstack.inference.v1 import inference_pb2 as inference_pb
from downstack.inference.v1.inference_pb2_grpc import InferenceServiceStub
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.worker.v1 import worker_pb2
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceStub
from pydantic import SecretStr

from services.kit.clock import SystemClock
from services.kit.errors import Reason
from services.kit.events.outbox import Outbox
from services.kit.identity import internal_metadata
from services.kit.server import serving
from services.router.adapters.audit import OutboxAudit
from services.router.adapters.fakes.keys import FakeKeys
from services.router.wiring import assemble
from tests.component.router.world import KEYS, MODEL, bearer, refused, router_settings, running, spec
from tests.component.scheduler.world import SECRET, make_world
from tests.support.lora import make_adapter
from tests.support.worker_process import Process, worker

pytestmark = pytest.mark.timeout(120)
LEGAL = f"{MODEL}:legal"
TEXT = "What does the law say about adapters? " * 8
PARAMS = SamplingParams(max_tokens=12, temperature=0)


@dataclass
class System:
    """A router's channel, and the workers behind it; only the first one starts with the adapter."""

    channel: grpc.aio.Channel
    workers: list[Process]

    async def models(self) -> dict[str, int]:
        """Names and how many workers are ready for them."""
        stub: Any = InferenceServiceStub(self.channel)
        listed = await stub.ListModels(inference_pb.ListModelsRequest(), metadata=bearer("key"))
        return {model.name: model.workers for model in listed.models}

    async def until_models(self, expected: dict[str, int]) -> None:
        async with asyncio.timeout(20):
            while await self.models() != expected:
                pass

    async def once(self, model: str) -> inference_pb.GenerateOnceResponse:
        stub: Any = InferenceServiceStub(self.channel)
        request = inference_pb.GenerateOnceRequest(spec=spec(TEXT, model=model, sampling=PARAMS))
        response: inference_pb.GenerateOnceResponse = await stub.GenerateOnce(
            request, metadata=bearer("key"), timeout=30
        )
        return response


def operator(number: int, system: System) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """The stub of a worker, and what lets in its operators."""
    metadata = internal_metadata("router", identity=None, secret=SECRET, now=SystemClock().now())
    return WorkerServiceStub(system.workers[number].channel), metadata


@pytest.fixture
async def system(tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> AsyncIterator[System]:
    make_adapter(tmp_path / "adapters" / "legal")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        scheduler = await enter(make_world())
        common = {
            "scheduler": scheduler.address,
            "service_secret": SECRET.decode(),
            "adapter_folder": tmp_path / "adapters",
            "max_adapters": 1,
            "block_size": 16,
        }
        workers = []
        for number, adapters in enumerate((f"legal={tmp_path / 'adapters' / 'legal'}", "")):
            port, outbox = unused_tcp_port_factory(), tmp_path / f"worker-{number}.sqlite"
            workers.append(await enter(worker(tmp_path, port, adapters=adapters, **common | {"outbox_path": outbox})))
        for each in workers:
            await each.until_serving(30)
        outbox = await enter(Outbox.open(tmp_path / "outbox", max_events=1000, max_bytes=2**20))
        settings = router_settings(
            tmp_path, scheduler=scheduler.address, service_secret=SecretStr(SECRET.decode()), retriever=""
        )
        audit = OutboxAudit(outbox, SystemClock())
        parts = await enter(assemble(settings, authenticator=FakeKeys(KEYS), audit=audit))
        await enter(running(parts))
        server = await enter(serving(parts, settings))
        yield System(await enter(grpc.aio.insecure_channel(server.address)), workers)


async def test_a_caller_names_an_adapter(system: System) -> None:
    """Its worker answers, with the cache that was predicted, which the model's own answers do not share."""
    await system.until_models({MODEL: 2, LEGAL: 1})
    base = await system.once(MODEL)
    answers = [await system.once(LEGAL) for _ in range(3)]
    assert {answer.choices[0].text for answer in answers} == {answers[0].choices[0].text}
    assert answers[0].choices[0].text != base.choices[0].text
    assert {answer.started.worker_id for answer in answers} == {answers[0].started.worker_id}
    assert {answer.started.model for answer in answers} == {LEGAL}
    filtered = {each.worker_id: each.filtered_by for each in answers[0].started.decision.candidates}
    assert sorted(filtered.values()) == ["", "adapter"]
    assert answers[0].finished.usage.input_cached == 0
    last = answers[-1]
    assert last.finished.usage.input_cached == last.started.decision.predicted_cached_tokens > 0


async def test_operators_load_and_unload(system: System) -> None:
    """Callers see at once where an adapter can be had, and are refused where nowhere."""
    await system.until_models({MODEL: 2, LEGAL: 1})
    stub, metadata = operator(1, system)
    await stub.LoadAdapter(worker_pb2.LoadAdapterRequest(name="legal", path="legal"), metadata=metadata)
    await system.until_models({MODEL: 2, LEGAL: 2})
    for number in range(2):
        stub, metadata = operator(number, system)
        await stub.UnloadAdapter(worker_pb2.UnloadAdapterRequest(name="legal"), metadata=metadata)
    await system.until_models({MODEL: 2})
    with refused() as told:
        await system.once(LEGAL)
    assert told[0].reason == Reason.ADAPTER_NOT_FOUND
    assert (await system.once(MODEL)).choices[0].text
