"""Place and Release as a router sees them."""

import asyncio

import pytest
from downstack.scheduler.v1 import scheduler_pb2 as pb

from services.kit.errors import Reason
from services.kit.tickets import verify_ticket
from tests.component.scheduler.world import (
    BLOCK,
    OTHER_TENANT,
    SECRET,
    StandInWorker,
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

STOP, CANCELLED, UNUSED = 1, 3, 6


@pytest.fixture
async def worker(world: World):  # noqa: ANN201
    async with connected(world) as worker:
        yield worker


async def test_a_placement_carries_a_ticket_that_the_worker_can_check(world: World, worker: StandInWorker) -> None:
    """The ticket is signed, and says what the response says; the decision was recorded before."""
    placed = await world.place(place_request(labels={"team": "a"}, cache_salt="salt", conversation_id="c"))
    grant = verify_ticket(placed.ticket, secret=SECRET)
    assert placed.endpoint == "w1:1"
    assert (grant.lease_id, grant.worker_id, grant.worker_epoch) == (placed.lease_id, "w1", "e1")
    assert (grant.cache_salt, grant.conversation_id, dict(grant.labels)) == ("salt", "c", {"team": "a"})
    assert grant.requested_model == "m"
    assert grant.price.output_nano == 600
    assert placed.expires_at == grant.expires_at
    assert 4.0 < grant.expires_at.ToNanoseconds() / 1e9 - grant.granted_at.ToNanoseconds() / 1e9 < 6.0
    assert placed.decision.scheduler_id == "sch_test"
    assert placed.decision.candidates[0].worker_id == "w1"
    assert [decision.lease_id for decision in world.journal.decisions] == [placed.lease_id]


async def test_what_a_worker_reports_is_what_the_next_decision_sees(world: World, worker: StandInWorker) -> None:
    """Blocks reported on the stream are cached tokens of the next placement."""
    await worker.store(1, 1, 2, 3)
    await until(lambda: world.scheduler.brain.index.blocks == 3)
    placed = await world.place()
    assert placed.decision.predicted_cached_tokens == 3 * BLOCK
    (seen,) = (await world.fleet()).workers
    assert (seen.indexed_blocks, seen.index_trusted, seen.kv_sequence, seen.leases) == (3, True, 1, 1)


async def test_place_waits_for_a_place(world: World) -> None:
    """A call is held while all is full, and answered when a lease ends."""
    async with connected(world, hello(max_num_seqs=1)) as worker:
        first = [await world.place(place_request(f"r{n}")) for n in range(3)]
        waiting = asyncio.create_task(world.place(place_request("late")))
        await until(lambda: len(world.scheduler.brain.queue) == 1)
        await worker.report(first[0].lease_id, pb.LEASE_PHASE_FINISHED, output_total=3)
        placed = await waiting
        assert placed.decision.queue_ms > 0
        assert (await worker.hear("acknowledge")).lease_ids == [first[0].lease_id]


async def test_a_deadline_in_the_queue_has_its_reason(world: World) -> None:
    """The refusal reaches the caller before its own deadline does."""
    async with connected(world, hello(max_num_seqs=1)):
        for number in range(3):
            await world.place(place_request(f"r{number}"))
        error = await refused(world.place(place_request("late"), wait_s=0.4))
    assert error.reason is Reason.DEADLINE_IN_QUEUE


async def test_a_caller_that_goes_away_leaves_the_queue(world: World) -> None:
    """A cancelled call holds no place in the queue, and no lease."""
    async with connected(world, hello(max_num_seqs=1)):
        for number in range(3):
            await world.place(place_request(f"r{number}"))
        waiting = asyncio.create_task(world.place(place_request("late")))
        await until(lambda: len(world.scheduler.brain.queue) == 1)
        waiting.cancel()
        await until(lambda: len(world.scheduler.brain.queue) == 0)
        assert len(world.scheduler.brain.book) == 3


async def test_release_is_repeatable_and_tenant_bound(world: World, worker: StandInWorker) -> None:
    """The first release of the right tenant counts; an unused ticket leaves its record."""
    placed = await world.place()
    assert not await world.release(placed.lease_id, UNUSED, OTHER_TENANT)
    assert await world.release(placed.lease_id, UNUSED)
    assert not await world.release(placed.lease_id, UNUSED)
    assert not await world.release("lse_unknown", STOP)
    await world.scheduler.recorded()
    assert [record.ending.value for record in world.journal.usage] == ["unused"]


async def test_a_cancelled_answer_is_cancelled_at_the_worker(world: World, worker: StandInWorker) -> None:
    """Releasing a running lease in mid-answer tells the worker."""
    placed = await world.place()
    await worker.report(placed.lease_id, pb.LEASE_PHASE_STARTED)
    lease = world.scheduler.brain.book.get(placed.lease_id)
    await until(lambda: lease is not None and lease.phase.value == "started")
    assert await world.release(placed.lease_id, CANCELLED)
    assert (await worker.hear("cancel")).lease_ids == [placed.lease_id]


async def test_an_expired_ticket_leaves_an_unused_record() -> None:
    """A ticket that nobody uses frees its place by itself."""
    async with make_world(ticket_ttl_s=0.1, start_grace_s=0.05) as world, connected(world):
        placed = await world.place()
        await until(lambda: len(world.journal.usage) == 1)
        assert world.journal.usage[0].lease.grant.lease_id == placed.lease_id
        assert (await world.fleet()).workers[0].leases == 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"candidates": [pb.ModelCandidate(model="m", prompt_tokens=64, block_size=16, block_hashes=[1])]},
            "PARAM_OUT_OF_RANGE",
        ),
        ({"candidates": [pb.ModelCandidate(model="m", prompt_tokens=2**32 - 1)]}, "PARAM_OUT_OF_RANGE"),
        ({"candidates": [pb.ModelCandidate(model="m", prompt_tokens=5000)]}, "PROMPT_TOO_LONG"),
        ({"candidates": []}, "PARAM_OUT_OF_RANGE"),
        ({"request_id": ""}, "PARAM_OUT_OF_RANGE"),
        ({"attempt": 0}, "PARAM_OUT_OF_RANGE"),
        ({"max_output_tokens": 0}, "PARAM_OUT_OF_RANGE"),
    ],
)
async def test_counts_that_cannot_be_true_are_refused(
    world: World, worker: StandInWorker, changed: dict[str, object], reason: str
) -> None:
    request = place_request()
    for field, found in changed.items():
        request.ClearField(field)  # type: ignore[arg-type]
        if isinstance(found, list):
            getattr(request, field).extend(found)
        else:
            setattr(request, field, found)
    error = await refused(world.place(request))
    assert error.reason == reason
    assert error.code == "INVALID_ARGUMENT"


async def test_a_full_queue_says_when_to_come_again() -> None:
    """OVERLOADED carries a RetryInfo."""
    async with make_world(max_queued=1, look_ahead=0) as world, connected(world, hello(max_num_seqs=1)):
        await world.place(place_request("running"))
        waiting = asyncio.create_task(world.place(place_request("waiting")))
        await until(lambda: len(world.scheduler.brain.queue) == 1)
        error = await refused(world.place(place_request("refused")))
        assert error.reason is Reason.OVERLOADED
        assert error.retry_after_s is not None
        waiting.cancel()


async def test_nobody_to_wait_for(world: World) -> None:
    """An unknown model is not found; a known one without workers is unavailable for now."""
    assert (await refused(world.place())).reason is Reason.MODEL_NOT_FOUND
    async with connected(world) as worker:
        worker.call.cancel()
        await until(
            lambda: world.scheduler.brain.fleet.knows("m") and not any(w.ready for w in world.scheduler.brain.fleet)
        )
    error = await refused(world.place())
    assert error.reason is Reason.NO_HEALTHY_WORKER
    assert error.retry_after_s == pytest.approx(0.2)


async def test_a_full_journal_refuses_new_work(world: World, worker: StandInWorker) -> None:
    """What cannot be recorded is not placed, and holds nothing."""
    world.journal.full = True
    assert (await refused(world.place())).reason is Reason.JOURNAL_FULL
    assert len(world.scheduler.brain.book) == 0


async def test_only_services_place_and_connect(world: World) -> None:
    """A tenant's key neither places nor connects, and a service acts for its own tenant only."""
    stub = world.stub
    assert (await refused(stub.Place(place_request(), metadata=as_tenant()))).code == "PERMISSION_DENIED"
    assert (await refused(stub.Place(place_request(), metadata=as_service("worker")))).code == "PERMISSION_DENIED"
    mismatch = stub.Place(place_request(), metadata=as_service("router", OTHER_TENANT))
    assert (await refused(mismatch)).reason is Reason.ACTION_NOT_ALLOWED
    call = stub.Connect(metadata=as_service("router"))
    assert (await refused(call.read())).code == "PERMISSION_DENIED"
    assert (await refused(stub.DescribeFleet(pb.DescribeFleetRequest()))).reason is Reason.AUTH_MISSING


async def test_a_drain_sends_waiting_callers_elsewhere() -> None:
    """On stopping, callers in the queue are refused with DRAINING at once."""
    async with make_world(look_ahead=0) as world, connected(world, hello(max_num_seqs=1)):
        await world.place(place_request("running"))
        waiting = asyncio.create_task(refused(world.place(place_request("waiting"))))
        await until(lambda: len(world.scheduler.brain.queue) == 1)
        await world.scheduler.drain()
        assert (await waiting).reason is Reason.DRAINING
        assert len(world.scheduler.brain.queue) == 0
