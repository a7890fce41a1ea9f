"""Callers that go away at any moment, on every engine."""

import asyncio
import random

import grpc
import pytest
from downstack.types.v1.chat_pb2 import SamplingParams

from tests.support.worker_rig import Rig

pytestmark = pytest.mark.timeout(900)
STREAMS = 60


async def test_dropped_streams_leave_nothing_behind(rig: Rig) -> None:
    """Dropped in the queue, in the prefill, while decoding: no request, no lease and no block in use stays."""
    chooser = random.Random(5)
    before = len(rig.journal.events)

    async def drop(number: int) -> None:
        prompt = [(number * 7 + position * 5) % 80 + 20 for position in range(chooser.randrange(1, 300))]
        call = rig.stub.Generate(rig.request(prompt, SamplingParams(ignore_eos=True), max_output_tokens=100))
        asyncio.get_running_loop().call_later(chooser.uniform(0, 4), call.cancel)
        try:
            async for _ in call:
                pass
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass

    await asyncio.gather(*(drop(number) for number in range(STREAMS)))
    await rig.until_idle(timeout_s=60)
    await rig.scheduler.until(lambda seen: seen.loads[-1].kv_usage == 0, timeout_s=60)
    assert not rig.worker.running_leases()
    assert rig.engine.stats().unfinished == 0
    assert STREAMS / 2 < len(rig.journal.events) - before <= STREAMS
    assert len((await rig.generate([30] * 20, SamplingParams(max_tokens=4, ignore_eos=True))).token_ids()) == 4
