"""Who may wait: what would come too late is refused at once, and in a full queue the less urgent gives way."""

from services.kit.errors import Reason
from services.scheduler.domain.instructions import Place, Refuse
from services.scheduler.domain.lease import LeasePhase
from services.scheduler.domain.lengths import OutputLengths
from services.scheduler.domain.request import Priority
from tests.unit.scheduler.making import Desk, offer

# A prompt of 64 tokens and an answer of 16 on a worker that holds one request.
REQUEST_S = 0.001 * (5 + 64 + 15 * 10)


def busy(**limits: float | None) -> Desk:
    """A desk whose one worker holds the one request that it can."""
    return busy_with(**limits)[0]


def busy_with(**limits: float | None) -> tuple[Desk, Place]:
    desk = Desk(look_ahead=0, **limits)
    desk.hello(max_num_seqs=1)
    holder = desk.place("holder", tenant_id="holder")
    desk.run(holder)
    return desk, holder


def test_a_deadline_that_the_queue_cannot_keep_is_refused_at_once() -> None:
    """The caller hears at once, and when to come again; a later deadline may wait."""
    desk = busy()
    for number in range(10):
        desk.ask(f"r{number}")
    error = desk.refusal("hasty", deadline_at=desk.now + 5 * REQUEST_S).error
    assert error.reason is Reason.OVERLOADED
    assert error.retry_after_s is not None
    assert 2 * REQUEST_S <= error.retry_after_s <= 9 * REQUEST_S
    assert desk.ask("patient", deadline_at=desk.now + 20 * REQUEST_S)[1] == []


def test_a_light_tenant_does_not_wait_behind_a_heavy_ones_queue() -> None:
    """The wait that is predicted is that of fair turns, not of the whole queue."""
    desk = busy()
    for number in range(50):
        desk.ask(f"r{number}", tenant_id="heavy")
    assert (
        desk.refusal("more", tenant_id="heavy", deadline_at=desk.now + 6 * REQUEST_S).error.reason is Reason.OVERLOADED
    )
    assert desk.ask("light", tenant_id="light", deadline_at=desk.now + 6 * REQUEST_S)[1] == []


def test_a_deadline_that_no_worker_could_keep_is_refused_for_what_it_is() -> None:
    """Coming again would not help, so nothing says when."""
    error = busy().refusal(deadline_at=1_000.01).error
    assert error.reason is Reason.DEADLINE_IN_QUEUE
    assert error.retry_after_s is None


def test_interactive_requests_are_refused_rather_than_late() -> None:
    """A first token later than the limit is none; standard requests wait, unless a limit is set for them too."""
    desk = busy(admit_ttft_ms_interactive=900.0)
    answers = [desk.ask(f"r{number}", priority=Priority.INTERACTIVE)[1] for number in range(10)]
    refused = [each.error for found in answers for each in found if isinstance(each, Refuse)]
    assert 5 <= len(refused) <= 8
    assert all(error.reason is Reason.OVERLOADED and error.retry_after_s for error in refused)
    assert desk.ask("standard")[1] == []
    assert busy(admit_ttft_ms_interactive=None).ask(priority=Priority.INTERACTIVE)[1] == []


def test_an_idle_fleet_refuses_nothing_for_its_first_token() -> None:
    """A prompt that takes longer than the limit anyway is placed where nothing waits."""
    desk = Desk(admit_ttft_ms_interactive=900.0)
    desk.hello()
    assert isinstance(desk.place(offers=(offer(3000),), priority=Priority.INTERACTIVE), Place)


def test_batch_gives_way_in_a_full_queue() -> None:
    """Urgent requests take the places of the least urgent, last come first; those are told to come again."""
    desk = busy(max_queued=3)
    calls = [desk.ask(f"b{number}", priority=Priority.BATCH)[0] for number in range(3)]
    _, found = desk.ask("s", tenant_id="t2", priority=Priority.STANDARD)
    (refusal,) = [each for each in found if isinstance(each, Refuse)]
    assert (refusal.call, refusal.error.reason) == (calls[2], Reason.OVERLOADED)
    assert refusal.error.retry_after_s is not None
    _, found = desk.ask("i", tenant_id="t2", priority=Priority.INTERACTIVE)
    assert [each.call for each in found if isinstance(each, Refuse)] == [calls[1]]
    assert desk.brain.queue.counts() == {Priority.INTERACTIVE: 1, Priority.STANDARD: 1, Priority.BATCH: 1}
    assert desk.refusal("b", tenant_id="t1", priority=Priority.BATCH).error.reason is Reason.OVERLOADED


def test_a_tenant_with_fewer_waiting_takes_the_place_of_one_with_more() -> None:
    """One tenant cannot fill the queue for all others of its class."""
    desk = busy(max_queued=4)
    calls = [desk.ask(f"r{number}", tenant_id="heavy")[0] for number in range(4)]
    _, found = desk.ask("l1", tenant_id="light")
    assert [each.call for each in found if isinstance(each, Refuse)] == [calls[3]]
    _, found = desk.ask("l2", tenant_id="light")
    assert [each.call for each in found if isinstance(each, Refuse)] == [calls[2]]
    assert desk.refusal("l3", tenant_id="light").error.reason is Reason.OVERLOADED


def test_a_tenants_own_bound_spares_its_urgent_requests() -> None:
    """At its bound a tenant's batch gives way to what it asks for more urgently."""
    desk = busy(max_queued_per_tenant=2)
    desk.ask("b1", priority=Priority.BATCH)
    last, _ = desk.ask("b2", priority=Priority.BATCH)
    _, found = desk.ask("s1")
    assert [each.call for each in found if isinstance(each, Refuse)] == [last]
    assert desk.refusal("b3", priority=Priority.BATCH).error.reason is Reason.TENANT_CONCURRENCY


def test_the_class_has_its_own_bound() -> None:
    """Batch is refused at its bound, where other classes are not."""
    desk = busy(max_queued_batch=1)
    desk.ask("b1", priority=Priority.BATCH)
    assert desk.refusal("b2", priority=Priority.BATCH).error.reason is Reason.OVERLOADED
    assert desk.ask("s1")[1] == []


def test_what_waited_too_long_for_its_deadline_is_not_begun() -> None:
    """A first token that could not come in time is not computed: others could use the worker."""
    desk, holder = busy_with()
    call, _ = desk.ask("r1", deadline_at=desk.now + 1.0, offers=(offer(100, first_hash=9000),))
    desk.now += 0.95
    found = desk.run(holder, LeasePhase.FINISHED)
    assert [(each.call, each.error.reason) for each in found if isinstance(each, Refuse)] == [
        (call, Reason.DEADLINE_IN_QUEUE)
    ]
    assert len(desk.brain.book) == 0


def test_lengths_are_learned_with_their_spread() -> None:
    """A tenant new on a model is expected to be like the others there; certainty comes with observations."""
    lengths = OutputLengths(max_entries=10)
    assert lengths.expect("t1", "m", at_most=1000) == 128
    assert lengths.expect_short("t1", "m", at_most=1000) == 1
    for _ in range(60):
        lengths.learn("t1", "m", 50)
    assert lengths.expect("t2", "m", at_most=1000) == 50
    assert 40 <= lengths.expect_short("t1", "m", at_most=1000) <= 50
    assert lengths.expect("t1", "m", at_most=20) == 20


def test_a_refusal_stands_for_a_moment() -> None:
    """Who asks again at once for as much is refused without another look; for less, or later, it is looked at."""
    desk = busy(admit_ttft_ms_standard=500.0)
    answers = [desk.ask(f"r{number}")[1] for number in range(5)]
    first = next(each.error for found in answers for each in found if isinstance(each, Refuse))
    again = desk.refusal("again").error
    assert again is desk.refusal("and again").error
    assert again.reason is first.reason is Reason.OVERLOADED
    desk.now += 0.05
    assert desk.refusal("later").error is not again
