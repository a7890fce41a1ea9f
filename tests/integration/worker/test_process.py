"""The worker as a process: start, signals, and starts that cannot work."""

import asyncio
import json
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceStub

from services.kit.errors import StartupError
from services.kit.models import Tokenizer
from services.worker.domain.rates import Rates
from services.worker.settings import WorkerSettings
from tests.support.worker_process import environment, launch, worker
from tests.support.worker_rig import SECRET

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
        assert running.scheduler.hellos[0].worker_id == f"wkr-127.0.0.1:{unused_tcp_port}"
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


async def test_workers_on_one_machine_have_nothing_in_common(
    tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """Each has its id, its epoch, its folder and its port; a second one on the same outbox does not start."""
    ports = [unused_tcp_port_factory() for _ in range(3)]
    folders = [tmp_path / str(port) for port in ports]
    for folder in folders:
        folder.mkdir()
    async with worker(folders[0], ports[0]) as first, worker(folders[1], ports[1]) as second:
        await asyncio.gather(first.until_serving(60), second.until_serving(60))
        hellos = [running.scheduler.hellos[0] for running in (first, second)]
        assert len({hello.worker_id for hello in hellos}) == 2
        assert len({hello.epoch for hello in hellos}) == 2
        assert len({hello.endpoint for hello in hellos}) == 2
        status, words = await last_words(environment(folders[0], listen=f"127.0.0.1:{ports[2]}"))
        assert status == 1
        assert "outbox" in words


@pytest.mark.vllm
def test_engines_of_one_machine_have_their_own_sockets(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one that follows a lost one; a temporary folder too deep for a socket is one sentence."""
    from services.worker.adapters.vllm.launch import vllm_engine  # noqa: PLC0415  it takes seconds to import

    settings = WorkerSettings(
        engine="vllm",
        model_path=str(smollm2),
        service_secret=SECRET.decode(),
        kafka_bootstrap="unused:1",
        outbox_path=tmp_path / "unused",
    )
    tokenizer = Tokenizer.load(smollm2)
    engines = [vllm_engine(settings, tokenizer, rates=Rates(5.0, 0.1, 10.0, 0.5)) for _ in range(2)]
    configs = [engine._args.kv_events_config for engine in engines]
    assert len({config.endpoint for config in configs} | {config.replay_endpoint for config in configs}) == 4
    for engine in engines:
        engine._scratch.rmdir()
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(StartupError, match="too long for a Unix socket"):
        vllm_engine(settings, tokenizer, rates=Rates(5.0, 0.1, 10.0, 0.5))
    assert not list(deep.iterdir())


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
