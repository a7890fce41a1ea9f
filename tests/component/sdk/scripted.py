"""A router that answers as its script says, over real gRPC."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import grpc
from downstack.inference.v1 import inference_pb2, inference_pb2_grpc
from downstack.types.v1.decision_pb2 import Decision
from downstack.types.v1.stream_pb2 import Citation, Delta, Finished, Started
from downstack.types.v1.usage_pb2 import FINISH_REASON_STOP, Cost, TokenUsage
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

KEY = "ds_live_test"


class ScriptedRouter(inference_pb2_grpc.InferenceServiceServicer):
    """The model named in a request says what happens to it."""

    def __init__(self) -> None:
        self.cancelled = Event()
        self.seen: list[Any] = []

    def Generate(self, request: Any, context: Any) -> Iterator[inference_pb2.GenerateResponse]:  # noqa: N802 -- gRPC's name
        self.seen.append((request, dict(context.invocation_metadata()), context.time_remaining()))
        yield inference_pb2.GenerateResponse(sequence=0, started=started())
        match request.spec.model:
            case "breaks":
                context.abort_with_status(refusal(code_pb2.ABORTED, "WORKER_LOST_MID_STREAM"))
            case "stops":
                return
            case "endless":
                context.add_callback(self.cancelled.set)
                yield inference_pb2.GenerateResponse(sequence=1, delta=Delta(text="x"))
                self.cancelled.wait(30)
                return
        for number, text in enumerate(("Hel", "lo"), start=1):
            yield inference_pb2.GenerateResponse(sequence=number, delta=Delta(text=text))
        yield inference_pb2.GenerateResponse(sequence=3, finished=finished())

    def GenerateOnce(self, request: Any, context: Any) -> inference_pb2.GenerateOnceResponse:  # noqa: N802 -- gRPC's name
        match request.spec.model:
            case "unknown":
                context.abort_with_status(refusal(code_pb2.NOT_FOUND, "MODEL_NOT_FOUND"))
            case "bad":
                field = error_details_pb2.BadRequest.FieldViolation(field="spec.sampling.top_p", description="too big")
                bad = error_details_pb2.BadRequest(field_violations=[field])
                context.abort_with_status(refusal(code_pb2.INVALID_ARGUMENT, "PARAM_OUT_OF_RANGE", bad))
            case "busy":
                retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
                context.abort_with_status(refusal(code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry))
            case "slow":
                self.cancelled.wait(5)
        choice = inference_pb2.Choice(text="Hello")
        return inference_pb2.GenerateOnceResponse(started=started(), choices=[choice], finished=finished())

    def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:  # noqa: N802 -- gRPC's name
        return inference_pb2.ListModelsResponse(models=[inference_pb2.Model(name="good", workers=1)])


def started() -> Started:
    return Started(
        request_id="req_1",
        model="good",
        worker_id="worker-1",
        decision=Decision(reason="it holds the prompt"),
        citations=[Citation(mark=1, document_id="d")],
    )


def finished() -> Finished:
    usage = TokenUsage(input_total=3, input_cached=1, output_total=2)
    return Finished(finish_reason=FINISH_REASON_STOP, usage=usage, cost=Cost(nano_units=7, currency="USD"))


def refusal(code: int, reason: str, *details: Any) -> Any:
    info = error_details_pb2.ErrorInfo(reason=reason, domain="downstack", metadata={"request_id": "req_2"})
    packed = []
    for detail in (info, *details):
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return rpc_status.to_status(status_pb2.Status(code=code, message="It was refused.", details=packed))


@contextmanager
def serving() -> Iterator[tuple[ScriptedRouter, str]]:
    router = ScriptedRouter()
    server = grpc.server(ThreadPoolExecutor(8))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield router, f"127.0.0.1:{port}"
    finally:
        router.cancelled.set()
        server.stop(None).wait()
