"""The life of a service's process: start, readiness, signals, drain, and how it says that it cannot start."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from downstack.inference.v1 import inference_pb2, inference_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.errors import Reason
from services.kit.status import error_from_rpc

ROOT = Path(__file__).parents[3]
EXAMPLE = Path(__file__).with_name("example.py")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Process:
    """One run of the example service."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self, event: str) -> dict[str, Any]:
        """Reads the log up to this event."""
        assert self.process.stderr is not None
        while raw := await asyncio.wait_for(self.process.stderr.readline(), 30):
            self.lines.append(raw.decode())
            if raw.startswith(b"{") and json.loads(raw)["event"] == event:
                return dict(json.loads(raw))
        raise AssertionError(f"no {event!r} in {self.lines}")

    async def end(self) -> tuple[int, str]:
        """The exit status and what was written in all."""
        assert self.process.stderr is not None
        self.lines += (await asyncio.wait_for(self.process.stderr.read(), 30)).decode().splitlines(keepends=True)
        return await self.process.wait(), "".join(self.lines)


@asynccontextmanager
async def example(**settings: str) -> AsyncIterator[Process]:
    defaults = {"service_secret": "correct-horse-battery", "listen": "127.0.0.1:0", "drain_s": "5"}
    env = {f"DOWNSTACK_EXAMPLE_{name.upper()}": value for name, value in (defaults | settings).items()}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), env=env, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def stubs(address: str) -> AsyncIterator[tuple[Any, Any]]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel), health_pb2_grpc.HealthStub(channel)


async def test_a_service_starts_serves_and_leaves() -> None:
    """Ready, SERVING, an answer, metrics; after SIGTERM everything is put away and the status is 0."""
    async with example() as running:
        listening = await running.line("listening")
        await running.line("ready")
        async with stubs(listening["grpc"]) as (inference, health):
            watched = health.Watch(health_pb2.HealthCheckRequest())
            while (await watched.read()).status != SERVING:
                pass
            await inference.ListModels(inference_pb2.ListModelsRequest())
            page = await _http_get(listening["metrics"])
            assert 'rpc_method="downstack.inference.v1.InferenceService/ListModels"' in page
            assert "downstack_serving 1.0" in page
            running.process.send_signal(signal.SIGTERM)
            assert (await watched.read()).status == NOT_SERVING
            assert await watched.read() is grpc.aio.EOF
        status, out = await running.end()
    assert status == 0
    assert '"event": "unwired"' in out


async def _http_get(address: str) -> str:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    page = (await reader.read()).decode()
    writer.close()
    return page


async def test_a_running_stream_outlives_the_signal() -> None:
    """A stream that is under way when SIGTERM comes is delivered to its end."""
    async with example() as running:
        listening = await running.line("listening")
        async with stubs(listening["grpc"]) as (inference, _):
            request = inference_pb2.GenerateRequest(spec=inference_pb2.GenerationSpec(model="0.5"))
            call = inference.Generate(request)
            assert (await call.read()).sequence == 0
            running.process.send_signal(signal.SIGTERM)
            await running.line("draining")
            assert (await call.read()).sequence == 1
            assert await call.read() is grpc.aio.EOF
        assert (await running.end())[0] == 0


async def test_a_second_signal_does_not_wait() -> None:
    """The stream is ended with DRAINING instead of holding the process for its budget."""
    async with example(drain_s="60") as running:
        listening = await running.line("listening")
        async with stubs(listening["grpc"]) as (inference, _):
            request = inference_pb2.GenerateRequest(spec=inference_pb2.GenerationSpec(model="3600"))
            call = inference.Generate(request)
            await call.read()
            running.process.send_signal(signal.SIGINT)
            await running.line("draining")
            running.process.send_signal(signal.SIGINT)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert error_from_rpc(caught.value).reason is Reason.DRAINING
        assert (await running.end())[0] == 0


@pytest.mark.parametrize("fault", ["slow start", "never ready"])
async def test_a_signal_before_readiness_ends_the_start(fault: str) -> None:
    async with example(fault=fault) as running:
        if fault == "never ready":
            await running.line("listening")
        else:
            await _until_wiring(running)
        running.process.send_signal(signal.SIGTERM)
        status, out = await running.end()
    assert status == 0
    assert "Traceback" not in out


async def _until_wiring(running: Process) -> None:
    """The signal handlers are there once the metrics are served."""
    await running.line("starting")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("startup", "example: The model folder is empty."),
        ("dependency", "example: PostgreSQL does not answer."),
        ("ready", "example: The engine has no memory."),
    ],
)
async def test_a_service_that_cannot_start_says_why_in_one_sentence(fault: str, sentence: str) -> None:
    async with example(fault=fault) as running:
        status, out = await running.end()
    said = [line for line in out.splitlines() if not line.startswith("{")]
    assert (status, said) == (1, [sentence])


@pytest.mark.parametrize("setting", ["listen", "metrics_listen"])
async def test_a_port_in_use_is_one_sentence(setting: str) -> None:
    """Nothing of gRPC's own, no traceback, status 1, and nothing was wired."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with example(**{setting: address}) as running:
            status, out = await running.end()
    (sentence,) = [line for line in out.splitlines() if not line.startswith("{")]
    assert (status, address in sentence, "in use" in sentence) == (1, True, True)
    assert "unwired" not in out


async def test_two_processes_share_a_port_only_on_request() -> None:
    """SO_REUSEPORT is off, or a second copy would silently take half of the calls."""
    async with example() as first:
        address = (await first.line("listening"))["grpc"]
        async with example(listen=address) as second:
            assert (await second.end())[0] == 1
    async with example(reuse_port="true") as first:
        address = (await first.line("listening"))["grpc"]
        async with example(reuse_port="true", listen=address) as second:
            assert (await second.line("listening"))["grpc"] == address


async def test_a_failed_task_ends_the_process_with_an_error() -> None:
    """A consumer that died must not leave a process behind that looks well. The log has its place, not its text."""
    async with example(fault="task") as running:
        status, out = await running.end()
    assert status == 1
    failed = next(json.loads(line) for line in out.splitlines() if '"failed"' in line)
    assert failed["exception"][0]["type"] == "ValueError"
    assert "canary" not in out


async def test_health_follows_what_the_service_says_of_itself() -> None:
    """Asked each second while it runs."""
    async with example(fault="unhealthy first") as running:
        address = (await running.line("listening"))["grpc"]
        async with stubs(address) as (_, health):
            watched = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watched.read()).status == NOT_SERVING
            assert (await watched.read()).status == SERVING
            watched.cancel()
        assert (await running.line("health changed"))["serving"] is True


async def test_bad_settings_are_status_2() -> None:
    async with example(drain_s="soon", typo="1") as running:
        status, out = await running.end()
    assert status == 2
    assert "DOWNSTACK_EXAMPLE_DRAIN_S" in out
    assert "DOWNSTACK_EXAMPLE_TYPO: there is no such setting" in out
