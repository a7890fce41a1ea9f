"""A service of its own process, for the tests of a process's life. What it does, the environment's FAULT says."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from downstack.inference.v1 import inference_pb2, inference_pb2_grpc
from pydantic_settings import SettingsConfigDict

from services.kit.clock import SystemClock
from services.kit.errors import DownstackError, Reason, StartupError
from services.kit.identity import Access, AssertionAuthenticator
from services.kit.run import Binding, ServiceParts, run_service
from services.kit.settings import ServiceSettings

NAME = "downstack.inference.v1.InferenceService"


class ExampleSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="DOWNSTACK_EXAMPLE_")

    fault: str = ""
    """What goes wrong."""


class _Inference(inference_pb2_grpc.InferenceServiceServicer):
    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:  # noqa: N802
        return inference_pb2.ListModelsResponse(models=[inference_pb2.Model(name=str(os.getpid()))])

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield inference_pb2.GenerateResponse(sequence=0)
        await asyncio.sleep(float(request.spec.model))
        yield inference_pb2.GenerateResponse(sequence=1)


@asynccontextmanager
async def wire(settings: ExampleSettings) -> AsyncIterator[ServiceParts]:
    if settings.fault == "startup":
        raise StartupError("The model folder is empty.")
    if settings.fault == "dependency":
        raise DownstackError(Reason.DEPENDENCY_UNAVAILABLE, "PostgreSQL does not answer.")
    if settings.fault == "slow start":
        await asyncio.Event().wait()
    healthy = asyncio.Event()

    async def task() -> None:
        if settings.fault == "task":
            raise ValueError("canary")
        await asyncio.Event().wait()

    async def ready() -> None:
        if settings.fault == "ready":
            raise StartupError("The engine has no memory.")
        if settings.fault == "never ready":
            await asyncio.Event().wait()

    def health() -> bool:
        # Unhealthy when first asked, and well after that.
        was = settings.fault != "unhealthy first" or healthy.is_set()
        healthy.set()
        return was

    access = {f"/{NAME}/{method}": Access.PUBLIC for method in ("ListModels", "Generate")}
    binding = Binding(inference_pb2_grpc.add_InferenceServiceServicer_to_server, _Inference(), NAME)
    authenticator = AssertionAuthenticator(settings.secret_bytes, SystemClock())
    parts = ServiceParts([binding], access, authenticator, tasks=[task], ready=ready, healthy=health)
    try:
        yield parts
    finally:
        sys.stderr.write('{"event": "unwired"}\n')


if __name__ == "__main__":
    run_service("example", ExampleSettings, wire)
