"""What every engine does alike when it dies: tests/fault has the same for the process of a real one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from downstack.types.v1.usage_pb2 import FinishReason

from services.kit.clock import SystemClock
from services.kit.errors import Reason
from services.kit.models import BUILTIN_SIM, Tokenizer, model_folder
from services.kit.status import error_from_rpc
from services.worker.adapters.sim.engine import SimEngine, SimSettings
from services.worker.app.engine_life import LifeLimits
from services.worker.domain.sim.core import Shape
from tests.integration.worker.conftest import RATES
from tests.support.prompts import greedy, prompt_of
from tests.support.remote_engine import contract_process, remote_engine
from tests.support.worker_rig import MODEL, Rig, worker_rig

pytestmark = pytest.mark.timeout(120)
LIFE = LifeLimits(progress_s=2.0, first_pause_s=0.1, longest_pause_s=0.2)
SHAPE = Shape(block_size=32, kv_blocks=64, context_tokens=512, max_num_seqs=8, max_num_batched_tokens=512)


@dataclass
class Mortal:
    """A worker whose engine can be killed, and then be there again."""

    rig: Rig
    kill: Callable[[], Awaitable[None]]
    revive: Callable[[], Awaitable[None]]


@asynccontextmanager
async def mortal_sim() -> AsyncIterator[Mortal]:
    tokenizer = Tokenizer.load(model_folder(BUILTIN_SIM))

    def make() -> SimEngine:
        return SimEngine(SimSettings(shape=SHAPE, rates=RATES, model=MODEL), tokenizer, clock=SystemClock())

    first = make()

    async def kill() -> None:
        first.crash()

    async def revive() -> None:
        """The worker makes another one by itself."""

    async with worker_rig(first, tokenizer_revision=tokenizer.revision, life_limits=LIFE, restart=make) as rig:
        yield Mortal(rig, kill, revive)
        await rig.life.stop()


@asynccontextmanager
async def mortal_remote(folder: Path, port: int) -> AsyncIterator[Mortal]:
    tokenizer = Tokenizer.load(model_folder(BUILTIN_SIM))
    async with AsyncExitStack() as servers:
        process = await servers.enter_async_context(contract_process(folder, port))

        async def kill() -> None:
            process.process.kill()
            await process.process.wait()

        async def revive() -> None:
            await servers.enter_async_context(contract_process(folder, port))

        def make() -> object:
            return remote_engine(f"127.0.0.1:{port}", tokenizer, rates=RATES, wait_s=30)

        async with worker_rig(
            make(),  # type: ignore[arg-type]
            tokenizer_revision=tokenizer.revision,
            life_limits=LIFE,
            restart=make,  # type: ignore[arg-type]
        ) as rig:
            yield Mortal(rig, kill, revive)
            await rig.life.stop()


@pytest.fixture(params=["sim", "remote"])
async def mortal(request: pytest.FixtureRequest, tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[Mortal]:
    async with mortal_sim() if request.param == "sim" else mortal_remote(tmp_path, unused_tcp_port) as found:
        yield found


async def test_a_dead_engine_is_noticed_and_replaced(mortal: Mortal) -> None:
    """Its streams end retryably and are recorded, the scheduler hears of it, and another engine serves from empty."""
    rig = mortal.rig
    epoch = rig.worker.epoch
    await rig.generate(prompt_of(1), greedy(4))
    await rig.scheduler.until(lambda seen: seen.blocks)
    grants = [rig.grant(prompt_of(2 + number), max_output_tokens=200) for number in range(3)]
    calls = [rig.stub.Generate(rig.request(prompt_of(2 + at), greedy(200), grant=g)) for at, g in enumerate(grants)]
    for call in calls:
        frames = aiter(call)
        while (await anext(frames)).WhichOneof("frame") != "delta":
            pass
    await mortal.kill()
    assert await asyncio.gather(*(ending(call) for call in calls)) == [Reason.ENGINE_DEAD] * 3
    await rig.scheduler.until(lambda seen: not seen.loads[-1].serving)
    for grant in grants:
        await rig.scheduler.until(lambda seen, grant=grant: grant.lease_id in seen.finished)
        record = rig.usage(grant.lease_id)
        assert record.finish_reason == FinishReason.FINISH_REASON_ERROR
        assert 1 <= record.usage.output_total < 200
    await mortal.revive()
    await rig.scheduler.until(lambda seen: seen.hellos[-1].epoch != epoch, timeout_s=30)
    assert rig.worker.healthy()
    assert len((await rig.generate(prompt_of(1), greedy(4))).token_ids()) == 4
    await rig.until_idle()


async def ending(call: "grpc.aio.UnaryStreamCall") -> Reason:
    """Why a stream ended."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await last(call)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    return error_from_rpc(caught.value).reason


async def last(call: "grpc.aio.UnaryStreamCall") -> None:
    async for _ in call:
        pass
