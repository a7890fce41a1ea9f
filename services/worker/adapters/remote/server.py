"""One connection to a server that speaks vLLM's contract, and what the server says of itself."""

import asyncio
import hashlib
import io
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
from downstack.smg import common_pb2
from downstack.smg import vllm_engine_pb2 as pb
from downstack.smg.vllm_engine_pb2_grpc import VllmEngineStub

from services.kit.channel import open_channel
from services.kit.errors import StartupError

_CALL_S = 5.0
_POLL_S = 0.5
_MAX_ARCHIVE_BYTES = 256 * 1024 * 1024
_FORBIDDEN = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# How servers say that they lack a method: not at all, or not as it was started.
_LACKING = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.FAILED_PRECONDITION)
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Description:
    """What a server says of itself."""

    model: pb.GetModelInfoResponse
    server: pb.GetServerInfoResponse
    loads: pb.GetLoadsResponse


class RemoteServer:
    """The stub, with what every call carries. What a server lacks is None, not an error."""

    def __init__(self, target: str, *, metadata: Callable[[], Metadata]) -> None:
        self.target = target
        self._metadata = metadata
        # An engine that answers with an error has been asked; whether to ask again is the caller's choice.
        self._channel = open_channel(target, attempts=1)
        self._stub: Any = VllmEngineStub(self._channel)

    async def close(self) -> None:
        """Ends every call."""
        await self._channel.close()

    async def until_healthy(self, *, wait_s: float) -> None:
        """Returns when the server says that it is healthy.

        Raises:
            StartupError: It does not say so in time, or does not let this worker in.
        """
        until, why = time.monotonic() + wait_s, "does not answer"
        while True:
            try:
                response = await self.health()
            except grpc.aio.AioRpcError as error:
                if error.code() in _FORBIDDEN:
                    raise StartupError(
                        f"The remote server {self.target} refuses this worker: {error.details()}"
                    ) from None
                why = f"does not answer ({error.code().name})"
            else:
                if response.healthy:
                    return
                why = f"is not healthy: {response.message}"
            if time.monotonic() >= until:
                raise StartupError(f"The remote server {self.target} {why}.")
            await asyncio.sleep(_POLL_S)

    async def health(self) -> pb.HealthCheckResponse:
        """Raises AioRpcError."""
        response: pb.HealthCheckResponse = await self._unary("HealthCheck", pb.HealthCheckRequest())
        return response

    async def describe(self) -> Description:
        """Raises AioRpcError."""
        return Description(
            model=await self._unary("GetModelInfo", pb.GetModelInfoRequest()),
            server=await self._unary("GetServerInfo", pb.GetServerInfoRequest()),
            loads=await self.loads() or pb.GetLoadsResponse(),
        )

    async def loads(self) -> pb.GetLoadsResponse | None:
        """Raises AioRpcError."""
        response: pb.GetLoadsResponse | None = await _if_there(self._unary("GetLoads", pb.GetLoadsRequest()))
        return response

    async def tokenizer_revision(self) -> str | None:
        """The revision of its tokenizer, as that of our own is made. Raises AioRpcError."""
        revision: str | None = await _if_there(self._tokenizer_revision())
        return revision

    async def subscribe(self) -> Any | None:
        """The stream of its KV events. Raises AioRpcError."""
        request = common_pb2.SubscribeKvEventsRequest()
        call = self._stub.SubscribeKvEvents(request, metadata=self._metadata())
        return await _if_there(_opened(call))

    def generate(self, request: pb.GenerateRequest) -> Any:
        """The stream of an answer."""
        return self._stub.Generate(request, metadata=self._metadata())

    async def abort(self, request_ids: list[str]) -> None:
        """Raises AioRpcError."""
        await self._unary("Abort", pb.AbortRequest(request_ids=request_ids))

    async def _unary(self, method: str, request: Any) -> Any:
        return await getattr(self._stub, method)(request, metadata=self._metadata(), timeout=_CALL_S)

    async def _tokenizer_revision(self) -> str | None:
        call = self._stub.GetTokenizer(common_pb2.GetTokenizerRequest(), metadata=self._metadata(), timeout=_CALL_S * 4)
        data = bytearray()
        async for chunk in call:
            data += chunk.data
            if len(data) > _MAX_ARCHIVE_BYTES:
                return None
        return await asyncio.to_thread(_revision, bytes(data))


async def _opened(call: Any) -> Any:
    """The call, once the server has taken it."""
    try:
        async with asyncio.timeout(_CALL_S):
            await call.initial_metadata()
            if call.done():
                raise await _failure(call)
    except TimeoutError:
        # Servers that say nothing before the first event have taken it, too.
        return call
    return call


async def _failure(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


async def _if_there(asking: Any) -> Any:
    try:
        return await asking
    except grpc.aio.AioRpcError as error:
        if error.code() in _LACKING:
            return None
        raise


def _revision(archive: bytes) -> str | None:
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            return hashlib.sha256(files.read("tokenizer.json")).hexdigest()[:16]
    except (zipfile.BadZipFile, KeyError):
        return None
