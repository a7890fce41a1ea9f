"""What waits, in which order it is placed, and when waiting is no use."""

import pytest

from services.kit.errors import Reason
from services.scheduler.domain.fairness import ContestKey
from services.scheduler.domain.instructions import Instruction, Place, Refuse
from services.scheduler.domain.lease import LeasePhase, Usage
from services.scheduler.domain.request import Priority
from services.scheduler.domain.stimuli import Leaving
from services.scheduler.domain.worker import Load
from tests.unit.scheduler.making import Desk, offer


def placed(found: list[Instruction]) -> list[str]:
    return [each.grant.request_id for each in found if isinstance(each, Place)]


def refused(found: list[Instruction]) -> list[Reason]:
    return [each.error.reason for each in found if isinstance(each, Refuse)]


def full_desk(**limits: float) -> tuple[Desk, Place]:
    """A desk whose one worker holds the one request that it can."""
    desk = Desk(look_ahead=0, **limits)
    desk.hello(max_num_seqs=1)
    holder = desk.place("holder", tenant_id="holder")
    desk.run(holder)
    return desk, holder


def drain_order(desk: Desk, holder: Place) -> list[str]:
    """The order in which the waiting requests are placed, one at a time."""
    order: list[str] = []
    current: Place | None = holder
    while current is not None:
        found = desk.run(current, LeasePhase.FINISHED)
        current = next((each for each in found if isinstance(each, Place)), None)
        order += placed(found)
    return order


def test_classes_are_served_in_order() -> None:
    """Interactive before standard before batch, whatever came first."""
    desk, holder = full_desk()
    for priority in (Priority.BATCH, Priority.STANDARD, Priority.INTERACTIVE):
        desk.ask(priority.name, priority=priority)
    assert drain_order(desk, holder) == ["INTERACTIVE", "STANDARD", "BATCH"]


def test_waiting_lifts_the_class() -> None:
    """Batch work that has waited long enough goes before interactive work that has just come."""
    desk, holder = full_desk(ageing_s=10.0)
    desk.ask("old", priority=Priority.BATCH, deadline_at=desk.now + 200)
    desk.now += 25
    desk.ask("new", priority=Priority.INTERACTIVE, deadline_at=desk.now + 300)
    assert drain_order(desk, holder) == ["old", "new"]


def test_the_tenant_charged_least_goes_first() -> None:
    """A tenant with many requests does not shut out one with few."""
    desk, holder = full_desk()
    for number in range(3):
        desk.ask(f"many{number}", tenant_id="many")
    desk.ask("few0", tenant_id="few")
    assert drain_order(desk, holder) == ["many0", "few0", "many1", "many2"]


def test_service_is_counted_in_tokens() -> None:
    """Two tenants that wait side by side get equal tokens, not equal requests."""
    desk, holder = full_desk()
    for number in range(2):
        desk.ask(f"long{number}", tenant_id="long", offers=(offer(1600, first_hash=9000 + 1000 * number),))
    for number in range(4):
        desk.ask(f"short{number}", tenant_id="short", offers=(offer(160, first_hash=20_000 + 1000 * number),))
    assert drain_order(desk, holder) == ["short0", "long0", "short1", "short2", "short3", "long1"]


def test_a_tenant_that_was_away_brings_no_credit() -> None:
    """A tenant that comes late is served beside the others, not before all that they have been charged."""
    desk, holder = full_desk()
    for number in range(6):
        desk.ask(f"a{number}", tenant_id="a", offers=(offer(1600, first_hash=10_000 * number),))
    current = holder
    for _ in range(4):
        found = desk.run(current, LeasePhase.FINISHED)
        current = next(each for each in found if isinstance(each, Place))
    for number in range(3):
        desk.ask(f"b{number}", tenant_id="b", offers=(offer(1600, first_hash=100_000 + 10_000 * number),))
    assert drain_order(desk, current) == ["b0", "a4", "b1", "a5", "b2"]


def test_earliest_deadline_first_within_a_tenant() -> None:
    """Of one tenant's requests the most urgent goes first."""
    desk, holder = full_desk()
    desk.ask("later", deadline_at=desk.now + 50)
    desk.ask("sooner", deadline_at=desk.now + 20)
    assert drain_order(desk, holder) == ["sooner", "later"]


def test_a_passed_deadline_is_refused_with_its_reason() -> None:
    """A request whose deadline passes in the queue is refused then, and its place is free."""
    desk, _ = full_desk(max_queued=1)
    desk.ask("short", deadline_at=desk.now + 1)
    assert refused(desk.after(0.9)) == []
    assert refused(desk.after(0.2)) == [Reason.DEADLINE_IN_QUEUE]
    assert len(desk.brain.queue) == 0
    assert refused(desk.ask("gone", deadline_at=desk.now - 1)[1] + desk.after(0)) == [Reason.DEADLINE_IN_QUEUE]


def test_the_queue_is_bounded() -> None:
    """Over the bounds requests are refused at once and told when to ask again."""
    desk, _ = full_desk(max_queued=2, max_queued_per_tenant=1)
    desk.ask("r1")
    second = desk.refusal("r2").error
    assert second.reason is Reason.TENANT_CONCURRENCY
    desk.ask("r3", tenant_id="t2")
    third = desk.refusal("r4", tenant_id="t3").error
    assert third.reason is Reason.OVERLOADED
    assert third.retry_after_s is not None
    assert 0.1 <= third.retry_after_s <= 30


def test_an_abandoned_request_leaves_no_trace() -> None:
    """A caller that goes away is never placed."""
    desk, holder = full_desk()
    call, _ = desk.ask("r1")
    desk.abandon(call)
    assert drain_order(desk, holder) == []
    assert desk.abandon(call) == []


def test_a_newer_call_for_the_same_attempt_takes_the_place() -> None:
    """A retry of a waiting attempt ends the earlier call, and is placed once."""
    desk, holder = full_desk()
    first, _ = desk.ask("r1")
    second, found = desk.ask("r1")
    assert [each.call for each in found if isinstance(each, Refuse)] == [first]
    assert refused(found) == [Reason.CONFLICTING_UPDATE]
    answers = desk.run(holder, LeasePhase.FINISHED)
    assert [each.call for each in answers if isinstance(each, Place)] == [second]


def test_a_full_model_does_not_hold_up_another() -> None:
    """What cannot be placed lets pass what can."""
    desk, _ = full_desk()
    desk.hello("w2", model="other")
    desk.ask("blocked", priority=Priority.INTERACTIVE)
    _, found = desk.ask("free", offers=(offer(model="other"),), priority=Priority.BATCH)
    assert placed(found) == ["free"]


def test_unknown_models_are_refused_once_the_fleet_is_there() -> None:
    """At the start any model may still come with its worker; later an unknown one does not exist."""
    desk = Desk(no_worker_wait_s=10.0)
    assert desk.ask("early")[1] == []
    assert refused(desk.after(0)) == []
    assert refused(desk.after(9)) == []
    assert refused(desk.after(1)) == [Reason.MODEL_NOT_FOUND]
    assert desk.refusal("late").error.reason is Reason.MODEL_NOT_FOUND


def test_a_known_model_without_workers_waits_a_little() -> None:
    """A worker's restart is survived; if none comes, the caller is told to come again."""
    desk = Desk(known_models=["m"], no_worker_wait_s=10.0)
    desk.now += 100
    desk.ask("r1")
    desk.after(5)
    assert placed(desk.hello()) == ["r1"]
    desk.gone()
    call, _ = desk.ask("r2")
    desk.after(0)
    (refusal,) = [each for each in desk.after(10) if isinstance(each, Refuse)]
    assert (refusal.call, refusal.error.reason) == (call, Reason.NO_HEALTHY_WORKER)
    assert refusal.error.retry_after_s == 10.0


@pytest.mark.parametrize("report", [Leaving(), Load(serving=False)])
def test_workers_that_take_nothing_get_nothing(report: Leaving | Load) -> None:
    """A draining or unhealthy worker is passed over; a healthy one that appears takes what waits."""
    desk = Desk()
    desk.hello("w1")
    desk.say(report, "w1")
    assert desk.ask("r1")[1] == []
    assert placed(desk.hello("w2")) == ["r1"]


def test_a_worker_that_recovers_takes_what_waits() -> None:
    """The next good report is enough."""
    desk = Desk()
    desk.hello()
    desk.say(Load(serving=False))
    desk.ask("r1")
    assert placed(desk.say(Load(serving=True))) == ["r1"]


def test_excluded_workers_are_not_tried_again() -> None:
    """A retry goes elsewhere, or waits for elsewhere."""
    desk = Desk(no_worker_wait_s=2.0)
    desk.hello("w1")
    assert desk.ask("r1", excluded_workers=frozenset({"w1"}))[1] == []
    desk.after(0)
    assert refused(desk.after(2)) == [Reason.NO_HEALTHY_WORKER]
    desk.hello("w2")
    assert desk.place("r2", excluded_workers=frozenset({"w1"})).grant.worker_id == "w2"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"offers": (offer(4096),)}, Reason.PROMPT_TOO_LONG),
        ({"max_cost": 0.0}, Reason.PARAM_CONFLICT),
        ({"min_quality": 0.9, "offers": (offer(quality=0.5),)}, Reason.PARAM_CONFLICT),
        ({"offers": (offer(64, block_hashes=(1,)),)}, Reason.PARAM_OUT_OF_RANGE),
        ({"offers": (offer(64, block_size=0),)}, Reason.PARAM_OUT_OF_RANGE),
        ({"offers": (offer(0, block_hashes=()),)}, Reason.PARAM_OUT_OF_RANGE),
        ({"offers": (offer(10**7, block_hashes=()),)}, Reason.PARAM_OUT_OF_RANGE),
        ({"offers": ()}, Reason.PARAM_OUT_OF_RANGE),
        ({"offers": (offer(), offer())}, Reason.PARAM_OUT_OF_RANGE),
        ({"offers": (offer(quality=float("nan")),)}, Reason.PARAM_OUT_OF_RANGE),
        ({"attempt": 0}, Reason.PARAM_OUT_OF_RANGE),
        ({"tenant_id": ""}, Reason.PARAM_OUT_OF_RANGE),
        ({"max_output_tokens": 0}, Reason.PARAM_OUT_OF_RANGE),
        ({"max_cost": float("inf")}, Reason.PARAM_OUT_OF_RANGE),
        ({"value": -1.0}, Reason.PARAM_OUT_OF_RANGE),
    ],
)
def test_what_can_never_be_placed_is_refused_at_once(changed: dict[str, object], reason: Reason) -> None:
    """Counts that cannot be true and wishes that no worker can meet do not wait."""
    desk = Desk()
    desk.hello()
    assert desk.refusal(**changed).error.reason is reason
    assert len(desk.brain.queue) == 0
    assert len(desk.brain.book) == 0


def test_real_output_corrects_what_a_tenant_was_charged() -> None:
    """A tenant whose answers are shorter than predicted is not charged for the prediction."""
    desk = Desk()
    desk.hello()
    lease = desk.place(offers=(offer(output_tokens=None),), max_output_tokens=1000)
    contest = ContestKey(Priority.STANDARD, ("m",))
    assert desk.brain.fair.standing(contest, "t1") == 64 + 2 * 128
    desk.run(lease, LeasePhase.FINISHED, Usage(input_cached=16, output_total=10))
    assert desk.brain.fair.standing(contest, "t1") == 48 + 2 * 10
    lease = desk.place("r2", offers=(offer(output_tokens=None),), max_output_tokens=1000)
    assert desk.brain.fair.standing(contest, "t1") > 48 + 2 * 10
