"""The engines; the one of vLLM starts once for the whole session, because that takes most of a minute."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.kit.clock import SystemClock
from services.kit.models import BUILTIN_SIM, Tokenizer, model_folder
from services.worker.adapters.adapter_files import AdapterFolder
from services.worker.adapters.sim.engine import SimEngine, SimSettings
from services.worker.domain.rates import Rates
from services.worker.domain.sim.core import Shape
from services.worker.ports import Engine
from services.worker.settings import WorkerSettings
from tests.support.engine_features import LACKING
from tests.support.lora import SMOLLM2, make_adapter
from tests.support.remote_engine import contract_process, contract_server, remote_engine
from tests.support.smollm2 import smollm2_folder
from tests.support.worker_rig import LIMITS, MODEL, SECRET, Rig, worker_rig

RATES = Rates(prefill_base_ms=5.0, prefill_ms_per_token=0.1, decode_base_ms=10.0, decode_ms_per_request=0.5)
# Small enough that a few prompts fill it.
KV_BLOCKS = 64
ROOM_FOR_ADAPTERS = replace(LIMITS, max_adapters=2)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return smollm2_folder()


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.load(smollm2)


@pytest.fixture(scope="session")
def adapter_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of SmolLM2: one that fits, and one of too high a rank."""
    root = tmp_path_factory.mktemp("adapters")
    make_adapter(root / "legal", SMOLLM2)
    make_adapter(root / "large", SMOLLM2, rank=64)
    return root


@pytest.fixture(scope="session")
async def vllm(smollm2: Path, smollm2_tokenizer: Tokenizer, adapter_root: Path) -> AsyncIterator[Rig]:
    from services.worker.adapters.vllm.launch import vllm_engine  # noqa: PLC0415  it takes seconds to import

    settings = WorkerSettings(
        engine="vllm",
        model=MODEL,
        model_path=str(smollm2),
        context_tokens=512,
        kv_blocks=KV_BLOCKS,
        max_adapters=2,
        service_secret=SECRET.decode(),
        kafka_bootstrap="unused:1",
        outbox_path=Path("unused"),
    )
    engine = vllm_engine(settings, smollm2_tokenizer, rates=RATES)
    began = time.monotonic()
    async with worker_rig(
        engine,
        tokenizer_revision=smollm2_tokenizer.revision,
        limits=ROOM_FOR_ADAPTERS,
        adapters=AdapterFolder(adapter_root, model=smollm2),
    ) as rig:
        print(f"vLLM started in {time.monotonic() - began:.1f} s")  # noqa: T201
        yield rig
    await engine.stop()


@pytest.fixture(scope="session")
async def sim(adapter_root: Path) -> AsyncIterator[Rig]:
    tokenizer = Tokenizer.load(model_folder(BUILTIN_SIM))
    shape = Shape(block_size=32, kv_blocks=KV_BLOCKS, context_tokens=512, max_num_seqs=8, max_num_batched_tokens=512)
    engine: Engine = SimEngine(SimSettings(shape=shape, rates=RATES, model=MODEL), tokenizer, clock=SystemClock())
    async with worker_rig(
        engine,
        tokenizer_revision=tokenizer.revision,
        limits=ROOM_FOR_ADAPTERS,
        adapters=AdapterFolder(adapter_root),
    ) as rig:
        yield rig
    await engine.stop()


@pytest.fixture(scope="session")
async def remote(short_tmp: Path, unused_tcp_port_factory: Callable[[], int]) -> AsyncIterator[Rig]:
    """A worker in front of another one's process, which runs the simulated engine."""
    tokenizer, port = Tokenizer.load(model_folder(BUILTIN_SIM)), unused_tcp_port_factory()
    async with contract_process(short_tmp, port) as process:
        engine = remote_engine(f"127.0.0.1:{port}", tokenizer, rates=RATES)
        async with worker_rig(engine, tokenizer_revision=tokenizer.revision) as rig:
            yield rig
        await engine.stop()
        assert process.process.returncode is None


@pytest.fixture(scope="session")
async def remote_vllm(vllm: Rig, smollm2: Path, smollm2_tokenizer: Tokenizer) -> AsyncIterator[Rig]:
    """A worker in front of the one that runs vLLM."""
    async with contract_server(vllm.worker, smollm2_tokenizer, model_path=str(smollm2)) as target:
        engine = remote_engine(target, smollm2_tokenizer, rates=RATES)
        async with worker_rig(engine, tokenizer_revision=smollm2_tokenizer.revision) as rig:
            yield rig
        await engine.stop()


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.vllm] if kind == "vllm" else []) for kind in LACKING])
def kind(request: pytest.FixtureRequest) -> str:
    """Each engine in turn, by its name in the table of what engines lack."""
    return str(request.param)


@pytest.fixture
def rig(kind: str, request: pytest.FixtureRequest) -> Rig:
    """A worker on each engine in turn."""
    found: Rig = request.getfixturevalue(kind)
    return found
