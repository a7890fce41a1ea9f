"""Several schedulers over one fleet, each of which hears of the others' leases from the workers."""

import datetime as dt
import itertools
from collections.abc import Sequence

import pytest

from services.kit.errors import Reason
from services.scheduler.domain.budget import Budget, BudgetKey, Period
from services.scheduler.domain.fairness import OUTPUT_WEIGHT, ContestKey
from services.scheduler.domain.instructions import Cancel, Instruction, Place, RecordUsage
from services.scheduler.domain.lease import Ending, LeasePhase, LeaseState, Usage
from services.scheduler.domain.request import Priority
from services.scheduler.domain.stimuli import BudgetsLoaded, SpendRead
from tests.unit.scheduler.making import PRICE, Desk, offer
from tests.unit.scheduler.test_fairness import every, in_order, jain, service
from tests.unit.scheduler.toy import SEATS, Arrival, Toy

CONTEST = ContestKey(Priority.STANDARD, ("m",))


@pytest.fixture
def desks() -> tuple[Desk, Desk]:
    """Two schedulers, and two workers connected to both."""
    pair = Desk(name="a_"), Desk(name="b_")
    for desk, worker_id in itertools.product(pair, ("w1", "w2")):
        desk.hello(worker_id)
    return pair


def tell(
    desks: Sequence[Desk], placed: Place, phase: LeasePhase = LeasePhase.STARTED, usage: Usage | None = None
) -> list[list[Instruction]]:
    """Let the worker of a placement report its lease to all."""
    grant = placed.grant
    state = LeaseState(lease_id=grant.lease_id, phase=phase, usage=usage, grant=grant)
    return [desk.say((state,), grant.worker_id) for desk in desks]


def test_each_counts_the_leases_of_the_other(desks: tuple[Desk, Desk]) -> None:
    """Places, tokens and time of a worker, and the tenant's service, are the same in both books."""
    here, there = desks
    placed = here.place(offers=(offer(64, output_tokens=40),), tenant_id="busy")
    tell(desks, placed)
    worker_id = placed.grant.worker_id
    assert here.brain.book.occupancy(worker_id) == there.brain.book.occupancy(worker_id)
    assert there.brain.fair.standing(CONTEST, "busy") == 64 + OUTPUT_WEIGHT * 40
    tell(desks, placed, LeasePhase.FINISHED, Usage(input_cached=16, output_total=5))
    for desk in desks:
        assert desk.brain.fair.standing(CONTEST, "busy") == 48 + OUTPUT_WEIGHT * 5
        assert not len(desk.brain.book)


def test_a_worker_that_another_has_filled_is_full(desks: tuple[Desk, Desk]) -> None:
    """Nobody is placed on a batch that the other scheduler's leases fill."""
    here, there = desks
    for number in range(4 * (SEATS + here.limits.look_ahead)):
        _, found = here.ask(f"req_{number}", offers=(offer(16, first_hash=1000 * number, output_tokens=4),))
        for placed in found:
            if isinstance(placed, Place):
                tell(desks, placed, LeasePhase.DECODING)
    assert len(here.brain.queue)
    _, found = there.ask("one_more")
    assert not found
    assert len(there.brain.queue) == 1


def test_what_another_reserved_counts_against_a_budget(desks: tuple[Desk, Desk]) -> None:
    here, there = desks
    limit = (64 * PRICE.input_nano + 64 * PRICE.output_nano) * 3 // 2
    key = BudgetKey("t1", "", "", Period.DAY, soft=False)
    for desk in desks:
        desk.apply(BudgetsLoaded((Budget(key, limit, "USD"),)))
        desk.apply(SpendRead("t1", dt.date(1970, 1, 1), {key: 0}, ()))
    placed = here.place()
    tell(desks, placed)
    assert there.refusal("req_2").error.reason is Reason.QUOTA_EXCEEDED


def test_an_attempt_that_two_have_granted_runs_once(desks: tuple[Desk, Desk]) -> None:
    """The answer of the first got lost, so the router asked the other: what it then starts is not cancelled."""
    here, there = desks
    lost, used = here.place(), there.place()
    assert lost.grant.lease_id != used.grant.lease_id
    assert not any(isinstance(each, Cancel) for found in tell(desks, used) for each in found)
    assert here.brain.book.of_attempt("t1", "req_1", 1) is here.brain.book.get(used.grant.lease_id)
    late = tell(desks, lost)
    assert all(any(isinstance(each, Cancel) for each in found) for found in late), "a second run of the attempt ends"
    for found in tell(desks, used, LeasePhase.FINISHED):
        assert not any(isinstance(each, RecordUsage) for each in found)


def test_a_lease_that_nobody_heard_of_ends_unused(desks: tuple[Desk, Desk]) -> None:
    """Its scheduler writes its one record, and holds no place for it from when the other lease began."""
    here, there = desks
    lost, used = here.place(), there.place()
    tell(desks, used)
    held = [here.brain.book.occupancy(worker_id).requests for worker_id in ("w1", "w2")]
    assert sum(held) == 1
    tell(desks, used, LeasePhase.FINISHED)
    limits = here.limits
    (record,) = [
        each for each in here.after(limits.ticket_ttl_s + limits.start_grace_s) if isinstance(each, RecordUsage)
    ]
    assert (record.lease.grant.lease_id, record.ending) == (lost.grant.lease_id, Ending.UNUSED)


@pytest.mark.parametrize("schedulers", [2, 4])
def test_backlogged_equals_get_equal_service_from_all_together(schedulers: int) -> None:
    """Five tenants with requests of all sizes, which wait at every scheduler."""
    shapes = [(32, 4), (64, 16), (400, 8), (16, 60), (1000, 1)]
    floods = [
        every(f"t{number}", 0.2, until=120, prompt=prompt, output=output)
        for number, (prompt, output) in enumerate(shapes)
    ]
    fates = Toy(workers=2, schedulers=schedulers).run(in_order(*floods), until=120)
    served = service(fates, since=20, until=110)
    assert jain([float(served[f"t{number}"]) for number in range(5)]) >= 0.95


@pytest.mark.parametrize("schedulers", [1, 2, 4])
def test_counters_of_those_who_wait_everywhere_stay_together(schedulers: int) -> None:
    """They differ by a quantum, a request, and what the others place before this one hears of it."""
    quantum, workers, shapes = 200.0, 2, {"a": (64, 16), "b": (200, 8), "c": (16, 40)}
    toy = Toy(workers=workers, schedulers=schedulers, fair_quantum_tokens=quantum)
    arrivals = [
        Arrival(at=0.0, tenant=tenant, prompt=prompt, output=output)
        for _ in range(60 * schedulers)
        for tenant, (prompt, output) in shapes.items()
    ]
    most = max(prompt + OUTPUT_WEIGHT * output for prompt, output in shapes.values())
    # Of each worker one place comes free before the others hear who has taken the last one.
    unheard = (schedulers - 1) * workers * most
    widest = 0.0
    for until in range(40):
        toy.run(arrivals if not until else [], until=until / 10)
        for desk in toy.desks:
            assert {lane.tenant_id for lane in desk.brain.queue.lanes()} == set(shapes)
            standings = [desk.brain.fair.standing(CONTEST, tenant) for tenant in shapes]
            widest = max(widest, max(standings) - min(standings))
    assert widest <= quantum + most + unheard
