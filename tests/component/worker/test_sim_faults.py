"""The simulated engine's faults, on request or by settings, and the profile that a worker takes its figures from."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.kit.clock import SystemClock
from services.kit.errors import DownstackError, Reason, StartupError
from services.kit.models import BUILTIN_SIM, Tokenizer, model_folder
from services.worker.adapters.sim.engine import SimEngine, SimFaults, SimSettings
from services.worker.domain.rates import Rates
from services.worker.domain.sampling import Sampling
from services.worker.domain.sim.sequence import Shape
from services.worker.ports import EngineOutput
from services.worker.settings import WorkerSettings
from services.worker.wiring import _profiled

SHAPE = Shape(block_size=16, kv_blocks=64, context_tokens=512, max_num_seqs=8, max_num_batched_tokens=512)
RATES = Rates(prefill_base_ms=1.0, prefill_ms_per_token=0.0, decode_base_ms=1.0, decode_ms_per_request=0.0)


def engine(faults: SimFaults) -> SimEngine:
    settings = SimSettings(shape=SHAPE, rates=RATES, model="m", faults=faults)
    return SimEngine(settings, Tokenizer.load(model_folder(BUILTIN_SIM)), clock=SystemClock())


def answer(of: SimEngine, *, max_tokens: int = 400) -> AsyncIterator[EngineOutput]:
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    return of.generate([1, 2, 3], sampling, request_id="r", cache_salt="", priority=0)


async def drain(stream: AsyncIterator[EngineOutput]) -> None:
    async for _ in stream:
        pass


async def test_it_dies_by_itself() -> None:
    """Its streams end with ENGINE_DEAD."""
    one = engine(SimFaults(crash_after_s=0.05))
    await one.start()
    with pytest.raises(DownstackError) as failed:
        await drain(answer(one))
    assert failed.value.reason is Reason.ENGINE_DEAD
    assert one.dead
    await one.stop()


@pytest.mark.parametrize("by", ["itself", "request"])
async def test_it_hangs(by: str) -> None:
    """No step, no word, and it does not count as dead; it can still be stopped."""
    one = engine(SimFaults(hang_after_s=0.05 if by == "itself" else 0.0))
    await one.start()
    stream = answer(one)
    await anext(stream)
    if by == "request":
        one.hang()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(drain(stream), 1.0)
    steps = one.stats().steps
    await asyncio.wait_for(one.changed(), 1.0)
    assert (one.dead, one.stats().steps) == (False, steps)
    await asyncio.wait_for(one.stop(), 1.0)


async def test_it_is_slow() -> None:
    """Twenty tokens at 1 ms take at least 20 times 10 ms then."""
    one = engine(SimFaults(slow_factor=10.0))
    await one.start()
    began = asyncio.get_running_loop().time()
    await drain(answer(one, max_tokens=20))
    assert asyncio.get_running_loop().time() - began >= 0.2
    await one.stop()


def settings(**more: object) -> WorkerSettings:
    given = {"service_secret": "s" * 40, "kafka_bootstrap": "unused:1", "outbox_path": Path("unused")}
    return WorkerSettings.model_validate({**given, **more})


def test_a_profile_fills_what_is_not_set() -> None:
    """Sizes, rates, price and kind of device; what is set stays."""
    filled = _profiled(settings(profile="h100-8b", max_num_seqs=7))
    assert (filled.block_size, filled.context_tokens, filled.device_kind) == (16, 131072, "h100-8b")
    assert filled.price_per_hour_nano == 3_000_000_000
    assert filled.decode_base_ms == 5.99
    assert filled.max_num_seqs == 7


def test_a_profile_needs_the_simulated_engine_and_a_name_that_is_known() -> None:
    """One sentence each."""
    with pytest.raises(ValueError, match="profile: is of the engine `sim` only"):
        settings(profile="h100-8b", engine="vllm")
    with pytest.raises(StartupError, match="There is no profile 'x'"):
        _profiled(settings(profile="x"))
