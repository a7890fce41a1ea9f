"""The public API over gRPC."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from downstack.inference.v1 import inference_pb2 as inference_pb
from downstack.inference.v1.inference_pb2_grpc import InferenceServiceServicer

from services.kit import context as call_context
from services.kit.clock import Clock
from services.kit.identity import Access, current_identity
from services.router.adapters.once import OnceCollector
from services.router.adapters.wire_answer import attempts_to, frame_to, model_to, started_to
from services.router.adapters.wire_request import caller_event_of, spec_of, timestamp_to
from services.router.app.call import Call
from services.router.app.router import Router

SERVICE = "downstack.inference.v1.InferenceService"
ACCESS = {
    f"/{SERVICE}/Generate": Access.scope("generate"),
    f"/{SERVICE}/GenerateOnce": Access.scope("generate"),
    f"/{SERVICE}/Reserve": Access.scope("generate"),
    f"/{SERVICE}/CountTokens": Access.scope("generate"),
    f"/{SERVICE}/ListModels": Access.scope("generate", "usage", "admin"),
    f"/{SERVICE}/RecordEvents": Access.scope("generate"),
    f"/{SERVICE}/ExplainRequest": Access.scope("generate", "usage"),
}


class InferenceServicer(InferenceServiceServicer):
    """Turns messages into the router's own types and back; decides nothing."""

    def __init__(self, router: Router, *, clock: Clock, default_deadline_s: float) -> None:
        self._router = router
        self._clock = clock
        self._default_deadline_s = default_deadline_s

    async def Generate(  # noqa: N802
        self, request: inference_pb.GenerateRequest, _context: Any
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        frames = self._router.generate(self._call("Generate"), spec_of(request.spec))
        async with aclosing(frames):
            async for frame in frames:
                yield frame_to(frame)

    async def GenerateOnce(  # noqa: N802
        self, request: inference_pb.GenerateOnceRequest, _context: Any
    ) -> inference_pb.GenerateOnceResponse:
        collector = OnceCollector()
        frames = self._router.generate(self._call("GenerateOnce"), spec_of(request.spec))
        async with aclosing(frames):
            async for frame in frames:
                collector.add(frame_to(frame))
        return collector.response()

    async def Reserve(  # noqa: N802
        self, request: inference_pb.ReserveRequest, _context: Any
    ) -> inference_pb.ReserveResponse:
        reserved = await self._router.reserve(self._call("Reserve"), spec_of(request.spec))
        placement = reserved.started.placement
        return inference_pb.ReserveResponse(
            request_id=reserved.started.request_id,
            endpoint=placement.endpoint,
            ticket=placement.ticket,
            prompt_token_ids=reserved.token_ids,
            expires_at=timestamp_to(placement.expires_at_ns),
            started=started_to(reserved.started),
        )

    async def CountTokens(  # noqa: N802
        self, request: inference_pb.CountTokensRequest, _context: Any
    ) -> inference_pb.CountTokensResponse:
        counted = await self._router.count_tokens(spec_of(request.spec))
        return inference_pb.CountTokensResponse(
            input_tokens=len(counted.token_ids), context_tokens=counted.context_tokens, token_ids=counted.token_ids
        )

    async def ListModels(  # noqa: N802
        self, _request: inference_pb.ListModelsRequest, _context: Any
    ) -> inference_pb.ListModelsResponse:
        return inference_pb.ListModelsResponse(models=[model_to(model) for model in self._router.list_models()])

    async def RecordEvents(  # noqa: N802
        self, request: inference_pb.RecordEventsRequest, _context: Any
    ) -> inference_pb.RecordEventsResponse:
        events = [caller_event_of(event) for event in request.events]
        recorded = await self._router.record_events(self._call("RecordEvents"), events)
        return inference_pb.RecordEventsResponse(recorded=recorded)

    async def ExplainRequest(  # noqa: N802
        self, request: inference_pb.ExplainRequestRequest, _context: Any
    ) -> inference_pb.ExplainRequestResponse:
        attempts = await self._router.explain(self._call("ExplainRequest"), request.request_id)
        return attempts_to(request.request_id, attempts)

    def _call(self, method: str) -> Call:
        now_s = self._clock.monotonic()
        deadline_s = call_context.deadline.get()
        return Call(
            identity=current_identity(),
            request_id=call_context.current_request_id(),
            method=method,
            received_s=now_s,
            deadline_s=now_s + self._default_deadline_s if deadline_s is None else deadline_s,
        )
