"""An engine that dies or hangs: its streams end, and another one takes its place."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import grpc
import pytest
from downstack.scheduler.v1.scheduler_pb2 import LeasePhase
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.types.v1.usage_pb2 import FinishReason

from services.kit.clock import SystemClock
from services.kit.errors import DownstackError, Reason, StartupError
from services.kit.models import Tokenizer
from services.kit.status import error_from_rpc
from services.worker.adapters.sim.engine import SimEngine
from services.worker.app.engine_life import EngineLife, LifeLimits
from tests.support.worker_rig import Rig, worker_rig

LONG = SamplingParams(ignore_eos=True)
QUICK = LifeLimits(progress_s=1.0, first_pause_s=0.05, longest_pause_s=0.1, max_restarts=3)
PROMPT = [4] * 64


async def hang(seconds: float) -> None:
    """A step that never ends."""
    await asyncio.Event().wait()


@pytest.fixture
def spare(sim: SimEngine, tokenizer: Tokenizer) -> Callable[[], SimEngine]:
    return lambda: SimEngine(sim._settings, tokenizer, clock=SystemClock())


@pytest.fixture
async def mortal(sim: SimEngine, tokenizer: Tokenizer, spare: Callable[[], SimEngine]) -> AsyncIterator[Rig]:
    async with worker_rig(sim, tokenizer_revision=tokenizer.revision, life_limits=QUICK, restart=spare) as rig:
        yield rig
    await rig.life.stop()


@pytest.mark.parametrize("fault", ["dies", "hangs"])
async def test_a_lost_engine_is_replaced(mortal: Rig, sim: SimEngine, fault: str) -> None:
    """Streams end with a retryable status and one record each, then the worker serves again with a new epoch."""
    rig, before = mortal, mortal.worker.epoch
    grants = [rig.grant(PROMPT, max_output_tokens=400) for _ in range(3)]
    streams = [aiter(rig.stub.Generate(rig.request(PROMPT, LONG, grant=grant))) for grant in grants]
    for frames in streams:
        await anext(frames)
        await anext(frames)
    await rig.scheduler.until(lambda seen: seen.blocks)
    if fault == "dies":
        sim.crash()
    else:
        sim._sleep = hang
    for frames in streams:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in frames:
                pass
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert error_from_rpc(caught.value).reason == Reason.ENGINE_DEAD
    await rig.scheduler.until(lambda seen: any(not load.serving for load in seen.loads))
    await rig.scheduler.until(lambda seen: len(seen.hellos) == 2)
    hello = rig.scheduler.hellos[1]
    assert hello.epoch == rig.worker.epoch != before
    assert not hello.leases
    for grant in grants:
        record = rig.usage(grant.lease_id)
        assert record.finish_reason == FinishReason.FINISH_REASON_ERROR
        assert record.usage.output_total >= 1
        assert rig.scheduler.phases[grant.lease_id][-1] == LeasePhase.LEASE_PHASE_FINISHED
    await rig.scheduler.until(lambda seen: seen.snapshots == 2 and not seen.blocks)
    assert len((await rig.generate(PROMPT, LONG)).token_ids()) == 64
    await rig.scheduler.until(lambda seen: seen.blocks)
    assert rig.scheduler.gaps == 0
    assert rig.worker.healthy()


async def test_tickets_of_the_engine_before_are_refused(mortal: Rig, sim: SimEngine) -> None:
    """STALE_EPOCH: the scheduler that granted them counted on another cache."""
    old = mortal.request(PROMPT, LONG)
    sim.crash()
    await mortal.scheduler.until(lambda seen: len(seen.hellos) == 2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in mortal.stub.Generate(old):
            pass
    assert error_from_rpc(caught.value).reason == Reason.STALE_EPOCH


async def test_nothing_begins_while_there_is_no_engine(sim: SimEngine, tokenizer: Tokenizer) -> None:
    """ENGINE_DEAD with a time to come back, however long the restart takes; a drain does not wait for it."""
    starting = asyncio.Event()

    async def starts(seconds: float) -> None:
        starting.set()
        await asyncio.Event().wait()

    slow = SimEngine(sim._settings, tokenizer, clock=SystemClock(), sleep=starts)
    async with worker_rig(sim, tokenizer_revision=tokenizer.revision, life_limits=QUICK, restart=lambda: slow) as rig:
        sim.crash()
        await starting.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.generate(PROMPT, LONG)
        error = error_from_rpc(caught.value)
        assert error.reason == Reason.ENGINE_DEAD
        assert error.retry_after_s
        assert not rig.worker.healthy()
        assert not rig.scheduler.loads[-1].serving
        assert await rig.worker.drain(5.0) == 0
    assert slow.dead


async def test_starts_that_fail_in_a_row_are_given_up(sim: SimEngine, tokenizer: Tokenizer) -> None:
    """After as many as may fail, and not before: whoever supervises the process decides then."""
    made = [sim]

    def make() -> SimEngine:
        settings = replace(sim._settings, shape=replace(sim._settings.shape, kv_blocks=8))
        made.append(SimEngine(settings, tokenizer, clock=SystemClock()))
        return made[-1]

    engines = itertools.chain([sim], iter(make, None))
    life = EngineLife(engines.__next__, limits=QUICK, clock=SystemClock())
    await life.start()
    sim.crash()
    assert await life.until_lost() == "died"
    with pytest.raises(DownstackError) as caught:
        await life.renew()
    assert caught.value.reason == Reason.ENGINE_DEAD
    assert len(made) == 1 + QUICK.max_restarts
    assert not life.healthy
    assert all(engine.dead for engine in made)


async def test_a_start_that_takes_too_long_has_failed(sim: SimEngine, tokenizer: Tokenizer) -> None:
    """One sentence with the time, and nothing of it is left."""
    slow = SimEngine(replace(sim._settings, startup_s=3600.0), tokenizer, clock=SystemClock())
    life = EngineLife(lambda: slow, limits=replace(QUICK, start_s=0.05), clock=SystemClock())
    with pytest.raises(StartupError, match=r"did not start within 0.05 s"):
        await life.start()
    assert not life.healthy
    assert slow.dead


async def test_one_failed_start_is_followed_by_another(
    sim: SimEngine, tokenizer: Tokenizer, spare: Callable[[], SimEngine]
) -> None:
    """The worker comes back, and the failed engine is stopped."""
    small = replace(sim._settings, shape=replace(sim._settings.shape, kv_blocks=8))
    engines = iter([SimEngine(small, tokenizer, clock=SystemClock()), spare()])
    async with worker_rig(
        sim, tokenizer_revision=tokenizer.revision, life_limits=QUICK, restart=engines.__next__
    ) as rig:
        sim.crash()
        await rig.scheduler.until(lambda seen: len(seen.hellos) == 2)
        assert len((await rig.generate(PROMPT, LONG)).token_ids()) == 64
    await rig.life.stop()
