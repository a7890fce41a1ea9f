"""Adapters on every engine: another answer, a cache of its own, and the names that router and scheduler use."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.worker.v1 import worker_pb2

from services.kit.blocks import chain_hashes, root_hash
from services.kit.errors import Reason
from services.kit.status import error_from_rpc
from tests.support.engine_features import Feature, lacks
from tests.support.lora import SMOLLM2, TINY, make_adapter
from tests.support.worker_rig import MODEL, Rig

pytestmark = pytest.mark.timeout(900)
PROMPT = list(range(100, 180))
PARAMS = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


async def load(rig: Rig, path: str) -> str:
    request = worker_pb2.LoadAdapterRequest(name=path, path=path)
    return str((await rig.stub.LoadAdapter(request, metadata=rig.metadata())).adapter.id)


@pytest.fixture
async def adapter(kind: str, rig: Rig, adapter_root: Path) -> AsyncIterator[str]:
    """The id of a loaded adapter."""
    if lacks(kind, Feature.ADAPTERS):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(rig, "legal")
        assert error_from_rpc(caught.value).reason == Reason.METHOD_DISABLED
        pytest.skip("this engine has no adapters, and says so")
    yield await load(rig, "legal")
    await rig.stub.UnloadAdapter(worker_pb2.UnloadAdapterRequest(name="legal"), metadata=rig.metadata())


async def test_an_adapter_answers_otherwise(rig: Rig, adapter: str) -> None:
    """Its answer is another one than the model's, and always the same, also beside the model's in one batch."""
    base = (await rig.generate(PROMPT, PARAMS, cache_salt="otherwise")).token_ids()
    first = (await rig.generate(PROMPT, PARAMS, cache_salt="otherwise", adapter=adapter)).token_ids()
    assert first != base
    streams = [
        rig.stub.Generate(rig.request(PROMPT, PARAMS, cache_salt="otherwise", adapter=name))
        for name in (adapter, "", adapter, "")
    ]
    answers = [[token async for frame in stream for token in frame.delta.token_ids] for stream in streams]
    assert answers == [first, base, first, base]


async def test_caches_are_not_shared(rig: Rig, adapter: str) -> None:
    """Neither takes the other's blocks; each finds its own again, under the names of the router."""
    salt = "apart"
    assert (await rig.generate(PROMPT, PARAMS, cache_salt=salt)).cached_tokens == 0
    assert (await rig.generate(PROMPT, PARAMS, cache_salt=salt, adapter=adapter)).cached_tokens == 0
    assert (await rig.generate(PROMPT, PARAMS, cache_salt=salt, adapter=adapter)).cached_tokens == 64
    assert (await rig.generate(PROMPT, PARAMS, cache_salt=salt)).cached_tokens == 64
    spec = rig.worker.spec()
    for name in ("", adapter):
        root = root_hash(model=MODEL, tokenizer_revision=spec.tokenizer_revision, adapter=name, cache_salt=salt)
        await rig.scheduler.until(
            lambda seen, root=root: set(chain_hashes(root, PROMPT, spec.block_size)) <= seen.blocks
        )


async def test_an_engine_survives_adapters_that_do_not_fit(rig: Rig, adapter: str) -> None:
    """Made for another model, or of a higher rank: refused, while requests go on."""
    before = (await rig.generate(PROMPT, PARAMS, adapter=adapter)).token_ids()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await load(rig, "large")
    assert error_from_rpc(caught.value).reason == Reason.UNSUPPORTED_FEATURE
    assert (await rig.generate(PROMPT, PARAMS, adapter=adapter)).token_ids() == before


@pytest.mark.vllm
async def test_vllm_survives_an_adapter_of_another_model(vllm: Rig, adapter_root: Path) -> None:
    """Its files are whole, but its matrices are smaller or larger than the model's, or there are more of them."""
    sizes = {"narrow": TINY, "wide": SMOLLM2._replace(hidden=1024), "deep": SMOLLM2._replace(layers=31)}
    for name, size in sizes.items():
        make_adapter(adapter_root / name, size)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(vllm, name)
        assert error_from_rpc(caught.value).reason == Reason.UNSUPPORTED_FEATURE
    assert len((await vllm.generate(PROMPT, PARAMS)).token_ids()) == 12
    assert vllm.worker.healthy()
