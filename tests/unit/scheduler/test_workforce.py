"""What workers may say, and what becomes of it."""

import pytest

from services.kit.errors import Reason
from services.scheduler.domain.instructions import Accept, AskDrain, AskResync, Close, RecordWorker
from services.scheduler.domain.kv import Delta, SnapshotPart, Stored
from services.scheduler.domain.stimuli import DrainWanted, Leaving
from services.scheduler.domain.worker import DEFAULT_RATES, Load, Rates, WorkerPhase
from tests.unit.scheduler.making import Desk


def test_a_new_worker_is_welcomed_and_asked_for_its_cache() -> None:
    """Registration answers with a welcome, a request for a snapshot, and one event."""
    desk = Desk()
    found = desk.hello()
    connection = desk.connections["w1"]
    assert found[:2] == [Accept(connection), AskResync(connection)]
    (step,) = [each for each in found if isinstance(each, RecordWorker)]
    assert (step.worker_id, step.epoch, step.phase) == ("w1", "e1", WorkerPhase.READY)


def test_a_worker_without_kv_events_is_not_asked() -> None:
    """Approximate mode: predictions stay for long, and nobody asks for snapshots."""
    desk = Desk()
    assert not [each for each in desk.hello(kv_events=False) if isinstance(each, AskResync)]
    desk.place()
    desk.after(100)
    assert desk.brain.index.predicted_blocks == 4
    desk.after(21)
    assert desk.brain.index.predicted_blocks == 0


def test_a_missing_snapshot_is_asked_for_again() -> None:
    """Until the snapshot is in, the question is repeated after a while, and no sooner."""
    desk = Desk(resync_retry_s=5.0)
    desk.hello()
    assert not [each for each in desk.after(4.9) if isinstance(each, AskResync)]
    assert [each for each in desk.after(0.2) if isinstance(each, AskResync)]
    desk.say(SnapshotPart(epoch="kv", sequence=0, hashes=(), last=True))
    assert not [each for each in desk.after(60) if isinstance(each, AskResync)]


def test_a_gap_is_asked_about_at_once() -> None:
    desk = Desk()
    desk.hello()
    desk.say(Delta(epoch="kv", sequence=1, changes=(Stored((1,)),)))
    found = desk.say(Delta(epoch="kv", sequence=3, changes=(Stored((3,)),)))
    assert found == [AskResync(desk.connections["w1"])]


@pytest.mark.parametrize(
    "changed",
    [
        {"worker_id": ""},
        {"worker_id": "w" * 257},
        {"epoch": ""},
        {"model": ""},
        {"max_num_seqs": 0},
        {"context_tokens": 0},
        {"block_size": 0},
        {"kv_blocks": 0},
        {"kv_blocks": 1 << 30},
        {"price_per_hour_nano": -1},
    ],
)
def test_a_hello_that_cannot_be_true_is_refused(changed: dict[str, object]) -> None:
    """Such a worker is not taken in, and says nothing to anybody."""
    desk = Desk()
    (closed,) = desk.hello(**{"worker_id": "w1", **changed})  # type: ignore[arg-type]
    assert isinstance(closed, Close)
    assert closed.error.reason is Reason.PARAM_OUT_OF_RANGE
    assert len(desk.brain.fleet) == 0


def test_the_fleet_is_bounded() -> None:
    """Over the bound new workers are refused, known ones are not."""
    desk = Desk(max_workers=1)
    desk.hello("w1")
    (closed,) = desk.hello("w2")
    assert isinstance(closed, Close)
    assert closed.error.reason is Reason.OVERLOADED
    assert isinstance(desk.hello("w1", epoch="e2")[0], Accept) or len(desk.brain.fleet) == 1


def test_impossible_loads_are_not_believed() -> None:
    """A report that cannot be true leaves the last good one, and the worker in its place."""
    desk = Desk()
    desk.hello(rates=Rates(prefill_base_ms=-1.0))
    worker = desk.brain.fleet.get("w1")
    assert worker is not None
    assert worker.rates == DEFAULT_RATES
    desk.say(Load(running_requests=3, kv_usage=0.5))
    for report in (Load(kv_usage=1.5), Load(kv_usage=float("nan")), Load(prefix_queries=1, prefix_hits=2)):
        desk.say(report)
    assert worker.load == Load(running_requests=3, kv_usage=0.5)


def test_phases_are_told_once() -> None:
    """Every change of phase gives one event, repetition none."""
    desk = Desk()
    desk.hello()
    steps = []
    for report in (Load(serving=False), Load(serving=False), Load(serving=True), Leaving(), Leaving()):
        steps += [each.phase for each in desk.say(report) if isinstance(each, RecordWorker)]
    assert steps == [WorkerPhase.UNHEALTHY, WorkerPhase.READY, WorkerPhase.DRAINING]


def test_draining_outlives_a_reconnection_but_not_a_restart() -> None:
    """A worker that leaves goes on leaving when its stream breaks; started anew, it works again."""
    desk = Desk()
    desk.hello()
    assert desk.apply(DrainWanted("w1")) == [AskDrain(desk.connections["w1"])]
    desk.say(Leaving())
    desk.gone()
    desk.hello()
    assert desk.brain.fleet.get("w1").phase is WorkerPhase.DRAINING  # type: ignore[union-attr]
    desk.hello(epoch="e2")
    assert desk.brain.fleet.get("w1").phase is WorkerPhase.READY  # type: ignore[union-attr]


def test_lost_workers_are_forgotten_in_time() -> None:
    """A worker that does not come back leaves the fleet and the index, not before its time."""
    desk = Desk(forget_worker_s=600.0)
    desk.hello()
    desk.say(Delta(epoch="kv", sequence=1, changes=(Stored((1, 2)),)))
    desk.gone()
    desk.after(599)
    assert len(desk.brain.fleet) == 1
    assert desk.brain.index.longest([1]) == {}, "a lost worker's cache is not counted on"
    desk.after(2)
    assert len(desk.brain.fleet) == 0
    assert desk.brain.index.blocks == 0
    assert desk.brain.fleet.knows("m")
