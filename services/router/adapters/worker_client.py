"""Runs leases on workers over gRPC."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc
import grpc.aio
from downstack.inference.v1.inference_pb2 import GenerateResponse
from downstack.worker.v1.worker_pb2 import GenerateRequest

from services.kit.channel import ChannelPool
from services.kit.clock import Clock
from services.kit.identity import Identity, internal_metadata
from services.kit.status import error_from_rpc
from services.router.adapters.wire_answer import frame_of
from services.router.adapters.wire_request import sampling_to
from services.router.domain.request import Sampling
from services.router.ports import WorkerFrame

_GENERATE = "/downstack.worker.v1.WorkerService/Generate"
_Call: TypeAlias = "grpc.aio.UnaryStreamCall[GenerateRequest, GenerateResponse]"


class WorkerClient:
    """The workers of the fleet, each at its own endpoint."""

    def __init__(self, channels: ChannelPool, *, secret: bytes, clock: Clock) -> None:
        self._channels = channels
        self._secret = secret
        self._clock = clock

    @asynccontextmanager
    async def generate(
        self,
        identity: Identity,
        *,
        endpoint: str,
        ticket: bytes,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        timeout_s: float,
    ) -> AsyncIterator[AsyncIterator[WorkerFrame]]:
        # A worker's frame has the wire form of the router's own, so it is read as one and can be passed on untouched.
        method = self._channels.get(endpoint).unary_stream(
            _GENERATE,
            request_serializer=GenerateRequest.SerializeToString,
            response_deserializer=GenerateResponse.FromString,
        )
        request = GenerateRequest(ticket=ticket, prompt_token_ids=prompt_token_ids, sampling=sampling_to(sampling))
        metadata = internal_metadata("router", identity=identity, secret=self._secret, now=self._clock.now())
        call: _Call = method(request, timeout=timeout_s, metadata=metadata)
        try:
            yield _Frames(call)
        finally:
            # grpc.aio does not cancel a call that nobody reads any more: the worker would go on to its end.
            call.cancel()


class _Frames:
    """The frames of one call."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def __aiter__(self) -> "_Frames":
        return self

    async def __anext__(self) -> WorkerFrame:
        try:
            message = await self._call.read()
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        if not isinstance(message, GenerateResponse):
            raise StopAsyncIteration
        return frame_of(message)
