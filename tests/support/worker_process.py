"""A worker as a process, with a fake scheduler beside it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc
import psutil
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.worker.v1 import worker_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.clock import SystemClock
from services.kit.ids import new_id
from services.kit.tickets import sign_ticket
from services.worker.adapters.fake_scheduler import FakeScheduler
from tests.support.worker_rig import SECRET, scheduler_server

ROOT = Path(__file__).parents[2]


@dataclass
class Process:
    """A worker's process and what it is connected to."""

    process: asyncio.subprocess.Process
    scheduler: FakeScheduler
    channel: grpc.aio.Channel
    log: Path

    async def until_serving(self, timeout_s: float) -> None:
        """Returns when it serves; fails with its last words when it ends instead."""
        serving, ending = asyncio.create_task(self._serves(timeout_s)), asyncio.create_task(self.process.wait())
        await asyncio.wait([serving, ending], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        assert self.process.returncode is None, self.log.read_text()[-2000:]
        await serving

    async def until_not_serving(self, timeout_s: float) -> None:
        """Returns when its health says so."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        async for response in stub.Watch(health_pb2.HealthCheckRequest(), timeout=timeout_s):
            if response.status != health_pb2.HealthCheckResponse.SERVING:
                return

    async def _serves(self, timeout_s: float) -> None:
        stub = health_pb2_grpc.HealthStub(self.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=timeout_s)
        async for response in watch:
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return

    def engine(self) -> psutil.Process:
        """VLLM's engine process."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (engine,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
        return engine

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


async def launch(
    env: dict[str, str], *, errors: int | IO[bytes] = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.worker", env=env, cwd=ROOT, stderr=errors
    )


@asynccontextmanager
async def worker(folder: Path, port: int, **settings: object) -> AsyncIterator[Process]:
    """A worker that is starting; what it logs is in the folder."""
    scheduler, log = FakeScheduler(), folder / f"worker-{port}.log"
    async with scheduler_server(scheduler) as target:
        env = environment(folder, **{"listen": f"127.0.0.1:{port}", "scheduler": target, **settings})
        with log.open("wb") as errors:
            process = await launch(env, errors=errors)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Process(process, scheduler, channel, log)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
