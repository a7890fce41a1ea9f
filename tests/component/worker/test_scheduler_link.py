"""What a scheduler hears of a worker, and what it can ask of it."""

from dataclasses import replace

import grpc
import pytest
from downstack.scheduler.v1 import scheduler_pb2 as pb
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.worker.v1.worker_pb2 import DrainRequest, GetStatusRequest

from services.kit.blocks import chain_hashes, root_hash
from services.kit.clock import SystemClock
from services.kit.errors import Reason
from services.kit.models import Tokenizer
from services.kit.status import error_from_rpc
from services.worker.adapters.fake_scheduler import FakeScheduler
from services.worker.adapters.scheduler_link import SchedulerLink
from services.worker.adapters.sim.engine import SimEngine
from tests.support.worker_rig import LIMITS, MODEL, SECRET, Rig, background, scheduler_server, worker_rig

LONG = SamplingParams(ignore_eos=True)


def blocks_of(tokenizer: Tokenizer, tokens: list[int]) -> set[int]:
    root = root_hash(model=MODEL, tokenizer_revision=tokenizer.revision)
    return set(chain_hashes(root, tokens, 16))


async def test_hello_says_what_the_worker_is(rig: Rig, tokenizer: Tokenizer) -> None:
    """The scheduler's picture is the worker's own status."""
    status = await rig.stub.GetStatus(GetStatusRequest(), metadata=rig.metadata())
    hello = rig.scheduler.hellos[0]
    assert (hello.worker_id, hello.epoch, hello.spec) == ("wkr-test", status.epoch, status.spec)
    assert hello.spec.tokenizer_revision == tokenizer.revision
    assert hello.spec.engine == "sim"
    assert status.load.serving
    assert not status.draining


async def test_load_is_reported_when_it_changes_and_when_it_does_not(rig: Rig) -> None:
    """An idle worker still says so; a running request shows within the stream's life."""
    before = len(rig.scheduler.loads)
    await rig.scheduler.until(lambda seen: len(seen.loads) > before + 1)
    await rig.generate([4] * 20, SamplingParams(max_tokens=40, ignore_eos=True))
    await rig.until_idle()
    assert any(load.running_requests == 1 for load in rig.scheduler.loads)
    last = rig.scheduler.loads[-1]
    assert last.generated_tokens == 40
    assert last.steps >= 40
    assert last.prefix_queries == 20


async def test_the_index_follows_the_cache_through_evictions(rig: Rig, tokenizer: Tokenizer) -> None:
    """After far more prompts than fit, the scheduler holds exactly the blocks that the engine holds."""
    for seed in range(1, 12):
        await rig.generate([seed] * 200, SamplingParams(max_tokens=3, ignore_eos=True))
    engine_blocks = set(rig.engine._core.pool._by_hash)
    await rig.scheduler.until(lambda seen: seen.blocks == engine_blocks)
    assert blocks_of(tokenizer, [11] * 200) <= rig.scheduler.blocks
    assert not blocks_of(tokenizer, [1] * 200) <= rig.scheduler.blocks
    assert rig.scheduler.gaps == 0
    status = await rig.stub.GetStatus(GetStatusRequest(), metadata=rig.metadata())
    assert status.kv_blocks_resident == len(engine_blocks)


async def test_resync_brings_a_snapshot(rig: Rig, tokenizer: Tokenizer) -> None:
    """The whole cache again, and the deltas go on from there without a gap."""
    await rig.generate([4] * 64, SamplingParams(max_tokens=2, ignore_eos=True))
    await rig.scheduler.until(lambda seen: seen.blocks)
    before = set(rig.scheduler.blocks)
    rig.scheduler.blocks.clear()
    snapshots = rig.scheduler.snapshots
    rig.scheduler.send(pb.ConnectResponse(resync=pb.Resync()))
    await rig.scheduler.until(lambda seen: seen.snapshots == snapshots + 1)
    assert rig.scheduler.blocks == before
    await rig.generate([9] * 64, SamplingParams(max_tokens=2, ignore_eos=True))
    await rig.scheduler.until(lambda seen: seen.blocks >= blocks_of(tokenizer, [9] * 64))
    assert rig.scheduler.gaps == 0


async def test_a_lost_connection_is_renewed_with_the_running_leases(rig: Rig) -> None:
    """The new Hello names what runs, with its grant; the stream never notices."""
    grant = rig.grant([4] * 20, max_output_tokens=300)
    frames = aiter(rig.stub.Generate(rig.request([4] * 20, LONG, grant=grant)))
    await anext(frames)
    rig.scheduler.send(None)
    await rig.scheduler.until(lambda seen: len(seen.hellos) == 2)
    (lease,) = rig.scheduler.hellos[1].leases
    assert lease.lease_id == grant.lease_id
    assert lease.grant == grant
    await rig.scheduler.until(lambda seen: seen.snapshots == 2)
    kinds = [frame.WhichOneof("frame") async for frame in frames]
    assert kinds[-1] == "finished"


async def test_an_end_is_repeated_until_it_is_acknowledged(rig: Rig) -> None:
    """Also over a new connection."""
    rig.scheduler.acknowledges = False
    grant = rig.grant([4] * 20)
    await rig.generate([4] * 20, SamplingParams(max_tokens=2, ignore_eos=True), grant=grant)
    ends = pb.LeasePhase.LEASE_PHASE_FINISHED
    await rig.scheduler.until(lambda seen: seen.phases.get(grant.lease_id, []).count(ends) >= 2)
    rig.scheduler.send(None)
    rig.scheduler.acknowledges = True
    await rig.scheduler.until(lambda seen: len(seen.hellos) == 2)
    await rig.scheduler.until(lambda _: not rig.worker.unacknowledged())
    assert rig.scheduler.finished[grant.lease_id].usage.output_total == 2


async def test_a_scheduler_cancels_a_lease(rig: Rig) -> None:
    """Its stream ends with CANCELLED."""
    grant = rig.grant([4] * 20, max_output_tokens=300)
    frames = aiter(rig.stub.Generate(rig.request([4] * 20, LONG, grant=grant)))
    await anext(frames)
    rig.scheduler.send(pb.ConnectResponse(cancel=pb.CancelLeases(lease_ids=[grant.lease_id])))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in frames:
            pass
    assert caught.value.code() == grpc.StatusCode.CANCELLED
    await rig.until_idle()


async def test_a_scheduler_drains_a_worker(rig: Rig) -> None:
    """What runs goes on, what is new is refused with DRAINING, and the scheduler is told."""
    frames = aiter(rig.stub.Generate(rig.request([4] * 20, LONG, max_output_tokens=100)))
    await anext(frames)
    rig.scheduler.send(pb.ConnectResponse(drain=pb.DrainWorker()))
    await rig.scheduler.until(lambda seen: seen.drained)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate([5] * 20)
    assert error_from_rpc(caught.value).reason == Reason.DRAINING
    assert [frame async for frame in frames][-1].WhichOneof("frame") == "finished"


async def test_a_drain_with_a_budget_ends_what_is_late(rig: Rig) -> None:
    """Drain returns how many it had to end; their streams end with DRAINING, a retryable status."""
    frames = aiter(rig.stub.Generate(rig.request([4] * 20, LONG, max_output_tokens=400)))
    await anext(frames)
    request = DrainRequest()
    request.budget.FromMilliseconds(50)
    response = await rig.stub.Drain(request, metadata=rig.metadata("scheduler"))
    assert response.aborted == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in frames:
            pass
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert error_from_rpc(caught.value).reason == Reason.DRAINING
    assert len(rig.journal.events) == 1


async def test_every_scheduler_hears_of_everything(rig: Rig, tokenizer: Tokenizer) -> None:
    """A second one that comes later gets a snapshot first."""
    await rig.generate([4] * 64, SamplingParams(max_tokens=2, ignore_eos=True))
    second = FakeScheduler()
    async with scheduler_server(second) as target:
        link = SchedulerLink(rig.worker, target, secret=SECRET, clock=SystemClock())
        async with background(link.run):
            await second.until(lambda seen: seen.snapshots)
            assert second.blocks == blocks_of(tokenizer, [4] * 64)
            await rig.generate([5] * 64, SamplingParams(max_tokens=2, ignore_eos=True))
            await second.until(lambda seen: seen.blocks >= blocks_of(tokenizer, [5] * 64))
            await second.until(lambda seen: len(seen.finished) == 1)


async def test_a_slow_scheduler_gets_a_snapshot_instead_of_a_backlog(sim: SimEngine, tokenizer: Tokenizer) -> None:
    """More deltas than the bound become one snapshot, and nothing is missing."""
    limits = replace(LIMITS, uplink=replace(LIMITS.uplink, max_deltas=2, pause_s=0.3))
    async with worker_rig(sim, tokenizer_revision=tokenizer.revision, limits=limits) as rig:
        snapshots = rig.scheduler.snapshots
        for seed in (1, 2, 3):
            await rig.generate([seed] * 150, SamplingParams(max_tokens=20, ignore_eos=True))
        wanted = set(sim._core.pool._by_hash)
        await rig.scheduler.until(lambda seen: seen.blocks == wanted)
        assert rig.scheduler.snapshots > snapshots
        assert rig.scheduler.gaps == 0
    await sim.stop()


async def test_an_end_is_told_to_who_is_slow_even_if_another_has_acknowledged_it(rig: Rig) -> None:
    """A lease that only some schedulers know to have ended would hold its place at the others."""
    with rig.worker.uplink() as slow:
        await rig.generate([4] * 64, SamplingParams(max_tokens=2, ignore_eos=True))
        await rig.scheduler.until(lambda seen: len(seen.finished) == 1)
        await rig.until_idle()
        assert not rig.worker.unacknowledged()
        told = [state for message in await slow.next_batch() for state in message.leases.leases]
    assert [(state.lease_id, state.phase) for state in told] == [
        (lease_id, pb.LEASE_PHASE_FINISHED) for lease_id in rig.scheduler.finished
    ]
