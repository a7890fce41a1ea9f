"""Calls of vLLM's contract."""

from typing import Any

import grpc
import pytest
from downstack.events.v1.events_pb2 import UsageRecorded
from downstack.smg import vllm_engine_pb2 as pb

from services.kit.clock import SystemClock
from services.kit.errors import Reason
from services.kit.identity import ASSERTION_KEY, Identity, sign_assertion
from services.kit.status import error_from_rpc
from tests.support.worker_rig import SECRET, Rig


def asked(
    prompt: list[int], *, request_id: str = "", stream: bool = True, salt: str = "", **sampling: object
) -> pb.GenerateRequest:
    values = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, **sampling}
    params = pb.SamplingParams(**values)  # type: ignore[arg-type]
    tokenized = pb.TokenizedInput(input_ids=prompt)
    request = pb.GenerateRequest(request_id=request_id, tokenized=tokenized, sampling_params=params, stream=stream)
    if salt:
        request.mm_inputs.mm_hashes.append(salt)
    return request


def as_tenant(tenant_id: str, *, scopes: tuple[str, ...] = ("generate",)) -> tuple[tuple[str, str], ...]:
    identity = Identity(tenant_id, "ann", (), frozenset(scopes), "key12345")
    return ((ASSERTION_KEY, sign_assertion(identity, secret=SECRET, now=SystemClock().now())),)


async def read(call: Any) -> list[Any]:
    """The whole stream."""
    return [message async for message in call]


async def refusal(call: object) -> Reason:
    """Why a call was refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (read(call) if hasattr(call, "__aiter__") else call)  # type: ignore[misc]
    error = error_from_rpc(caught.value)
    assert "code" not in error.metadata, "every refusal has an ErrorInfo"
    return error.reason


def records(rig: Rig) -> list[UsageRecorded]:
    return [UsageRecorded.FromString(event.payload) for event in rig.journal.events]
