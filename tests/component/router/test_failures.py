"""What a caller is told when something fails, and what is left behind."""

import asyncio

from downstack.types.v1 import usage_pb2 as usage_pb

from services.kit.errors import Code, DownstackError, Reason
from tests.component.router.world import Build, World, refused, spec


def dead() -> DownstackError:
    return DownstackError(Reason.ENGINE_DEAD, "The engine died.")


async def test_the_caller_leaves_and_the_worker_is_told(world: World) -> None:
    """A cancelled stream cancels the worker's call; lease and record say so."""
    world.worker.gate = asyncio.Event()
    call = world.stream(spec())
    assert [(await call.read()).WhichOneof("frame") for _ in range(2)] == ["started", "delta"]
    await world.worker.reached_gate.wait()
    call.cancel()
    await asyncio.wait_for(world.worker.cancelled.wait(), 10)
    (release,) = await world.scheduler.releases_are(1)
    assert release.finish_reason == usage_pb.FINISH_REASON_CANCELLED
    assert release.usage.output_delivered == 1
    finished = (await world.until_recorded("finished")).finished
    assert (finished.code, finished.reason) == ("CANCELLED", "CLIENT_CANCELLED")
    assert finished.finish_reason == usage_pb.FINISH_REASON_CANCELLED


async def test_the_caller_leaves_a_unary_call(world: World) -> None:
    """The same for the unary form, where the caller has seen nothing yet."""
    world.worker.gate = asyncio.Event()
    call = asyncio.ensure_future(world.once(spec()))
    await world.worker.reached_gate.wait()
    call.cancel()
    await asyncio.wait_for(world.worker.cancelled.wait(), 10)
    (release,) = await world.scheduler.releases_are(1)
    assert release.finish_reason == usage_pb.FINISH_REASON_CANCELLED


async def test_the_caller_leaves_the_queue(world: World) -> None:
    """A caller that leaves before a placement leaves no lease, and its place in the queue is free."""
    world.scheduler.gate = asyncio.Event()
    call = world.stream(spec())
    reading = asyncio.ensure_future(call.read())
    await world.scheduler.placing.wait()
    call.cancel()
    await asyncio.wait_for(world.scheduler.place_cancelled.wait(), 10)
    await asyncio.gather(reading, return_exceptions=True)
    assert world.scheduler.releases == []
    assert await world.facts("finished") == []


async def test_the_deadline_passes_while_tokens_come(world: World) -> None:
    """DEADLINE_EXCEEDED at the caller, the worker is told, and the record names the deadline."""
    world.worker.gate = asyncio.Event()
    with refused() as told:
        await world.frames(spec(), timeout_s=0.6)
    assert told[0].code == Code.DEADLINE_EXCEEDED
    await asyncio.wait_for(world.worker.cancelled.wait(), 10)
    (release,) = await world.scheduler.releases_are(1)
    assert release.finish_reason == usage_pb.FINISH_REASON_DEADLINE
    finished = (await world.until_recorded("finished")).finished
    assert (finished.code, finished.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_IN_GENERATION")


async def test_a_deadline_of_the_routers_own(build: Build) -> None:
    """A caller without a deadline gets the default one, and its status has the reason."""
    async with build(default_deadline_s=0.5) as world:
        world.worker.gate = asyncio.Event()
        with refused() as told:
            await world.frames(spec(), timeout_s=None)
        assert told[0].reason == Reason.DEADLINE_IN_GENERATION


async def test_the_deadline_passes_in_the_queue(build: Build) -> None:
    """No worker is asked, and the caller is told that it was the queue."""
    async with build(default_deadline_s=0.5) as world:
        world.scheduler.refusal = DownstackError(Reason.DEADLINE_IN_QUEUE, "The deadline passed in the queue.")
        with refused() as told:
            await world.frames(spec(), timeout_s=None)
        assert told[0].reason == Reason.DEADLINE_IN_QUEUE
        assert world.worker.requests == []


async def test_a_worker_that_nobody_answers_for_is_replaced(build: Build) -> None:
    """The first placement cannot be reached: the second excludes it, and the caller sees one clean stream."""
    async with build(dead=1) as world:
        frames = await world.frames(spec())
        assert [frame.WhichOneof("frame") for frame in frames] == ["started", *["delta"] * 3, "finished"]
        assert [frame.sequence for frame in frames] == [0, 1, 2, 3, 4]
        assert frames[0].started.worker_id == "worker-0"
        assert frames[0].started.decision.attempt == 2
        assert [(order.attempt, list(order.excluded_workers)) for order in world.scheduler.orders] == [
            (1, []),
            (2, ["dead-0"]),
        ]
        releases = await world.scheduler.releases_are(2)
        assert {(r.lease_id, r.finish_reason) for r in releases} == {
            ("lse_1", usage_pb.FINISH_REASON_ERROR),
            ("lse_2", usage_pb.FINISH_REASON_STOP),
        }
        assert (await world.until_recorded("finished")).finished.attempts == 2


async def test_a_worker_that_dies_before_its_first_token_is_replaced(build: Build) -> None:
    """Its started frame does not count: the caller has seen nothing of it."""
    async with build(workers=2) as world:
        world.workers[0].failure = dead()
        frames = await world.frames(spec())
        assert frames[0].started.worker_id == "worker-1"
        assert len(world.workers[0].requests) == len(world.workers[1].requests) == 1


async def test_no_third_worker_is_tried(build: Build) -> None:
    """After two failed attempts the caller is told, with a time to come back."""
    async with build(workers=3) as world:
        for worker in world.workers:
            worker.failure = dead()
        with refused() as told:
            await world.frames(spec())
        assert (told[0].reason, told[0].metadata["attempts"]) == (Reason.ENGINE_DEAD, "2")
        assert told[0].retry_after_s
        assert world.workers[2].requests == []
        assert len(await world.scheduler.releases_are(2)) == 2
        finished = (await world.until_recorded("finished")).finished
        assert (finished.code, finished.attempts) == ("UNAVAILABLE", 2)


async def test_a_worker_that_dies_after_tokens_is_not_replaced(build: Build) -> None:
    """The stream ends with ABORTED and says how much was delivered; nothing is repeated."""
    async with build(workers=2) as world:
        world.workers[0].failure, world.workers[0].failure_at = dead(), 2
        text = ""
        with refused() as told:
            async for frame in world.stream(spec()):
                text += frame.delta.text
        assert (told[0].code, told[0].reason) == (Code.ABORTED, Reason.WORKER_LOST_MID_STREAM)
        assert told[0].metadata["output_tokens"] == "2"
        assert text == "one two "
        assert world.workers[1].requests == []
        (release,) = await world.scheduler.releases_are(1)
        assert (release.finish_reason, release.usage.output_delivered) == (usage_pb.FINISH_REASON_ERROR, 2)


async def test_a_stream_without_its_last_frame_is_a_lost_worker(world: World) -> None:
    """It never just stops."""
    world.worker.silent_end = True
    with refused() as told:
        await world.frames(spec())
    assert told[0].reason == Reason.WORKER_LOST_MID_STREAM


async def test_what_the_worker_refuses_is_the_callers(build: Build) -> None:
    """A feature that the engine lacks would fail anywhere: it is told at once."""
    async with build(workers=2) as world:
        world.workers[0].failure = DownstackError(Reason.UNSUPPORTED_FEATURE, "The sim engine knows no regex.")
        with refused() as told:
            await world.frames(spec())
        assert told[0].reason == Reason.UNSUPPORTED_FEATURE
        assert world.workers[1].requests == []


async def test_the_schedulers_refusal_is_told_at_once(world: World) -> None:
    """Code, reason and RetryInfo pass through, without waiting the time out first."""
    world.scheduler.refusal = DownstackError(Reason.NO_HEALTHY_WORKER, "Nobody is there.", retry_after_s=60.0)
    with refused() as told:
        await asyncio.wait_for(world.frames(spec()), 10)
    assert (told[0].reason, told[0].retry_after_s) == (Reason.NO_HEALTHY_WORKER, 60.0)
    fact = (await world.facts("refused"))[0]
    assert (fact.refused.code, fact.refused.reason) == ("UNAVAILABLE", "NO_HEALTHY_WORKER")


async def test_a_full_router_refuses_at_once(build: Build) -> None:
    """The limit counts requests in flight, and a slot is free again after the end."""
    async with build(max_concurrent_requests=1) as world:
        world.worker.gate = asyncio.Event()
        first = asyncio.ensure_future(world.frames(spec()))
        await world.worker.reached_gate.wait()
        with refused() as told:
            await world.frames(spec())
        assert (told[0].reason, told[0].retry_after_s) == (Reason.OVERLOADED, 1.0)
        world.worker.gate.set()
        assert len(await first) == 5
        assert len(await world.frames(spec())) == 5


async def test_a_full_journal_refuses_new_work(world: World) -> None:
    """Nothing runs that could not be recorded."""
    room = 1000 - world.outbox.depth
    await world.fill_outbox(room)
    with refused() as told:
        await world.frames(spec())
    assert told[0].reason == Reason.JOURNAL_FULL
    assert world.scheduler.orders == []
