"""The ways to an engine that are compared: a call of it in this process, and the worker over gRPC."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import grpc.aio
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.worker.v1 import worker_pb2
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.channel import open_channel
from services.kit.clock import SystemClock
from services.kit.identity import internal_metadata
from services.kit.ids import new_id
from services.kit.models import Tokenizer, model_folder
from services.kit.tickets import sign_ticket
from services.worker.domain.sampling import Sampling
from services.worker.ports import Engine
from services.worker.settings import WorkerSettings
from services.worker.wiring import engines

SECRET = b"the bench signs its own tickets"
_ROOT = Path(__file__).parents[2]
_START_S = 1800.0


class Arm(Protocol):
    """A way to an engine."""

    def generate(self, prompt: Sequence[int], *, tokens: int) -> AsyncIterator[int]:
        """Makes exactly so many tokens; yields how many came, whenever some do."""
        ...


class Direct:
    """AsyncLLM in this process, with the arguments that the worker gives to it."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    async def generate(self, prompt: Sequence[int], *, tokens: int) -> AsyncIterator[int]:
        from vllm.inputs import TokensPrompt  # noqa: PLC0415  after the environment: vLLM reads it when it is imported
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415
        from vllm.sampling_params import SamplingParams as VllmParams  # noqa: PLC0415

        params = VllmParams(max_tokens=tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        async for output in self.llm.generate(TokensPrompt(prompt_token_ids=list(prompt)), params, new_id("req")):
            yield len(output.outputs[0].token_ids)


class Simulated:
    """A simulated engine in this process. Its steps take what they are told to, so that small differences show."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def generate(self, prompt: Sequence[int], *, tokens: int) -> AsyncIterator[int]:
        sampling = Sampling(max_tokens=tokens, ignore_eos=True)
        outputs = self._engine.generate(prompt, sampling, request_id=new_id("req"), cache_salt="", priority=0)
        async for output in outputs:
            yield len(output.token_ids)


class Worker:
    """A worker over gRPC, with tickets of the bench's own."""

    def __init__(self, channel: grpc.aio.Channel, status: worker_pb2.GetStatusResponse) -> None:
        self._stub = WorkerServiceStub(channel)
        self._status = status

    @property
    def engine(self) -> str:
        """Its engine's name and version."""
        return f"{self._status.spec.engine} {self._status.spec.engine_version}"

    async def generate(self, prompt: Sequence[int], *, tokens: int) -> AsyncIterator[int]:
        request = worker_pb2.GenerateRequest(
            ticket=self._ticket(len(prompt), tokens),
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=tokens, ignore_eos=True),
        )
        async for frame in self._stub.Generate(request):
            if frame.WhichOneof("frame") == "delta":
                yield len(frame.delta.token_ids)

    def _ticket(self, prompt_tokens: int, tokens: int) -> bytes:
        grant = LeaseGrant(
            lease_id=new_id("lse"),
            tenant_id="bench",
            worker_id=self._status.worker_id,
            worker_epoch=self._status.epoch,
            model=self._status.spec.model,
            prompt_tokens=prompt_tokens,
            max_output_tokens=tokens,
        )
        grant.expires_at.FromNanoseconds(round((SystemClock().now() + 60) * 1e9))
        return sign_ticket(grant, secret=SECRET)


@asynccontextmanager
async def direct(settings: WorkerSettings, *, kv_events: bool = True) -> AsyncIterator[Direct]:
    """An AsyncLLM that was started as the worker starts it, but for KV events where they are not wanted."""
    from services.worker.adapters.vllm.launch import engine_arguments, prepare_environment  # noqa: PLC0415

    prepare_environment(settings)
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    with TemporaryDirectory(prefix="bench-") as scratch:
        arguments = engine_arguments(settings, scratch=Path(scratch))
        if not kv_events:
            arguments.kv_events_config = None
        llm = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
        try:
            yield Direct(llm)
        finally:
            await asyncio.to_thread(llm.shutdown, timeout=5.0)


@asynccontextmanager
async def simulated(settings: WorkerSettings) -> AsyncIterator[Simulated]:
    """The engine that the worker of these settings simulates."""
    engine = engines(settings, Tokenizer.load(model_folder(settings.model_path)), clock=SystemClock())()
    await engine.start()
    try:
        yield Simulated(engine)
    finally:
        await engine.stop()


@asynccontextmanager
async def worker(settings: WorkerSettings) -> AsyncIterator[Worker]:
    """A worker's process that serves; it reports to no scheduler, and its usage records wait in its outbox."""
    with TemporaryDirectory(prefix="bench-") as folder:
        # What it says goes to stderr, as all but the bench's figures does.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.worker",
            env=_environment(settings, Path(folder, "outbox.sqlite")),
            cwd=_ROOT,
            stdout=sys.stderr,
        )
        try:
            async with open_channel(settings.listen) as channel:
                await _until_serving(channel, process)
                metadata = internal_metadata("router", identity=None, secret=SECRET, now=SystemClock().now())
                status = await WorkerServiceStub(channel).GetStatus(worker_pb2.GetStatusRequest(), metadata=metadata)
                yield Worker(channel, status)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _environment(settings: WorkerSettings, outbox: Path) -> dict[str, str]:
    given = settings.model_dump(exclude_unset=True)
    values = {**given, "service_secret": SECRET.decode(), "outbox_path": outbox}
    own = {f"DOWNSTACK_WORKER_{name.upper()}": str(value) for name, value in values.items()}
    return {**os.environ, "PYTHONPATH": f"{_ROOT}:{_ROOT / 'sdk'}", **own}


async def _until_serving(channel: grpc.aio.Channel, process: asyncio.subprocess.Process) -> None:
    async def serves() -> None:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        async for response in watch:
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return

    serving, ending = asyncio.create_task(serves()), asyncio.create_task(process.wait())
    await asyncio.wait([serving, ending], return_when=asyncio.FIRST_COMPLETED, timeout=_START_S)
    ending.cancel()
    if not serving.done():
        serving.cancel()
        raise RuntimeError("The worker did not start; what it said is above.")
    await serving
