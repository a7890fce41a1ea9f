"""Generate over real gRPC, on the simulated engine."""

import asyncio

import grpc
import pytest
from downstack.scheduler.v1.scheduler_pb2 import LeasePhase
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.types.v1.usage_pb2 import FinishReason, UsageSource
from downstack.worker.v1.worker_pb2 import AbortRequest

from services.kit.errors import Reason
from services.kit.models import Tokenizer
from services.kit.status import error_from_rpc
from tests.support.worker_rig import Rig

LONG = SamplingParams(max_tokens=64, ignore_eos=True)


async def test_a_stream_is_started_deltas_and_finished(rig: Rig, tokenizer: Tokenizer) -> None:
    """Frames are numbered without gap, counts are cumulative, and the text is that of the tokens."""
    prompt = tokenizer.encode("Tell me something about blocks.")
    answer = await rig.generate(prompt, LONG)
    kinds = [frame.WhichOneof("frame") for frame in answer.frames]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"}
    assert [frame.sequence for frame in answer.frames] == list(range(len(answer.frames)))
    assert answer.deltas[-1].delta.output_tokens == 64 == len(answer.token_ids())
    assert answer.text() == tokenizer.decode(answer.token_ids())
    assert answer.text().isascii()
    assert answer.frames[0].started.prompt_tokens == len(prompt)
    finished = answer.finished.finished
    assert finished.finish_reason == FinishReason.FINISH_REASON_LENGTH
    assert finished.usage.output_delivered == 64
    assert finished.cost.nano_units == len(prompt) * 100 + 64 * 1000
    assert finished.timings.ttft_ms > 0


async def test_the_first_token_comes_at_once_and_later_ones_share_frames(rig: Rig) -> None:
    """At 2 ms a token and 20 ms a frame, a frame has several tokens, but the first has one."""
    answer = await rig.generate([1, 2, 3], LONG)
    sizes = [len(frame.delta.token_ids) for frame in answer.deltas]
    assert sizes[0] <= 2
    assert sum(sizes) == 64
    assert len(sizes) < 32


async def test_the_same_prompt_is_answered_alike_and_from_the_cache(rig: Rig, tokenizer: Tokenizer) -> None:
    """The second time all full blocks but the last token's are cached; another salt shares nothing."""
    prompt = tokenizer.encode("x" * 100)
    first = await rig.generate(prompt, LONG, cache_salt="a")
    second = await rig.generate(prompt, LONG, cache_salt="a")
    other = await rig.generate(prompt, LONG, cache_salt="b")
    assert first.token_ids() == second.token_ids() == other.token_ids()
    assert (first.cached_tokens, second.cached_tokens, other.cached_tokens) == (0, 96, 0)


async def test_the_usage_record_is_written_before_finished_is_sent(rig: Rig) -> None:
    """Whoever reads Finished finds the record in the journal, and the scheduler hears of the end."""
    request_grant = rig.grant([5] * 20, retrieved_tokens=7)
    answer = await rig.generate([5] * 20, LONG, grant=request_grant)
    record = rig.usage(request_grant.lease_id)
    assert record.source == UsageSource.USAGE_SOURCE_ENGINE
    assert record.usage.input_total == 20
    assert record.usage.output_total == 64
    assert record.usage.retrieved_context == 7
    assert record.cost == answer.finished.finished.cost
    assert record.grant == request_grant
    await rig.scheduler.until(lambda seen: request_grant.lease_id in seen.finished)
    phases = rig.scheduler.phases[request_grant.lease_id]
    assert phases == sorted(phases)
    assert phases[-1] == LeasePhase.LEASE_PHASE_FINISHED


async def test_a_cancelled_stream_frees_the_engine_and_is_billed_for_what_was_made(rig: Rig) -> None:
    """The engine runs nothing any more, and the record has the prompt and the tokens until then."""
    grant = rig.grant([7] * 40, max_output_tokens=400)
    call = rig.stub.Generate(rig.request([7] * 40, SamplingParams(ignore_eos=True), grant=grant))
    seen = 0
    async for frame in call:
        seen += len(frame.delta.token_ids)
        if seen >= 5:
            break
    call.cancel()
    await rig.scheduler.until(lambda seen: grant.lease_id in seen.finished)
    record = rig.usage(grant.lease_id)
    assert record.finish_reason == FinishReason.FINISH_REASON_CANCELLED
    assert record.source == UsageSource.USAGE_SOURCE_PARTIAL
    assert record.usage.input_total == 40
    assert 5 <= record.usage.output_total < 400
    assert record.usage.output_delivered <= record.usage.output_total
    await rig.until_idle()


async def test_a_deadline_ends_the_answer(rig: Rig) -> None:
    """The caller gets DEADLINE_EXCEEDED, the record says why."""
    grant = rig.grant([7] * 40, max_output_tokens=400)
    call = rig.stub.Generate(rig.request([7] * 40, SamplingParams(ignore_eos=True), grant=grant), timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await rig.scheduler.until(lambda seen: grant.lease_id in seen.finished)
    assert rig.usage(grant.lease_id).finish_reason == FinishReason.FINISH_REASON_DEADLINE


async def test_abort_ends_a_lease_at_once(rig: Rig) -> None:
    """The reader gets CANCELLED with a reason; a second abort finds nothing."""
    grant = rig.grant([7] * 40, max_output_tokens=400)
    call = rig.stub.Generate(rig.request([7] * 40, SamplingParams(ignore_eos=True), grant=grant))
    frames = aiter(call)
    await anext(frames)
    await anext(frames)
    request = AbortRequest(lease_ids=[grant.lease_id, "lse_unknown"])
    assert (await rig.stub.Abort(request, metadata=rig.metadata())).aborted == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in frames:
            pass
    assert error_from_rpc(caught.value).reason == Reason.CLIENT_CANCELLED
    await rig.until_idle()
    assert (await rig.stub.Abort(request, metadata=rig.metadata())).aborted == 0


async def test_cancellations_at_random_moments_leave_nothing_behind(rig: Rig) -> None:
    """Of 60 streams that are dropped at various moments, each has one record, and nothing runs or is leased."""
    grants = [rig.grant([n] * 30, max_output_tokens=100) for n in range(1, 61)]

    async def drop(number: int) -> None:
        prompt = [number + 1] * 30
        call = rig.stub.Generate(rig.request(prompt, SamplingParams(ignore_eos=True), grant=grants[number]))
        await asyncio.sleep((number * 7 % 60) / 1000)
        call.cancel()

    await asyncio.gather(*(drop(number) for number in range(60)))
    await rig.until_idle()
    await rig.scheduler.until(lambda _: not rig.worker.running_leases())
    ids = [event.id for event in rig.journal.events]
    assert len(ids) == len(set(ids))
    rig.engine._core.validate()
    assert rig.engine._core.pool.usage == 0
