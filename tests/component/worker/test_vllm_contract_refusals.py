"""What a worker refuses of vLLM's contract, and why."""

import pytest
from downstack.smg import common_pb2
from downstack.smg import vllm_engine_pb2 as pb
from downstack.smg.vllm_engine_pb2_grpc import VllmEngineStub

from services.kit.errors import Reason
from tests.support.contract_calls import asked, records, refusal
from tests.support.worker_rig import Rig

UNSUPPORTED = {
    "logit_bias": pb.GenerateRequest(sampling_params=pb.SamplingParams(logit_bias={1: 1.0})),
    "prompt_logprobs": pb.GenerateRequest(sampling_params=pb.SamplingParams(prompt_logprobs=1)),
    "truncate": pb.GenerateRequest(sampling_params=pb.SamplingParams(truncate_prompt_tokens=1)),
    "grammar": pb.GenerateRequest(sampling_params=pb.SamplingParams(grammar="root ::= 'a'")),
    "choice": pb.GenerateRequest(sampling_params=pb.SamplingParams(choice=pb.ChoiceConstraint(choices=["a"]))),
    "media": pb.GenerateRequest(media_refs=pb.MediaRefs()),
    "pixels": pb.GenerateRequest(mm_inputs=pb.MultimodalInputs(pixel_values=pb.TensorData())),
    "transfer": pb.GenerateRequest(kv_transfer_params_json="{}"),
    "rank": pb.GenerateRequest(data_parallel_rank=1),
    "regex on this engine": pb.GenerateRequest(sampling_params=pb.SamplingParams(regex="a+")),
}


@pytest.mark.parametrize("what", list(UNSUPPORTED))
async def test_what_cannot_be_honoured_is_refused(open_stub: VllmEngineStub, rig: Rig, what: str) -> None:
    """UNSUPPORTED_FEATURE rather than an answer to another question."""
    request = asked([5] * 20)
    request.MergeFrom(UNSUPPORTED[what])
    assert await refusal(open_stub.Generate(request)) == Reason.UNSUPPORTED_FEATURE
    assert all(record.usage.output_total == 0 for record in records(rig))


async def test_subscribers_are_bounded(open_stub: VllmEngineStub) -> None:
    """STREAM_LIMIT for one too many; one that leaves makes room."""
    calls = [open_stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest()) for _ in range(64)]
    for call in calls:
        await anext(aiter(call))
    assert await refusal(open_stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest())) == Reason.STREAM_LIMIT
    for call in calls:
        call.cancel()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (asked([]), Reason.PARAM_OUT_OF_RANGE),
        (asked([10**6]), Reason.PARAM_OUT_OF_RANGE),
        (asked([1] * 512), Reason.PROMPT_TOO_LONG),
        (asked([1], temperature=3.0), Reason.PARAM_OUT_OF_RANGE),
        (asked([1], logprobs=-1), Reason.PARAM_OUT_OF_RANGE),
        (asked([1], n=9), Reason.PARAM_OUT_OF_RANGE),
        (asked([1], request_id="x" * 257), Reason.PARAM_OUT_OF_RANGE),
        (asked([1], salt="x" * 1022), Reason.PARAM_OUT_OF_RANGE),
    ],
)
async def test_bad_input_is_refused(open_stub: VllmEngineStub, request_: pb.GenerateRequest, reason: Reason) -> None:
    """The same limits as at the worker's own contract."""
    assert await refusal(open_stub.Generate(request_)) == reason
