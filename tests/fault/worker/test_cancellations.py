"""Callers that go away at any moment."""

import asyncio
import json
import random
import time
from dataclasses import replace

import grpc
import pytest
from downstack.types.v1.chat_pb2 import SamplingParams

from services.kit.clock import SystemClock
from services.kit.models import BUILTIN_SIM, Tokenizer, model_folder
from services.worker.adapters.sim.engine import SimEngine, SimSettings
from services.worker.domain.rates import Rates
from services.worker.domain.sim.core import Shape
from tests.support.worker_rig import LIMITS, MODEL, worker_rig

STREAMS = 2000
SIDE_BY_SIDE = 200
SHAPE = Shape(block_size=16, kv_blocks=2048, context_tokens=1024, max_num_seqs=64, max_num_batched_tokens=1024)
RATES = Rates(prefill_base_ms=2.0, prefill_ms_per_token=0.02, decode_base_ms=5.0, decode_ms_per_request=0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_two_thousand_dropped_streams_leave_nothing_behind() -> None:
    """Dropped in the queue, in the prefill, while decoding: no request, no lease and no block stays, and each is
    accounted for once."""
    tokenizer = Tokenizer.load(model_folder(BUILTIN_SIM))
    engine = SimEngine(SimSettings(shape=SHAPE, rates=RATES, model=MODEL), tokenizer, clock=SystemClock())
    limits = replace(LIMITS, max_leases=2 * STREAMS, max_remembered=4 * STREAMS)
    chooser = random.Random(11)
    async with worker_rig(engine, tokenizer_revision=tokenizer.revision, limits=limits) as rig:
        seats = asyncio.Semaphore(SIDE_BY_SIDE)

        async def drop(number: int) -> str:
            async with seats:
                return await run_and_leave(number)

        async def run_and_leave(number: int) -> str:
            prompt = [32 + number % 60] * chooser.randrange(1, 400)
            grant = rig.grant(prompt, max_output_tokens=200)
            call = rig.stub.Generate(rig.request(prompt, SamplingParams(ignore_eos=True), grant=grant))
            frames = aiter(call)
            try:
                if number % 4:
                    await anext(frames)  # the others may go before the worker has heard of them
                asyncio.get_running_loop().call_later(chooser.uniform(0, 1), call.cancel)
                async for _ in frames:
                    pass
            except (grpc.aio.AioRpcError, asyncio.CancelledError):
                pass
            return grant.lease_id

        dropped = await asyncio.gather(*(drop(number) for number in range(STREAMS)))
        began = time.monotonic()
        await rig.until_idle(timeout_s=60)
        await rig.scheduler.until(lambda _: not rig.worker.running_leases(), timeout_s=60)
        begun = {event.subject for event in rig.journal.events}
        await rig.scheduler.until(lambda seen: begun <= seen.finished.keys(), timeout_s=60)
        took_s = round(time.monotonic() - began, 2)
        stats = engine.stats()
        print(json.dumps({"dropped": STREAMS, "reached_the_worker": len(begun), "clean_after_s": took_s}))  # noqa: T201
        assert (stats.running, stats.waiting, stats.unfinished, stats.kv_usage) == (0, 0, 0, 0.0)
        assert len(rig.journal.events) == len(begun)
        assert begun <= set(dropped)
        assert len(begun) > STREAMS / 2
        assert rig.worker.healthy()
        assert len((await rig.generate([40] * 20, SamplingParams(max_tokens=4, ignore_eos=True))).token_ids()) == 4
    await engine.stop()
