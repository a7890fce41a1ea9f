"""What probes and tools see: health, and the contracts through reflection."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
from downstack.inference.v1 import inference_pb2, inference_pb2_grpc
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from services.kit.clock import SystemClock
from services.kit.identity import Access, AssertionAuthenticator
from services.kit.server import Binding, Server, ServiceParts, serving
from services.kit.settings import ServiceSettings

ROOT = Path(__file__).parents[3]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def unary(request: StringValue, _: Any) -> StringValue:
    return request


async def status_of(echo: Any, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(echo.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


def watch(echo: Any, service: str = "") -> Any:
    return health_pb2_grpc.HealthStub(echo.channel).Watch(health_pb2.HealthCheckRequest(service=service))


async def test_health_starts_as_not_serving() -> None:
    """A server that listens but is not ready says so, for the process and for each service; yet the process lives."""
    server = Server(settings())
    server.listen()
    await server.start(inference_parts())
    async with grpc.aio.insecure_channel(server.address) as channel:
        echo = SimpleNamespace(channel=channel)
        names = ["", "downstack.inference.v1.InferenceService", "liveness"]
        assert [await status_of(echo, name) for name in names] == [NOT_SERVING, NOT_SERVING, SERVING]
        server.health.set_serving(True)
        assert [await status_of(echo, name) for name in names] == [SERVING, SERVING, SERVING]
    await server.drain()


async def test_a_service_that_is_not_here_is_not_found(serve: Any) -> None:
    """Check says NOT_FOUND; Watch says SERVICE_UNKNOWN and goes on, as the contract asks."""
    async with serve({"unary": unary}) as echo:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status_of(echo, "test.v1.Other")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        call = watch(echo, "test.v1.Other")
        assert (await call.read()).status == SERVICE_UNKNOWN
        call.cancel()


async def test_every_watcher_is_told_of_every_change(serve: Any) -> None:
    """Several watchers of one service, one of which leaves early."""
    async with serve({"unary": unary}) as echo:
        calls = [watch(echo) for _ in range(3)]
        assert [(await call.read()).status for call in calls] == [SERVING] * 3
        calls[0].cancel()
        echo.server.health.set_serving(False)
        assert [(await call.read()).status for call in calls[1:]] == [NOT_SERVING] * 2
        echo.server.health.set_serving(True)
        assert [(await call.read()).status for call in calls[1:]] == [SERVING] * 2


async def test_a_drain_tells_the_watchers_and_ends_their_streams(serve: Any) -> None:
    """They do not hold the stopping server: it is gone long before its grace is over."""
    loop = asyncio.get_running_loop()
    async with serve({"unary": unary}) as echo:
        calls = [watch(echo), watch(echo, "test.v1.Echo")]
        assert [(await call.read()).status for call in calls] == [SERVING] * 2
        started = loop.time()
        await echo.server.drain()
        took = loop.time() - started
        assert [(await call.read()).status for call in calls] == [NOT_SERVING] * 2
        assert [await call.read() for call in calls] == [grpc.aio.EOF] * 2
        assert [await call.code() for call in calls] == [grpc.StatusCode.OK] * 2
        echo.server.health.set_serving(True)
        assert not echo.server.health.serving
    assert took < 0.9


class _Inference(inference_pb2_grpc.InferenceServiceServicer):
    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:  # noqa: N802
        return inference_pb2.ListModelsResponse(models=[inference_pb2.Model(name="sim-small")])


def settings() -> ServiceSettings:
    return ServiceSettings(listen="127.0.0.1:0", service_secret="correct-horse-battery")  # type: ignore[arg-type]


def inference_parts() -> ServiceParts:
    name = "downstack.inference.v1.InferenceService"
    binding = Binding(inference_pb2_grpc.add_InferenceServiceServicer_to_server, _Inference(), name)
    authenticator = AssertionAuthenticator(b"", SystemClock())
    return ServiceParts([binding], {f"/{name}/ListModels": Access.PUBLIC}, authenticator)


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """A server with a real contract."""
    async with serving(inference_parts(), settings()) as server:
        yield server.address


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_both_versions_of_reflection_answer(address: str, version: str) -> None:
    """Services are listed, and each has its descriptor: the reflection service itself, too."""
    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = method()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = [service.name for service in (await call.read()).list_services_response.service]
        assert listed == [
            "downstack.inference.v1.InferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ]
        for name in listed:
            await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
            assert (await call.read()).file_descriptor_response.file_descriptor_proto
        method = "downstack.inference.v1.InferenceService.Generate"
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=method))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
        for unknown in ("no.Such", "Such", "downstack.inference.v1.InferenceService.Nothing"):
            await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=unknown))
            assert (await call.read()).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        await call.done_writing()


async def _output(*command: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode()


@pytest.mark.parametrize("protocol", ["grpc-v1", "grpc-v1alpha"])
async def test_buf_calls_through_reflection(address: str, protocol: str) -> None:
    """A client of another make learns the contract from the server and calls it."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        pytest.skip("buf is not installed")
    url = f"http://{address}/downstack.inference.v1.InferenceService/ListModels"
    flags = ("--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", protocol)
    status, out = await _output(buf, "curl", *flags, url)
    assert status == 0, out
    assert json.loads(out)["models"][0]["name"] == "sim-small"


async def test_the_probe_tells_serving_from_not(address: str) -> None:
    """0: SERVING; 2: nobody answers, or there is no such service."""
    probe = (sys.executable, "-m", "services.kit.probe")
    assert await _output(*probe, address) == (0, "SERVING\n")
    assert (await _output(*probe, address, "--service", "downstack.inference.v1.InferenceService"))[0] == 0
    assert (await _output(*probe, address, "--service", "nope"))[0] == 2
    assert (await _output(*probe, "127.0.0.1:1", "--timeout", "0.5"))[0] == 2
