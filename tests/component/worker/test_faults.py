"""What happens when something around a lease breaks."""

from dataclasses import replace

import grpc
import pytest
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.types.v1.usage_pb2 import FinishReason

from services.kit.errors import Reason, StartupError
from services.kit.models import Tokenizer
from services.kit.status import error_from_rpc
from services.worker.adapters.sim.engine import SimEngine, SimSettings
from services.worker.app.outlet import OutletLimits
from tests.support.worker_rig import LIMITS, MODEL, Rig, worker_rig

LONG = SamplingParams(ignore_eos=True)


async def test_a_full_journal_refuses_new_work_and_holds_finished_back(rig: Rig) -> None:
    """A lease that ends meanwhile is not called finished until its record is durable."""
    grant = rig.grant([4] * 20, max_output_tokens=60)
    frames = aiter(rig.stub.Generate(rig.request([4] * 20, LONG, grant=grant)))
    await anext(frames)
    rig.journal.full = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate([5] * 20)
    assert error_from_rpc(caught.value).reason == Reason.JOURNAL_FULL
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in frames:
            pass
    assert error_from_rpc(caught.value).reason == Reason.JOURNAL_FULL
    assert grant.lease_id not in rig.scheduler.finished
    rig.journal.full = False
    await rig.scheduler.until(lambda seen: grant.lease_id in seen.finished)
    assert rig.usage(grant.lease_id).finish_reason == FinishReason.FINISH_REASON_LENGTH


async def test_a_reader_that_does_not_read_loses_its_stream(tokenizer: Tokenizer, sim: SimEngine) -> None:
    """The engine is freed after the stall time, and the reader finds ABORTED when it comes back."""
    limits = replace(LIMITS, outlet=OutletLimits(flush_s=0.0, stall_s=0.3))
    fast = SimSettings(
        shape=replace(sim._settings.shape, context_tokens=100_000, kv_blocks=8000),
        rates=replace(sim._settings.rates, decode_base_ms=0.0, prefill_base_ms=0.0),
        model=MODEL,
    )
    engine = SimEngine(fast, tokenizer, clock=sim._clock)
    async with worker_rig(engine, tokenizer_revision=tokenizer.revision, limits=limits) as rig:
        grant = rig.grant([4] * 20, max_output_tokens=90_000)
        params = SamplingParams(ignore_eos=True, logprobs=20)
        frames = aiter(rig.stub.Generate(rig.request([4] * 20, params, grant=grant)))
        await anext(frames)
        await rig.scheduler.until(lambda seen: grant.lease_id in seen.finished, timeout_s=30)
        assert rig.engine.stats().unfinished == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in frames:
                pass
        assert caught.value.code() == grpc.StatusCode.ABORTED
        assert error_from_rpc(caught.value).reason == Reason.CLIENT_TOO_SLOW
        record = rig.usage(grant.lease_id)
        assert record.usage.output_delivered < record.usage.output_total < 90_000
    await engine.stop()


async def test_constraints_are_refused_by_the_simulated_engine(rig: Rig) -> None:
    """UNSUPPORTED_FEATURE, and the lease is recorded as used for nothing."""
    grant = rig.grant([4] * 20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate([4] * 20, SamplingParams(json_schema="{}"), grant=grant)
    assert error_from_rpc(caught.value).reason == Reason.UNSUPPORTED_FEATURE
    record = rig.usage(grant.lease_id)
    assert record.cost.nano_units == 0
    assert not record.usage.HasField("input_total")


async def test_a_cache_that_is_too_small_for_the_context_does_not_start(tokenizer: Tokenizer, sim: SimEngine) -> None:
    """One sentence with both numbers."""
    small = replace(sim._settings, shape=replace(sim._settings.shape, kv_blocks=8))
    with pytest.raises(StartupError, match="8 blocks is too small for a context of 512 tokens"):
        await SimEngine(small, tokenizer, clock=sim._clock).start()
