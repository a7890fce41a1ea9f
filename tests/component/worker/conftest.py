from collections.abc import AsyncIterator

import grpc.aio
import pytest
from downstack.smg.vllm_engine_pb2_grpc import VllmEngineStub

from services.kit.clock import SystemClock
from services.kit.models import BUILTIN_SIM, Tokenizer, model_folder
from services.worker.adapters.sim.engine import SimEngine, SimSettings
from services.worker.domain.rates import Rates
from services.worker.domain.sim.core import Shape
from tests.support.remote_engine import contract_server
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


@pytest.fixture
async def contract_channel(rig: Rig, tokenizer: Tokenizer) -> AsyncIterator[grpc.aio.Channel]:
    """To the contract, open to everybody."""
    server = contract_server(rig.worker, tokenizer, model_path=BUILTIN_SIM, access="open")
    async with server as target, grpc.aio.insecure_channel(target) as channel:
        yield channel


@pytest.fixture
def open_stub(contract_channel: grpc.aio.Channel) -> VllmEngineStub:
    return VllmEngineStub(contract_channel)
