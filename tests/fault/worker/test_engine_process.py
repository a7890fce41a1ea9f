"""VLLM's engine process is killed and stopped under a worker that serves. Prints how long each took to be noticed."""

import asyncio
import json
import signal
import time
from pathlib import Path

import grpc
import psutil
import pytest
from downstack.types.v1.usage_pb2 import FinishReason
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceStub

from services.kit.errors import Reason
from services.kit.events.outbox import Outbox
from services.kit.status import error_from_rpc
from tests.support.worker_process import Process, worker

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
START_S = 300


def settings_of(model: Path, **more: object) -> dict[str, object]:
    return {"engine": "vllm", "model_path": model, "model": "smollm2-135m", "kv_blocks": 100, **more}


async def first_delta(running: Process) -> "grpc.aio.UnaryStreamCall":
    """A long stream that has begun."""
    call = WorkerServiceStub(running.channel).Generate(running.request([20] * 40, max_tokens=1500))
    while (await call.read()).WhichOneof("frame") != "delta":
        pass
    return call


async def rest_of(call: "grpc.aio.UnaryStreamCall") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drain(call)
    return caught.value


async def drain(call: "grpc.aio.UnaryStreamCall") -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def strike(running: Process, number: signal.Signals) -> dict[str, object]:
    """Sends a signal to the engine; returns after how many seconds what was noticed, once another one serves."""
    streams = [await first_delta(running) for _ in range(3)]
    scheduler, engine, before = running.scheduler, running.engine(), running.scheduler.hellos[-1]
    loads, hellos, began = len(scheduler.loads), len(scheduler.hellos), time.monotonic()
    engine.send_signal(number)

    async def seconds(what: "asyncio.Future[object] | asyncio.Task[object]") -> float:
        await what
        return round(time.monotonic() - began, 2)

    refused = scheduler.until(lambda seen: any(not load.serving for load in seen.loads[loads:]), timeout_s=60)
    noticed, unhealthy, *errors = await asyncio.gather(
        seconds(asyncio.ensure_future(refused)),
        seconds(asyncio.ensure_future(running.until_not_serving(60))),
        *(rest_of(call) for call in streams),
    )
    for error in errors:
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert error_from_rpc(error).reason == Reason.ENGINE_DEAD
    await scheduler.until(lambda seen: len(seen.hellos) == hellos + 1, timeout_s=START_S)
    back = round(time.monotonic() - began, 2)
    assert scheduler.hellos[-1].epoch != before.epoch
    assert not scheduler.hellos[-1].leases
    assert not psutil.pid_exists(engine.pid) or engine.status() == psutil.STATUS_ZOMBIE
    return {"signal": number.name, "scheduler_told_s": noticed, "not_serving_s": unhealthy, "serving_again_s": back}


async def idle(running: Process) -> None:
    """Nothing runs, waits or holds a block."""
    await running.scheduler.until(
        lambda seen: (
            (last := seen.loads[-1]).serving
            and not last.running_requests
            and not last.waiting_requests
            and not last.kv_usage
        ),
        timeout_s=30,
    )


async def test_a_killed_and_a_stopped_engine_are_replaced(tmp_path: Path, smollm2: Path, unused_tcp_port: int) -> None:
    """Each time the streams end with a retryable status, the old engine is gone, and the worker serves again."""
    async with worker(tmp_path, unused_tcp_port, **settings_of(smollm2)) as running:
        await running.until_serving(START_S)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            print(json.dumps(await strike(running, number)))  # noqa: T201  measured
            await running.until_serving(30)
            call = WorkerServiceStub(running.channel).Generate(running.request([21] * 40, max_tokens=8))
            assert [frame async for frame in call][-1].WhichOneof("frame") == "finished"
            await idle(running)
        await running.scheduler.until(lambda seen: len(seen.finished) == 8)
        running.process.send_signal(signal.SIGTERM)
        assert await running.process.wait() == 0
    async with Outbox.open(tmp_path / "outbox.sqlite", max_events=100, max_bytes=10**6) as outbox:
        assert outbox.depth == 8


async def test_an_idle_engine_that_is_stopped_is_noticed(tmp_path: Path, smollm2: Path, unused_tcp_port: int) -> None:
    """Before somebody needs it; and a long step with little patience is no hang."""
    patient = settings_of(smollm2, progress_s=2, max_num_batched_tokens=2048, kv_blocks=200)
    async with worker(tmp_path, unused_tcp_port, **patient) as running:
        await running.until_serving(START_S)
        prompt = [20 + token % 1000 for token in range(1990)]
        began = time.monotonic()
        call = WorkerServiceStub(running.channel).Generate(running.request(prompt, max_tokens=2))
        frames = [frame async for frame in call]
        assert frames[-1].finished.finish_reason == FinishReason.FINISH_REASON_LENGTH
        took = round(time.monotonic() - began, 2)
        assert len(running.scheduler.hellos) == 1
        began = time.monotonic()
        running.engine().send_signal(signal.SIGSTOP)
        await running.scheduler.until(lambda seen: not seen.loads[-1].serving, timeout_s=60)
        noticed = round(time.monotonic() - began, 2)
        print(json.dumps({"one_step_s": took, "idle_stopped_noticed_s": noticed}))  # noqa: T201  measured
        await running.scheduler.until(lambda seen: len(seen.hellos) == 2, timeout_s=START_S)
