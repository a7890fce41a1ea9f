"""After a start, requests wait a moment for the fleet and its caches instead of missing them."""

from collections.abc import Sequence

from services.scheduler.domain.instructions import Instruction, Place
from services.scheduler.domain.kv import SnapshotPart
from services.scheduler.domain.worker import Load
from tests.unit.scheduler.making import Desk, offer


def workers(found: Sequence[Instruction]) -> list[str]:
    return [each.grant.worker_id for each in found if isinstance(each, Place)]


def cache(*hashes: int, epoch: str = "e1") -> SnapshotPart:
    return SnapshotPart(epoch=epoch, sequence=0, hashes=hashes, last=True)


def test_a_new_scheduler_waits_for_its_fleet() -> None:
    """The worker that holds the conversation connects last, and gets the request all the same."""
    desk = Desk(settle_s=1.0)
    desk.hello("w1")
    desk.say(cache(), "w1")
    _, found = desk.ask()
    assert workers([*found, *desk.after(0.5)]) == []
    desk.hello("w2")
    desk.say(cache(*offer().block_hashes), "w2")
    assert workers(desk.after(0.5)) == ["w2"]


def test_a_worker_takes_leases_once_its_cache_is_known() -> None:
    """A worker that connects later is not used before its snapshot is in."""
    desk = Desk(settle_s=1.0)
    desk.after(10)
    desk.hello("w1")
    _, found = desk.ask()
    assert workers([*found, *desk.say(Load()), *desk.after(0.1)]) == []
    desk.say(cache())
    assert workers(desk.say(Load())) == ["w1"]


def test_a_worker_whose_cache_does_not_come_is_used_after_the_wait() -> None:
    desk = Desk(settle_s=1.0)
    desk.after(10)
    desk.hello("w1")
    _, found = desk.ask()
    assert workers([*found, *desk.after(0.9)]) == []
    assert workers(desk.after(0.2)) == ["w1"]


def test_a_worker_without_events_has_nothing_to_wait_for() -> None:
    desk = Desk(settle_s=1.0)
    desk.after(10)
    desk.hello("w1", kv_events=False)
    assert desk.place().grant.worker_id == "w1"
