from collections.abc import AsyncIterator

import pytest

from services.kit.clock import SystemClock
from services.kit.models import BUILTIN_SIM, Tokenizer, model_folder
from services.worker.adapters.sim.engine import SimEngine, SimSettings
from services.worker.domain.rates import Rates
from services.worker.domain.sim.core import Shape
from tests.support.worker_rig import MODEL, Rig, worker_rig

SHAPE = Shape(block_size=16, kv_blocks=64, context_tokens=512, max_num_seqs=4, max_num_batched_tokens=128)
RATES = Rates(prefill_base_ms=1.0, prefill_ms_per_token=0.01, decode_base_ms=2.0, decode_ms_per_request=0.1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(model_folder(BUILTIN_SIM))


@pytest.fixture
def sim(tokenizer: Tokenizer) -> SimEngine:
    return SimEngine(SimSettings(shape=SHAPE, rates=RATES, model=MODEL), tokenizer, clock=SystemClock())


@pytest.fixture
async def rig(sim: SimEngine, tokenizer: Tokenizer) -> AsyncIterator[Rig]:
    async with worker_rig(sim, tokenizer_revision=tokenizer.revision) as built:
        yield built
    await sim.stop()
