"""Connect, DescribeFleet and WatchFleet, over a real stream."""

import asyncio
from datetime import timedelta

import pytest
from downstack.scheduler.v1 import scheduler_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from services.kit.errors import Reason
from services.kit.tickets import verify_ticket
from tests.component.scheduler.world import (
    OTHER_TENANT,
    SECRET,
    TENANT,
    World,
    as_service,
    as_tenant,
    connected,
    hello,
    make_world,
    place_request,
    refused,
    until,
)


async def test_welcome_and_resync(world: World) -> None:
    """A new worker is welcomed with the report interval, and asked for its cache."""
    call = world.stub.Connect(metadata=as_service("worker"))
    await call.write(pb.ConnectRequest(hello=hello()))
    welcome = (await call.read()).welcome
    assert welcome.scheduler_id == "sch_test"
    assert welcome.report_interval.ToTimedelta() == timedelta(seconds=1)
    assert (await call.read()).WhichOneof("message") == "resync"
    call.cancel()


async def test_snapshot_in_parts_then_deltas(world: World) -> None:
    """The parts of a snapshot count together, and a gap leads to another question."""
    async with connected(world) as worker:
        await worker.hear("resync")
        await worker.say(kv_snapshot=pb.KvSnapshot(epoch="kv", sequence=5, hashes=[1, 2]))
        await worker.say(kv_snapshot=pb.KvSnapshot(epoch="kv", sequence=5, hashes=[3], last=True))
        await worker.store(6, 4)
        await until(lambda: world.scheduler.brain.index.blocks_of("w1") == 4)
        assert (await world.fleet()).workers[0].index_trusted
        await worker.store(9, 5)
        await worker.hear("resync")
        assert not (await world.fleet()).workers[0].index_trusted


async def test_the_first_message_must_be_a_hello(world: World) -> None:
    """Anything else, and a second hello, end the stream with a reason."""
    call = world.stub.Connect(metadata=as_service("worker"))
    await call.write(pb.ConnectRequest(load=pb.LoadReport(serving=True)))
    assert (await refused(call.read())).reason is Reason.PARAM_CONFLICT
    async with connected(world) as worker:
        await worker.say(hello=hello())
        await worker.hear("resync")
        assert (await refused(worker.call.read())).reason is Reason.PARAM_CONFLICT
    call = world.stub.Connect(metadata=as_service("worker"))
    await call.write(pb.ConnectRequest(hello=hello(worker_id="")))
    assert (await refused(call.read())).reason is Reason.PARAM_OUT_OF_RANGE
    call = world.stub.Connect(metadata=as_service("worker"))
    await call.done_writing()
    assert (await refused(call.read())).reason is Reason.PARAM_CONFLICT


async def test_a_newer_stream_closes_the_older(world: World) -> None:
    """One worker has one stream: the newest."""
    async with connected(world) as old:
        await old.hear("resync")
        async with connected(world, hello(epoch="e2")):
            assert (await refused(old.call.read())).reason is Reason.STALE_EPOCH
            await until(lambda: len(world.scheduler.brain.fleet) == 1)
            assert (await world.fleet()).workers[0].phase == pb.WORKER_PHASE_READY


async def test_a_lost_workers_leases_are_recorded(world: World) -> None:
    """When a stream ends for good, its running leases end with the last report."""
    async with connected(world) as worker:
        placed = await world.place()
        await worker.report(placed.lease_id, pb.LEASE_PHASE_DECODING, input_total=64, output_total=5)
        lease = world.scheduler.brain.book.get(placed.lease_id)
        await until(lambda: lease is not None and lease.phase.value == "decoding")
    await until(lambda: len(world.journal.usage) == 1)
    (record,) = world.journal.usage
    assert record.ending.value == "lost"
    assert record.lease.usage is not None
    assert record.lease.usage.output_total == 5
    assert (await world.fleet()).workers[0].phase == pb.WORKER_PHASE_LOST
    phases = [step.phase.value for step in world.journal.workers]
    assert phases == ["ready", "lost"]


async def test_a_restarted_scheduler_learns_its_leases_from_the_workers() -> None:
    """Leases survive the scheduler: the worker's hello brings them, prices and all, and their end is acknowledged."""
    async with make_world() as first, connected(first):
        placed = await first.place()
    grant = verify_ticket(placed.ticket, secret=SECRET)
    state = pb.LeaseState(lease_id=placed.lease_id, phase=pb.LEASE_PHASE_DECODING, grant=grant)
    async with make_world() as second, connected(second, hello(leases=[state])) as worker:
        (lease,) = second.scheduler.brain.book
        assert lease.grant.price.output_nano == 600
        assert lease.grant.tenant_id == grant.tenant_id
        assert (await refused(second.place())).reason is Reason.CONFLICTING_UPDATE
        await worker.report(placed.lease_id, pb.LEASE_PHASE_FINISHED)
        assert (await worker.hear("acknowledge")).lease_ids == [placed.lease_id]
        assert len(second.scheduler.brain.book) == 0


async def test_draining_and_unhealthy_workers_get_nothing(world: World) -> None:
    """A worker's own word on what it can take is obeyed at once."""
    async with connected(world) as first, connected(world, hello("w2")) as second:
        await first.say(draining=pb.Draining())
        await second.say(load=pb.LoadReport(serving=False))
        await until(lambda: not any(worker.ready for worker in world.scheduler.brain.fleet))
        waiting = asyncio.create_task(world.place())
        await until(lambda: len(world.scheduler.brain.queue) == 1)
        await second.say(load=pb.LoadReport(serving=True, running_requests=1))
        assert (await waiting).decision.worker_id == "w2"
        phases = {worker.worker_id: worker.phase for worker in (await world.fleet()).workers}
        assert phases == {"w1": pb.WORKER_PHASE_DRAINING, "w2": pb.WORKER_PHASE_READY}


async def test_watching_the_fleet(world: World) -> None:
    """A watcher gets the fleet at once, and again when it changed."""
    interval = Duration()
    interval.FromMilliseconds(100)
    call = world.stub.WatchFleet(pb.WatchFleetRequest(interval=interval), metadata=as_service("router"), timeout=10)
    assert len((await call.read()).fleet.workers) == 0
    async with connected(world, hello(tokenizer_revision="rev")):
        fleet = (await call.read()).fleet
        assert [worker.spec.tokenizer_revision for worker in fleet.workers] == ["rev"]
        assert [(model.name, model.ready_workers) for model in fleet.models] == [("m", 1)]
        assert fleet.models[0].price.currency == "USD"
    assert (await call.read()).fleet.workers[0].phase == pb.WORKER_PHASE_LOST
    call.cancel()


@pytest.mark.parametrize("milliseconds", [0, 99])
async def test_watching_too_often_is_refused(world: World, milliseconds: int) -> None:
    interval = Duration()
    interval.FromMilliseconds(milliseconds)
    call = world.stub.WatchFleet(pb.WatchFleetRequest(interval=interval), metadata=as_tenant(), timeout=5)
    assert (await refused(call.read())).code == "PERMISSION_DENIED", "a key needs the scope"
    call = world.stub.WatchFleet(pb.WatchFleetRequest(interval=interval), metadata=as_service("router"), timeout=5)
    assert (await refused(call.read())).reason is Reason.PARAM_OUT_OF_RANGE


async def test_many_callers_at_once(world: World) -> None:
    """Two hundred concurrent requests on two workers are all placed, each once."""
    async with connected(world, hello("w1")) as one, connected(world, hello("w2")) as two:
        workers = {"w1": one, "w2": two}

        async def run(number: int) -> str:
            placed = await world.place(place_request(f"r{number}"), wait_s=30)
            await workers[placed.decision.worker_id].report(placed.lease_id, pb.LEASE_PHASE_FINISHED)
            return placed.lease_id

        leases = await asyncio.gather(*(run(number) for number in range(200)))
        await until(lambda: len(world.scheduler.brain.book) == 0)
        assert len(set(leases)) == 200
        world.scheduler.brain.validate()


async def test_a_tenant_sees_its_own_queue_and_an_operator_all() -> None:
    """What waits is shown by class and tenant; others' queues, and what all spend, are not for tenants."""
    async with make_world(look_ahead=0) as world, connected(world, hello(max_num_seqs=1)) as worker:
        placed = await world.place(place_request("running"))
        await worker.report(placed.lease_id, pb.LEASE_PHASE_FINISHED, input_total=64, input_cached=0, output_total=4)
        await world.place(place_request("running on"))
        waiting = [asyncio.create_task(refused(world.place(place_request(name)))) for name in ("a", "b")]
        await until(lambda: len(world.scheduler.brain.queue) == 2)
        request = pb.DescribeFleetRequest()
        own = (await world.stub.DescribeFleet(request, metadata=as_tenant(TENANT, "usage"))).fleet
        others = (await world.stub.DescribeFleet(request, metadata=as_tenant(OTHER_TENANT, "usage"))).fleet
        whole = (await world.stub.DescribeFleet(request, metadata=as_tenant(OTHER_TENANT, "admin"))).fleet
        assert [(one.tenant_id, one.requests) for one in own.waiting] == [(TENANT, 2)]
        assert list(own.spend) == list(others.spend) == list(others.waiting) == []
        assert whole.waiting == own.waiting
        assert [rate.currency for rate in whole.spend] == ["USD"]
        assert whole.models[0].replicas_wanted >= 1
        await world.scheduler.drain()
        await asyncio.gather(*waiting)
