"""Adapters over gRPC: who may load them, what leases get, and what becomes of them under load and after a death."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.worker.v1 import worker_pb2

from services.kit.clock import SystemClock
from services.kit.errors import Reason
from services.kit.models import Tokenizer
from services.kit.status import error_from_rpc
from services.worker.adapters.adapter_files import AdapterFolder
from services.worker.adapters.sim.engine import SimEngine
from services.worker.app.engine_life import LifeLimits
from services.worker.domain.adapters import Adapter
from tests.support.lora import make_adapter
from tests.support.worker_rig import LIMITS, Rig, worker_rig

PROMPT = [4] * 64
SHORT = SamplingParams(max_tokens=8, ignore_eos=True, temperature=0)
LONG = SamplingParams(ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> AdapterFolder:
    root = tmp_path_factory.mktemp("adapters")
    for number, name in enumerate(("one", "two", "three")):
        make_adapter(root / name, seed=number)
    return AdapterFolder(root, max_rank=16)


@pytest.fixture
async def rig(sim: SimEngine, tokenizer: Tokenizer, folder: AdapterFolder) -> AsyncIterator[Rig]:
    def another() -> SimEngine:
        return SimEngine(sim._settings, tokenizer, clock=SystemClock())

    async with worker_rig(
        sim,
        tokenizer_revision=tokenizer.revision,
        limits=replace(LIMITS, max_adapters=2),
        life_limits=LifeLimits(first_pause_s=0.05),
        restart=another,
        adapters=folder,
    ) as built:
        yield built
    await built.life.stop()


async def load(rig: Rig, name: str, path: str, *, service: str = "router") -> str:
    request = worker_pb2.LoadAdapterRequest(name=name, path=path)
    response = await rig.stub.LoadAdapter(request, metadata=rig.metadata(service))
    return str(response.adapter.id)


async def unload(rig: Rig, name: str) -> int:
    request = worker_pb2.UnloadAdapterRequest(name=name)
    return int((await rig.stub.UnloadAdapter(request, metadata=rig.metadata())).running)


async def held(rig: Rig) -> list[tuple[str, int, bool]]:
    response = await rig.stub.ListAdapters(worker_pb2.ListAdaptersRequest(), metadata=rig.metadata())
    return [(each.adapter.id, each.running, each.withdrawn) for each in response.adapters]


def reason_of(caught: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> Reason:
    return error_from_rpc(caught.value).reason


async def test_schedulers_hear_of_what_is_offered(rig: Rig) -> None:
    """Each load and unload brings a new introduction; an adapter loaded twice brings none."""
    first = await load(rig, "legal", "one")
    await rig.scheduler.until(lambda seen: len(seen.hellos) == 2)
    assert await load(rig, "legal", "one") == first
    second = await load(rig, "art", "two")
    await rig.scheduler.until(lambda seen: len(seen.hellos) == 3)
    adapters = rig.scheduler.hellos[-1].spec.adapters
    assert [(adapter.name, adapter.id, adapter.rank) for adapter in adapters] == [
        ("art", second, 8),
        ("legal", first, 8),
    ]
    assert await unload(rig, "legal") == 0
    await rig.scheduler.until(lambda seen: len(seen.hellos) == 4)
    assert [adapter.id for adapter in rig.scheduler.hellos[-1].spec.adapters] == [second]
    assert rig.scheduler.hellos[-1].epoch == rig.scheduler.hellos[0].epoch


async def test_only_operators_load(rig: Rig) -> None:
    """Whoever carries a ticket may generate, no more."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.stub.LoadAdapter(worker_pb2.LoadAdapterRequest(name="legal", path="one"))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await load(rig, "legal", "one", service="retriever")
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert await held(rig) == []


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("legal", "../one", Reason.PARAM_OUT_OF_RANGE),
        ("legal", "nowhere", Reason.PARAM_OUT_OF_RANGE),
        ("", "one", Reason.PARAM_OUT_OF_RANGE),
        ("third", "three", Reason.QUOTA_EXCEEDED),
    ],
)
async def test_what_cannot_be_loaded_changes_nothing(rig: Rig, name: str, path: str, reason: Reason) -> None:
    """Each with its reason; those that were there still answer."""
    ids = [await load(rig, "legal", "one"), await load(rig, "art", "two")]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await load(rig, name, path)
    assert reason_of(caught) == reason
    assert [adapter_id for adapter_id, _, _ in await held(rig)] == sorted(ids)
    assert len((await rig.generate(PROMPT, SHORT, adapter=ids[0])).token_ids()) == 8


async def test_an_unknown_adapter_is_refused(rig: Rig) -> None:
    """Before the engine sees it; also one that was withdrawn, and a name without its revision."""
    known = await load(rig, "legal", "one")
    await unload(rig, "legal")
    for adapter in ("nobody@0", known, "legal"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.generate(PROMPT, SHORT, adapter=adapter)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert reason_of(caught) == Reason.ADAPTER_NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unload(rig, "legal")
    assert reason_of(caught) == Reason.ADAPTER_NOT_FOUND
    assert not rig.worker.running_leases()


async def test_one_in_use_goes_with_its_last_lease(rig: Rig) -> None:
    """It is withdrawn at once, its running answer ends well, and then there is room again."""
    adapter = await load(rig, "legal", "one")
    await load(rig, "art", "two")
    stream = aiter(rig.stub.Generate(rig.request(PROMPT, LONG, adapter=adapter)))
    await anext(stream)
    assert await unload(rig, "legal") == 1
    assert (adapter, 1, True) in await held(rig)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await load(rig, "third", "three")
    assert reason_of(caught) == Reason.QUOTA_EXCEEDED
    frames = [frame async for frame in stream]
    assert frames[-1].finished.usage.output_total == 64
    await rig.until_idle()
    assert [name.partition("@")[0] for name, _, _ in await held(rig)] == ["art"]
    await load(rig, "third", "three")


async def test_other_weights_take_over_a_name(rig: Rig) -> None:
    """A running answer keeps the weights that it began with; nothing of their cache is used for the new ones."""
    old = await load(rig, "legal", "one")
    first = await rig.generate(PROMPT, SHORT, adapter=old)
    stream = aiter(rig.stub.Generate(rig.request(PROMPT, LONG, adapter=old)))
    await anext(stream)
    new = await load(rig, "legal", "two")
    assert await held(rig) == sorted([(old, 1, True), (new, 0, False)])
    second = await rig.generate(PROMPT, SHORT, adapter=new)
    assert second.cached_tokens == 0
    assert second.token_ids() != first.token_ids()
    tokens = [token async for frame in stream for token in frame.delta.token_ids]
    assert tokens[:8] == first.token_ids()


async def test_another_engine_gets_the_same_adapters(rig: Rig, sim: SimEngine) -> None:
    """After a death the worker offers what it offered before."""
    adapter = await load(rig, "legal", "one")
    before = await rig.generate(PROMPT, SHORT, adapter=adapter)
    epoch = rig.worker.epoch
    sim.crash()
    await rig.scheduler.until(lambda seen: seen.hellos[-1].epoch != epoch)
    assert [each.id for each in rig.scheduler.hellos[-1].spec.adapters] == [adapter]
    after = await rig.generate(PROMPT, SHORT, adapter=adapter)
    assert after.token_ids() == before.token_ids()
    assert after.cached_tokens == 0


async def test_a_worker_without_room_loads_none(sim: SimEngine, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """METHOD_DISABLED: it was started without adapters, or without a folder of them."""
    make_adapter(tmp_path / "one")
    async with worker_rig(sim, tokenizer_revision=tokenizer.revision, adapters=AdapterFolder(tmp_path)) as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(rig, "legal", "one")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert reason_of(caught) == Reason.METHOD_DISABLED
    await sim.stop()


async def test_a_load_ends_with_a_lost_engine(rig: Rig, sim: SimEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds up neither the next engine nor the next load."""
    asked = asyncio.Event()

    async def never(_adapter: Adapter) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(sim, "load_adapter", never)
    loading = asyncio.create_task(load(rig, "legal", "one"))
    await asked.wait()
    epoch = rig.worker.epoch
    sim.crash()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await loading
    assert reason_of(caught) == Reason.ENGINE_DEAD
    await rig.scheduler.until(lambda seen: seen.hellos[-1].epoch != epoch)
    assert (await load(rig, "legal", "one")).startswith("legal@")
