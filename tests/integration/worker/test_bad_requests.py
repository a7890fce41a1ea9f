"""Single requests that were known to end an engine, or could: each is refused or answered, and the engine goes on."""

import asyncio
import json

import grpc
import pytest
from downstack.types.v1.chat_pb2 import SamplingParams

from services.kit.errors import Code, Reason
from services.kit.status import error_from_rpc
from tests.support.worker_rig import Rig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
PROMPT = [20 + position % 60 for position in range(40)]


def nested(depth: int) -> str:
    schema: dict[str, object] = {"type": "string", "maxLength": 3}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return json.dumps(schema)


BAD_CONSTRAINTS = [
    {"json_schema": "{"},
    {"json_schema": "not JSON"},
    {"json_schema": "[" * 20_000},
    {"json_schema": nested(400)},
    {"json_schema": '{"type": "nothing"}'},
    {"json_schema": '{"type": "string", "pattern": "\\\\d+[a-z"}'},
    {"json_schema": json.dumps({"type": "integer", "minimum": -(10**30)})},
    {"json_schema": json.dumps({"enum": [f"x{number}" for number in range(5000)]})},
    {"regex": "(unclosed"},
    {"regex": "[z-a]"},
    {"regex": "a\0b"},
]
HARD_CONSTRAINTS = [
    {"regex": "(a{1,1000}){1,1000}"},
    {"regex": "((a*)*)*b"},
    # Which compiler vLLM takes depends on the requests before; only one of them knows this class.
    {"regex": "\\p{L}{1,500}"},
    {"regex": "(" * 1000 + ")" * 1000},
    {"json_schema": json.dumps({"type": "array", "items": {"type": "integer"}, "minItems": 5000})},
    {"json_schema": json.dumps({"$ref": "#"})},
    {"json_schema": json.dumps({"type": "string", "maxLength": 10**9})},
    {"json_schema": nested(8)},
]
EXTREMES = [
    {"temperature": 1e-6},
    {"temperature": 2.0, "top_p": 1e-45},
    {"temperature": 2.0, "min_p": 1.0, "top_k": 1},
    {"repetition_penalty": 1e-45},
    {"repetition_penalty": 2.0, "frequency_penalty": -2.0, "presence_penalty": 2.0},
    {"n": 8, "logprobs": 20, "temperature": 1.0, "seed": 2**63 - 1},
    {"logprobs": 0},
    {"stop": ["x" * 256] * 16},
    {"stop_token_ids": list(range(64)), "min_tokens": 4},
    {"min_tokens": 4, "ignore_eos": True},
]


async def still_serves(rig: Rig) -> None:
    answer = await rig.generate(PROMPT, SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    assert len(answer.token_ids()) == 2
    assert rig.worker.healthy()


@pytest.mark.parametrize("constraint", BAD_CONSTRAINTS, ids=range(len(BAD_CONSTRAINTS)))
async def test_a_constraint_that_does_not_compile_is_a_bad_schema(vllm: Rig, constraint: dict[str, str]) -> None:
    """INVALID_ARGUMENT and a sentence."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await vllm.generate(PROMPT, SamplingParams(max_tokens=4, **constraint))
    error = error_from_rpc(caught.value)
    assert (error.reason, error.code) == (Reason.BAD_SCHEMA, Code.INVALID_ARGUMENT)
    await still_serves(vllm)


@pytest.mark.parametrize("constraint", HARD_CONSTRAINTS, ids=range(len(HARD_CONSTRAINTS)))
async def test_a_hard_constraint_is_answered_or_refused(vllm: Rig, constraint: dict[str, str]) -> None:
    """Compiling takes its time, and the streams beside it go on."""
    hard = asyncio.create_task(vllm.generate(PROMPT, SamplingParams(max_tokens=4, **constraint)))
    await still_serves(vllm)
    await asyncio.wait([hard])
    error = hard.exception()
    if isinstance(error, grpc.aio.AioRpcError):
        assert error_from_rpc(error).reason == Reason.BAD_SCHEMA
    else:
        assert (await hard).token_ids()
    await still_serves(vllm)


@pytest.mark.parametrize("extreme", EXTREMES, ids=range(len(EXTREMES)))
async def test_parameters_at_their_limits_are_answered(vllm: Rig, extreme: dict[str, object]) -> None:
    """Nothing that passes the check harms the engine."""
    answer = await vllm.generate(PROMPT, SamplingParams(max_tokens=4, **extreme))  # type: ignore[arg-type]
    assert answer.finished.WhichOneof("frame") == "finished"
    await still_serves(vllm)


async def test_prompts_at_and_beyond_their_limits(vllm: Rig) -> None:
    """The longest that fits is answered; beyond it, and with tokens that do not exist, a reason."""
    context, vocabulary = vllm.engine.spec.context_tokens, vllm.engine.spec.vocab_size
    longest = await vllm.generate([vocabulary - 1] * (context - 1), SamplingParams(ignore_eos=True))
    assert len(longest.token_ids()) == 1
    for prompt, reason in (
        ([20] * context, Reason.PROMPT_TOO_LONG),
        ([20] * 2**20, Reason.PROMPT_TOO_LONG),
        ([vocabulary], Reason.PARAM_OUT_OF_RANGE),
        ([2**32 - 1], Reason.PARAM_OUT_OF_RANGE),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await vllm.generate(prompt)
        assert error_from_rpc(caught.value).reason == reason
    await still_serves(vllm)
