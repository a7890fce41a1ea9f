"""The ticket is the permission, and the only one."""

import asyncio

import grpc
import pytest
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.worker.v1 import worker_pb2

from services.kit.errors import Reason
from services.kit.status import error_from_rpc
from tests.support.worker_rig import Rig

PROMPT = [3] * 10


async def refusal(rig: Rig, request: worker_pb2.GenerateRequest) -> Reason:
    """The reason why a request is refused; nothing may have begun."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(rig.stub.Generate(request, timeout=10)))
    return error_from_rpc(caught.value).reason


async def test_a_ticket_that_nobody_here_signed_is_refused(rig: Rig) -> None:
    """Missing, garbage, signed with another secret, or changed after signing."""
    assert await refusal(rig, worker_pb2.GenerateRequest(prompt_token_ids=PROMPT)) == Reason.TICKET_INVALID
    garbage = worker_pb2.GenerateRequest(ticket=b"\xff" * 40, prompt_token_ids=PROMPT)
    assert await refusal(rig, garbage) == Reason.TICKET_INVALID
    assert await refusal(rig, rig.request(PROMPT, secret=b"another secret of 16 bytes")) == Reason.TICKET_INVALID
    changed = rig.request(PROMPT)
    ticket = worker_pb2.SignedTicket.FromString(changed.ticket)
    ticket.grant = rig.grant(PROMPT, max_output_tokens=10_000).SerializeToString()
    changed.ticket = ticket.SerializeToString()
    assert await refusal(rig, changed) == Reason.TICKET_INVALID


async def test_a_ticket_for_something_else_is_refused(rig: Rig) -> None:
    """Another worker, an earlier start, another model, an unknown adapter, another prompt."""
    assert await refusal(rig, rig.request(PROMPT, worker_id="wkr-other")) == Reason.TICKET_INVALID
    assert await refusal(rig, rig.request(PROMPT, worker_epoch="epo_old")) == Reason.STALE_EPOCH
    assert await refusal(rig, rig.request(PROMPT, model="other")) == Reason.TICKET_INVALID
    assert await refusal(rig, rig.request(PROMPT, adapter="lora")) == Reason.ADAPTER_NOT_FOUND
    assert await refusal(rig, rig.request(PROMPT, prompt_tokens=11)) == Reason.TICKET_INVALID


async def test_an_expired_ticket_is_refused(rig: Rig) -> None:
    """By this machine's clock."""
    grant = rig.grant(PROMPT)
    grant.expires_at.FromNanoseconds(1)
    assert await refusal(rig, rig.request(PROMPT, grant=grant)) == Reason.TICKET_EXPIRED


async def test_of_two_uses_of_one_ticket_one_runs(rig: Rig) -> None:
    """Also when they come at the same time; the ledger has one record."""
    request = rig.request(PROMPT, SamplingParams(max_tokens=5, ignore_eos=True))

    async def use() -> int:
        count = 0
        async for frame in rig.stub.Generate(request):
            count += len(frame.delta.token_ids)
        return count

    results = await asyncio.gather(use(), use(), return_exceptions=True)
    refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert [result for result in results if isinstance(result, int)] == [5]
    assert [error_from_rpc(error).reason for error in refused] == [Reason.TICKET_USED]
    assert len(rig.journal.events) == 1


async def test_refused_requests_are_neither_leased_nor_billed(rig: Rig) -> None:
    """A parameter out of range leaves the ticket unused."""
    grant = rig.grant(PROMPT)
    bad = rig.request(PROMPT, SamplingParams(temperature=9), grant=grant)
    assert await refusal(rig, bad) == Reason.PARAM_OUT_OF_RANGE
    assert not rig.worker.running_leases()
    assert not rig.journal.events
    answer = await rig.generate(PROMPT, SamplingParams(max_tokens=2, ignore_eos=True), grant=grant)
    assert len(answer.token_ids()) == 2


@pytest.mark.parametrize("service", ["", "retriever"])
async def test_only_services_may_abort_drain_and_ask(rig: Rig, service: str) -> None:
    """A ticket is no permission for that, and neither is being some other service."""
    metadata = rig.metadata(service) if service else ()
    expected = Reason.PEER_IDENTITY_DENIED if service else Reason.AUTH_MISSING
    for call in (
        rig.stub.Abort(worker_pb2.AbortRequest(lease_ids=["x"]), metadata=metadata),
        rig.stub.Drain(worker_pb2.DrainRequest(), metadata=metadata),
        rig.stub.GetStatus(worker_pb2.GetStatusRequest(), metadata=metadata),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert error_from_rpc(caught.value).reason in {expected, Reason.ACTION_NOT_ALLOWED}
    assert not rig.worker.draining
