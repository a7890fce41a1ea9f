"""The worker as a process: start, signals, a killed engine, and starts that cannot work."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.worker.v1 import worker_pb2
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.clock import SystemClock
from services.kit.errors import Reason
from services.kit.ids import new_id
from services.kit.status import error_from_rpc
from services.kit.tickets import sign_ticket
from services.worker.adapters.fake_scheduler import FakeScheduler
from tests.support.worker_rig import SECRET, scheduler_server

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[3]


@dataclass
class Process:
    """A worker's process and what it is connected to."""

    process: asyncio.subprocess.Process
    scheduler: FakeScheduler
    channel: grpc.aio.Channel

    async def serving(self) -> bool:
        stub = health_pb2_grpc.HealthStub(self.channel)
        response = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=10)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def until_serving(self, timeout_s: float) -> None:
        stub = health_pb2_grpc.HealthStub(self.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=timeout_s)
        async for response in watch:
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return

    def request(self, prompt: list[int], *, max_tokens: int) -> worker_pb2.GenerateRequest:
        hello = self.scheduler.hellos[-1]
        grant = LeaseGrant(
            lease_id=new_id("lse"),
            tenant_id="t",
            worker_id=hello.worker_id,
            worker_epoch=hello.epoch,
            model=hello.spec.model,
            prompt_tokens=len(prompt),
            max_output_tokens=max_tokens,
        )
        grant.expires_at.FromNanoseconds(round((SystemClock().now() + 60) * 1e9))
        return worker_pb2.GenerateRequest(
            ticket=sign_ticket(grant, secret=SECRET),
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        )


def environment(folder: Path, **settings: object) -> dict[str, str]:
    values = {
        "service_secret": SECRET.decode(),
        "kafka_bootstrap": "127.0.0.1:1",
        "outbox_path": folder / "outbox.sqlite",
        "metrics_listen": "",
        **settings,
    }
    own = {f"DOWNSTACK_WORKER_{name.upper()}": str(value) for name, value in values.items()}
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}", **own}


async def launch(env: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.worker", env=env, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )


async def last_words(env: dict[str, str]) -> tuple[int | None, str]:
    """The exit status and the last line of a start that is expected to fail."""
    process = await launch(env)
    _, errors = await process.communicate()
    return process.returncode, errors.decode().strip().splitlines()[-1]


def broken_copy(model: Path, target: Path) -> Path:
    """A model folder whose weights end too early."""
    target.mkdir()
    for file in model.iterdir():
        (target / file.name).write_bytes(file.read_bytes()[: 4096 if file.suffix == ".safetensors" else None])
    return target


@asynccontextmanager
async def worker(folder: Path, port: int, **settings: object) -> AsyncIterator[Process]:
    scheduler = FakeScheduler()
    async with scheduler_server(scheduler) as target:
        env = environment(folder, listen=f"127.0.0.1:{port}", scheduler=target, **settings)
        process = await launch(env)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Process(process, scheduler, channel)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def test_it_serves_once_a_scheduler_knows_it_and_leaves_on_a_signal(tmp_path: Path, unused_tcp_port: int) -> None:
    """SERVING after the welcome; SIGTERM lets the stream finish, and the process ends with 0 and no child."""
    async with worker(tmp_path, unused_tcp_port, decode_base_ms=5) as running:
        await running.until_serving(30)
        assert running.scheduler.hellos[0].worker_id == f"wkr-{unused_tcp_port}"
        frames = aiter(WorkerServiceStub(running.channel).Generate(running.request([1] * 10, max_tokens=100)))
        await anext(frames)
        running.process.send_signal(signal.SIGTERM)
        kinds = [frame.WhichOneof("frame") async for frame in frames]
        assert kinds[-1] == "finished"
        assert await running.process.wait() == 0
        assert running.scheduler.drained


async def test_usage_survives_a_kill(tmp_path: Path, unused_tcp_port: int) -> None:
    """The record is in the outbox when Finished arrives, so a killed worker's next start still has it."""
    async with worker(tmp_path, unused_tcp_port) as running:
        await running.until_serving(30)
        call = WorkerServiceStub(running.channel).Generate(running.request([1] * 10, max_tokens=3))
        assert [frame async for frame in call][-1].WhichOneof("frame") == "finished"
        running.process.kill()
        await running.process.wait()
    from services.kit.events.outbox import Outbox  # noqa: PLC0415

    async with Outbox.open(tmp_path / "outbox.sqlite", max_events=10, max_bytes=10**6) as outbox:
        assert outbox.depth == 1


async def test_a_port_in_use_is_one_sentence(tmp_path: Path, unused_tcp_port: int) -> None:
    """And exit status 1, with nothing half done."""
    async with worker(tmp_path, unused_tcp_port) as running:
        await running.until_serving(30)
        status, words = await last_words(environment(tmp_path / "other", listen=f"127.0.0.1:{unused_tcp_port}"))
    assert status == 1
    assert str(unused_tcp_port) in words
    assert not (tmp_path / "other").exists()


async def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path, unused_tcp_port: int) -> None:
    """For either engine."""
    listen = f"127.0.0.1:{unused_tcp_port}"
    for engine in ("sim", "vllm"):
        status, words = await last_words(environment(tmp_path, listen=listen, engine=engine, model_path="/nowhere"))
        assert status == 1
        assert "There is no model folder '/nowhere'" in words


@pytest.mark.vllm
async def test_a_cache_too_small_for_the_context_is_one_sentence(
    tmp_path: Path, smollm2: Path, unused_tcp_port: int
) -> None:
    """It names both sizes."""
    env = environment(tmp_path, listen=f"127.0.0.1:{unused_tcp_port}", engine="vllm", model_path=smollm2, kv_blocks=64)
    status, words = await last_words(env)
    assert status == 1
    assert "64 blocks" in words
    assert "2048 tokens" in words


@pytest.mark.vllm
async def test_corrupt_weights_are_one_sentence(tmp_path: Path, smollm2: Path, unused_tcp_port: int) -> None:
    """The engine's process is gone as well."""
    broken = broken_copy(smollm2, tmp_path / "broken")
    env = environment(tmp_path, listen=f"127.0.0.1:{unused_tcp_port}", engine="vllm", model_path=broken)
    status, words = await last_words(env)
    assert status == 1
    assert "vLLM cannot serve the model" in words
    assert not [one for one in psutil.process_iter(["environ"]) if str(broken) in json.dumps(one.info["environ"])]


def engine_of(children: list[psutil.Process]) -> psutil.Process:
    (engine,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    return engine


@pytest.mark.vllm
async def test_a_killed_worker_leaves_no_engine(tmp_path: Path, smollm2: Path, unused_tcp_port: int) -> None:
    """Not even an idle one, which would hold the memory that the next start needs."""
    settings = {"engine": "vllm", "model_path": smollm2, "model": "smollm2-135m", "kv_blocks": 100}
    async with worker(tmp_path, unused_tcp_port, **settings) as running:
        await running.until_serving(200)
        engine = engine_of(psutil.Process(running.process.pid).children(recursive=True))
        running.process.kill()
        gone, _ = await asyncio.to_thread(psutil.wait_procs, [engine], timeout=10)
        assert gone == [engine]


@pytest.mark.vllm
async def test_a_killed_engine_ends_the_worker(tmp_path: Path, smollm2: Path, unused_tcp_port: int) -> None:
    """Streams end with ENGINE_DEAD, the scheduler hears of it, and the process ends with 1 for its supervisor."""
    settings = {"engine": "vllm", "model_path": smollm2, "model": "smollm2-135m", "kv_blocks": 100}
    async with worker(tmp_path, unused_tcp_port, **settings) as running:
        await running.until_serving(200)
        frames = aiter(WorkerServiceStub(running.channel).Generate(running.request([20] * 40, max_tokens=1500)))
        while (await anext(frames)).WhichOneof("frame") != "delta":
            pass
        children = psutil.Process(running.process.pid).children(recursive=True)
        engine_of(children).kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in frames:
                pass
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert error_from_rpc(caught.value).reason == Reason.ENGINE_DEAD
        async with asyncio.timeout(30):
            _, errors = await running.process.communicate()
        assert running.process.returncode == 1
        assert not running.scheduler.loads[-1].serving
        assert "worker: The engine has died." in errors.decode().splitlines()
        assert not (await asyncio.to_thread(psutil.wait_procs, children, timeout=30))[1]
