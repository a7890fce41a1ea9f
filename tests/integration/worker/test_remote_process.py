"""Two processes: a worker with the engine `remote`, in front of one that serves the contract."""

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from downstack.smg import vllm_engine_pb2 as pb
from downstack.smg.vllm_engine_pb2_grpc import VllmEngineStub
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceStub

from tests.support.remote_engine import asserted, contract_process
from tests.support.worker_process import environment, launch, worker

pytestmark = pytest.mark.timeout(120)


async def test_a_ticket_is_answered_by_the_server_behind(
    tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """The settings are enough; the scheduler sees a remote engine with exact KV events."""
    inner, outer = unused_tcp_port_factory(), unused_tcp_port_factory()
    (tmp_path / "inner").mkdir()
    async with (
        contract_process(tmp_path / "inner", inner),
        worker(tmp_path, outer, engine="remote", remote_target=f"127.0.0.1:{inner}", remote_assertion=True) as process,
    ):
        await process.until_serving(30)
        spec = process.scheduler.hellos[-1].spec
        assert (spec.engine, spec.engine_version, spec.kv_events) == ("remote", "sim 1", True)
        assert (spec.context_tokens, spec.kv_blocks, spec.block_size) == (512, 64, 32)
        request = process.request(list(range(40)), max_tokens=8)
        frames = [frame async for frame in WorkerServiceStub(process.channel).Generate(request)]
        assert frames[-1].finished.usage.output_total == 8
        await process.scheduler.until(lambda seen: len(seen.blocks) == 1)
        # The contract is off unless a setting says so, and then nobody is told that it exists.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await VllmEngineStub(process.channel).HealthCheck(pb.HealthCheckRequest(), metadata=asserted())
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"engine": "remote"}, b"remote_target: is required"),
        ({"vllm_contract": "open"}, b"vllm_contract_tenant: is required"),
    ],
)
async def test_settings_that_cannot_work_are_named(
    tmp_path: Path, unused_tcp_port: int, settings: dict[str, str], why: bytes
) -> None:
    """Exit status 2, and the setting that is missing."""
    process = await launch(environment(tmp_path, listen=f"127.0.0.1:{unused_tcp_port}", **settings))
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert why in errors


async def test_a_server_that_is_not_there_is_one_sentence(
    tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """Exit status 1, after the wait of the settings."""
    target = f"127.0.0.1:{unused_tcp_port_factory()}"
    listen = f"127.0.0.1:{unused_tcp_port_factory()}"
    env = environment(tmp_path, listen=listen, engine="remote", remote_target=target, remote_wait_s=0)
    process = await launch(env)
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert f"The remote server {target} does not answer" in errors.decode().strip().splitlines()[-1]
