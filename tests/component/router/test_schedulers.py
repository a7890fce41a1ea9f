"""Several schedulers, and schedulers that are not there."""

import asyncio

from downstack.types.v1 import usage_pb2 as usage_pb

from services.kit.errors import Code, DownstackError, Reason
from tests.component.router.world import Build, World, refused, spec


async def test_requests_go_past_schedulers_that_are_not_there(build: Build) -> None:
    """Of three schedulers one lives: every request is placed, and its lease goes back to who granted it."""
    async with build(dead_schedulers=2) as world:
        await world.until_models(["sim-small"])
        answers = [await world.once(spec(f"Question {number}")) for number in range(4)]
        assert all(answer.finished.finish_reason == usage_pb.FINISH_REASON_STOP for answer in answers)
        releases = await world.scheduler.releases_are(4)
        assert {each.lease_id for each in releases} == {each.started.lease_id for each in answers}
        explained = await world.explain(answers[0].started.request_id)
        assert len(explained.attempts) == 1


async def test_a_request_waits_for_a_scheduler_that_is_restarting(world: World) -> None:
    """A scheduler that is leaving, and back a moment later, costs its callers no error."""
    await world.until_models(["sim-small"])
    world.scheduler.refusal = DownstackError(Reason.DRAINING, "this scheduler is stopping")
    asking = asyncio.ensure_future(world.once(spec()))
    await world.scheduler.placing.wait()
    world.scheduler.refusal = None
    answer = await asyncio.wait_for(asking, 10)
    assert answer.finished.finish_reason == usage_pb.FINISH_REASON_STOP


async def test_without_any_scheduler_the_caller_is_told(build: Build) -> None:
    """After the patience the caller gets one sentence that names no address, and when to come again."""
    async with build(scheduler_patience_s=0.2) as world:
        await world.until_models(["sim-small"])
        world.scheduler.refusal = DownstackError(Reason.DRAINING, "this scheduler is stopping")
        with refused() as told:
            await world.once(spec())
    assert told[0].code == Code.UNAVAILABLE
    assert told[0].reason is Reason.DEPENDENCY_UNAVAILABLE
    assert told[0].message == "no scheduler can be reached"
    assert told[0].retry_after_s is not None
