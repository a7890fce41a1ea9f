"""The worker as a process: start, signals, and starts that cannot work."""

import asyncio
import json
import signal
from pathlib import Path

import psutil
import pytest
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceStub

from tests.support.worker_process import environment, launch, worker

pytestmark = pytest.mark.timeout(900)


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


@pytest.mark.vllm
async def test_a_killed_worker_leaves_no_engine(tmp_path: Path, smollm2: Path, unused_tcp_port: int) -> None:
    """Not even an idle one, which would hold the memory that the next start needs."""
    settings = {"engine": "vllm", "model_path": smollm2, "model": "smollm2-135m", "kv_blocks": 100}
    async with worker(tmp_path, unused_tcp_port, **settings) as running:
        await running.until_serving(200)
        engine = running.engine()
        running.process.kill()
        gone, _ = await asyncio.to_thread(psutil.wait_procs, [engine], timeout=10)
        assert gone == [engine]
