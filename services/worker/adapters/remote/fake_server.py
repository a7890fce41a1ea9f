"""A server of vLLM's contract that says what it is told to: for tests of the adapter alone."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import grpc.aio
from downstack.smg import common_pb2, vllm_engine_pb2_grpc
from downstack.smg import vllm_engine_pb2 as pb


@dataclass
class FakeServer(vllm_engine_pb2_grpc.VllmEngineServicer):
    """What it lacks is UNIMPLEMENTED, as in the generated servicer.

    Attributes:
        script: What each Generate sends, in order.
        failure: What each Generate ends with. None: with the script.
        endless: Whether a Generate goes on after its script until it is cancelled.
        healthy: What HealthCheck says.
        checked: Set by each HealthCheck.
        forbidden: Whether every call is refused.
        batches: What each subscription sends; it ends with the last one. None: there are no subscriptions.
        archive: The tokenizer's files. None: there is no GetTokenizer.
        requests: The requests that came.
        metadata: What the last call carried.
        aborted: The ids that were to be aborted.
        subscriptions: How many there were.
    """

    script: Sequence[pb.GenerateResponse] = ()
    failure: tuple[grpc.StatusCode, str] | None = None
    endless: bool = False
    healthy: bool = True
    checked: asyncio.Event = field(default_factory=asyncio.Event)
    forbidden: bool = False
    batches: Sequence[common_pb2.KvEventBatch] | None = None
    archive: bytes | None = None
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    metadata: dict[str, object] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    subscriptions: int = 0

    async def HealthCheck(  # noqa: N802
        self, _request: pb.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> pb.HealthCheckResponse:
        """As it is told."""
        self.metadata = dict(context.invocation_metadata() or ())
        self.checked.set()
        if self.forbidden:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
        return pb.HealthCheckResponse(healthy=self.healthy, message="as told")

    async def GetModelInfo(  # noqa: N802
        self, _request: pb.GetModelInfoRequest, _context: grpc.aio.ServicerContext
    ) -> pb.GetModelInfoResponse:
        """A large context."""
        return pb.GetModelInfoResponse(max_context_length=100_000, served_model_name="theirs")

    async def GetServerInfo(  # noqa: N802
        self, _request: pb.GetServerInfoRequest, _context: grpc.aio.ServicerContext
    ) -> pb.GetServerInfoResponse:
        """Nothing but its kind."""
        return pb.GetServerInfoResponse(server_type="vllm-grpc")

    async def Abort(  # noqa: N802
        self, request: pb.AbortRequest, _context: grpc.aio.ServicerContext
    ) -> pb.AbortResponse:
        """Takes note, and does nothing."""
        self.aborted += request.request_ids
        return pb.AbortResponse()

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """As it is told."""
        self.requests.append(request)
        for response in self.script:
            yield response
        if self.endless:
            await asyncio.Event().wait()
        if self.failure is not None:
            await context.abort(*self.failure)

    async def SubscribeKvEvents(  # noqa: N802
        self, _request: common_pb2.SubscribeKvEventsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[common_pb2.KvEventBatch, None]:
        """As it is told."""
        self.subscriptions += 1
        if self.batches is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no KV events")
            return
        for batch in self.batches:
            yield batch

    async def GetTokenizer(  # noqa: N802
        self, _request: common_pb2.GetTokenizerRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[common_pb2.GetTokenizerChunk, None]:
        """As it is told."""
        if self.archive is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no tokenizer")
            return
        yield common_pb2.GetTokenizerChunk(data=self.archive)
