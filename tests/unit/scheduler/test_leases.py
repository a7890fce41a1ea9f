"""Leases: granted once, ended once, and accounted for whoever dies."""

import dataclasses
from typing import Any

import pytest

from services.kit.errors import Reason
from services.scheduler.domain.instructions import (
    Acknowledge,
    Cancel,
    Close,
    Instruction,
    Place,
    RecordUsage,
    RecordWorker,
    Refuse,
    Released,
)
from services.scheduler.domain.lease import Ending, LeasePhase, LeaseState, Usage
from services.scheduler.domain.worker import WorkerPhase
from tests.unit.scheduler.making import PRICE, Desk

NEGATIVE = dataclasses.replace(PRICE, input_nano=-1)


def of(kind: type[Any], found: list[Instruction]) -> list[Any]:
    return [each for each in found if isinstance(each, kind)]


@pytest.fixture
def desk() -> Desk:
    desk = Desk(ticket_ttl_s=30.0, start_grace_s=5.0, lost_grace_s=10.0, lease_max_s=600.0)
    desk.hello()
    return desk


def test_a_placement_says_all_that_the_worker_needs(desk: Desk) -> None:
    """The grant names worker, epoch, price, bounds and lives; the decision explains it."""
    placed = desk.place(labels={"team": "a"}, max_output_tokens=10_000)
    grant, decision = placed.grant, placed.decision
    assert (grant.worker_id, grant.worker_epoch, placed.endpoint) == ("w1", "e1", "w1:1")
    assert grant.expires_at == desk.now + 30
    assert grant.max_output_tokens == 4096 - 64, "the answer ends where the context does"
    assert grant.labels == {"team": "a"}
    assert decision.lease_id == grant.lease_id
    assert decision.policy.startswith("worth/")
    assert decision.reason == (
        "w1 holds none of the prompt, runs 0 requests, and should give the first token in 69 ms; it is the only worker."
    )


def test_finished_leases_are_acknowledged_and_forgotten(desk: Desk) -> None:
    """A finished report frees the place; repeating it is acknowledged again and changes nothing."""
    placed = desk.place()
    desk.run(placed)
    desk.run(placed, LeasePhase.DECODING, Usage(output_total=1))
    found = desk.run(placed, LeasePhase.FINISHED, Usage(output_total=20))
    assert of(Acknowledge, found) == [Acknowledge(desk.connections["w1"], (placed.grant.lease_id,))]
    assert len(desk.brain.book) == 0
    assert of(Acknowledge, desk.run(placed, LeasePhase.FINISHED))
    assert of(RecordUsage, desk.after(10_000)) == [], "the worker's own record is the only one"


def test_release_frees_the_place_at_once(desk: Desk) -> None:
    """After a release the next request fits, and a second release says that there was nothing left."""
    first = [desk.place(f"r{n}") for n in range(6)]
    call, waiting = desk.ask("late")
    assert waiting == []
    desk.run(first[0])
    found = desk.release(first[0])
    assert of(Released, found) == [Released(released=True)]
    assert [placed.call for placed in of(Place, found)] == [call]
    assert of(Released, desk.release(first[0])) == [Released(released=False)]


def test_release_by_another_tenant_does_nothing(desk: Desk) -> None:
    """A lease can be released for its own tenant only."""
    placed = desk.place()
    assert of(Released, desk.release(placed, tenant_id="t2")) == [Released(released=False)]
    assert desk.brain.book.occupancy("w1").requests == 1
    assert of(Released, desk.release(placed, lease_id="lse_none")) == [Released(released=False)]


def test_an_aborted_release_cancels_the_running_lease(desk: Desk) -> None:
    """A caller that goes away in mid-answer frees the engine too, not the books alone."""
    placed = desk.place()
    desk.run(placed)
    found = desk.release(placed, aborted=True)
    assert of(Cancel, found) == [Cancel(desk.connections["w1"], (placed.grant.lease_id,))]


def test_an_unused_ticket_ends_in_an_unused_record(desk: Desk) -> None:
    """A lease that nobody started is closed after its ticket's life and a grace, once."""
    placed = desk.place()
    assert of(RecordUsage, desk.after(34.9)) == []
    (record,) = of(RecordUsage, desk.after(0.2))
    assert (record.lease.grant.lease_id, record.ending) == (placed.grant.lease_id, Ending.UNUSED)
    assert of(RecordUsage, desk.after(100)) == []
    assert of(Cancel, desk.run(placed)), "a ticket used after that runs in vain"


def test_a_ticket_given_back_is_closed_at_once(desk: Desk) -> None:
    """A caller that says it never used the ticket ends the lease, with its record."""
    placed = desk.place()
    (record,) = of(RecordUsage, desk.release(placed, unused=True))
    assert record.ending is Ending.UNUSED
    assert len(desk.brain.book) == 0


def test_a_lost_worker_may_come_back(desk: Desk) -> None:
    """Within the grace nothing is lost: the worker names its leases again and they go on."""
    placed = desk.place()
    desk.run(placed)
    (step,) = of(RecordWorker, desk.gone())
    assert step.phase is WorkerPhase.LOST
    assert of(RecordUsage, desk.after(9)) == []
    desk.hello(leases=[LeaseState(lease_id=placed.grant.lease_id, phase=LeasePhase.DECODING)])
    assert of(RecordUsage, desk.after(60)) == []
    assert desk.brain.book.occupancy("w1").requests == 1


def test_a_lost_workers_leases_get_their_last_record(desk: Desk) -> None:
    """After the grace a running lease is closed with what the worker reported last, one not started as unused."""
    running, idle = desk.place("r1"), desk.place("r2")
    desk.run(running, LeasePhase.DECODING, Usage(input_total=64, output_total=7))
    desk.gone()
    records = {record.lease.grant.lease_id: record for record in of(RecordUsage, desk.after(10))}
    assert records[running.grant.lease_id].ending is Ending.LOST
    assert records[running.grant.lease_id].lease.usage == Usage(input_total=64, output_total=7)
    assert records[idle.grant.lease_id].ending is Ending.UNUSED
    assert len(desk.brain.book) == 0


def test_a_returning_zombie_is_fenced(desk: Desk) -> None:
    """A worker that comes back to a lease that was given up is told to end it."""
    placed = desk.place()
    desk.run(placed)
    desk.gone()
    desk.after(10)
    state = LeaseState(lease_id=placed.grant.lease_id, phase=LeasePhase.DECODING, grant=placed.grant)
    assert [order.lease_ids for order in of(Cancel, desk.hello(leases=[state]))] == [(placed.grant.lease_id,)]
    assert len(desk.brain.book) == 0


def test_a_new_epoch_voids_the_old_leases(desk: Desk) -> None:
    """A restarted worker starts with an empty batch; the old records wait for its outbox to be first."""
    placed = desk.place()
    desk.run(placed)
    desk.hello(epoch="e2")
    assert desk.brain.book.occupancy("w1").requests == 0
    assert of(RecordUsage, desk.after(9)) == []
    (record,) = of(RecordUsage, desk.after(1))
    assert record.ending is Ending.LOST
    stale = LeaseState(lease_id="lse_x", phase=LeasePhase.STARTED, grant=placed.grant)
    assert of(Cancel, desk.say((stale,))), "a lease of the old epoch is not adopted"


def test_a_lease_that_the_worker_does_not_name_is_lost(desk: Desk) -> None:
    """A worker that reconnects without a lease it ran has a grace to report its end."""
    placed, kept = desk.place("r1"), desk.place("r2")
    desk.run(placed)
    desk.gone()
    desk.hello(leases=[])
    assert desk.brain.book.occupancy("w1").requests == 1, "the ticket that was not used yet is good again"
    desk.after(9)
    assert of(Acknowledge, desk.run(placed, LeasePhase.FINISHED))
    assert [each.lease.grant.lease_id for each in of(RecordUsage, desk.after(30))] == [kept.grant.lease_id]


def test_a_restarted_scheduler_rebuilds_its_leases(desk: Desk) -> None:
    """A new scheduler learns leases and load from the hello, and does not place the same attempt again."""
    placed = desk.place()
    fresh = Desk()
    state = LeaseState(lease_id=placed.grant.lease_id, phase=LeasePhase.DECODING, grant=placed.grant)
    fresh.hello(leases=[state])
    assert fresh.brain.book.occupancy("w1").requests == 1
    assert fresh.refusal().error.reason is Reason.CONFLICTING_UPDATE
    fresh.run(placed, LeasePhase.FINISHED)
    assert len(fresh.brain.book) == 0


def test_counts_that_cannot_be_are_not_believed(desk: Desk) -> None:
    """A report of more tokens than the grant allows leaves the last good one."""
    placed = desk.place()
    desk.run(placed, LeasePhase.DECODING, Usage(input_total=64, output_total=3))
    for usage in (Usage(output_total=2**32 - 1), Usage(input_total=65), Usage(input_cached=65)):
        desk.run(placed, LeasePhase.DECODING, usage)
    desk.gone()
    (record,) = of(RecordUsage, desk.after(10))
    assert record.lease.usage == Usage(input_total=64, output_total=3)


@pytest.mark.parametrize("changed", [{"prompt_tokens": 2**32 - 1}, {"prompt_tokens": 0}, {"price": NEGATIVE}])
def test_an_impossible_grant_is_not_adopted(desk: Desk, changed: dict[str, Any]) -> None:
    """A restarted scheduler does not believe a grant that none can have made."""
    grant = dataclasses.replace(desk.place().grant, **changed)
    fresh = Desk()
    fresh.hello(leases=[LeaseState(lease_id=grant.lease_id, phase=LeasePhase.STARTED, grant=grant)])
    assert len(fresh.brain.book) == 0


@pytest.mark.parametrize("changed", [{"worker_id": "w9"}, {"worker_epoch": "e9"}, {"lease_id": "lse_9"}])
def test_a_grant_that_is_not_the_workers_is_not_adopted(desk: Desk, changed: dict[str, str]) -> None:
    """A worker cannot bring in a lease of another worker or start."""
    grant = dataclasses.replace(desk.place().grant, request_id="other", **changed)
    fresh = Desk()
    fresh.hello(leases=[LeaseState(lease_id="lse_0001", phase=LeasePhase.STARTED, grant=grant)])
    assert len(fresh.brain.book) == 0


def test_a_repeated_call_gets_the_same_lease(desk: Desk) -> None:
    """A retry of a placed attempt is answered with the same lease while nobody used it, and refused after."""
    first = desk.place()
    again = desk.place()
    assert (again.again, again.grant) == (True, first.grant)
    assert len(desk.brain.book) == 1
    desk.run(first)
    assert desk.refusal().error.reason is Reason.CONFLICTING_UPDATE
    assert desk.place(attempt=2).grant.lease_id != first.grant.lease_id


def test_a_lease_has_a_longest_life(desk: Desk) -> None:
    """A lease that never ends is closed and cancelled at the bound."""
    placed = desk.place()
    desk.run(placed)
    found = desk.after(600)
    assert [record.ending for record in of(RecordUsage, found)] == [Ending.LOST]
    assert of(Cancel, found)


def test_only_the_newest_connection_speaks(desk: Desk) -> None:
    """A second stream of a worker closes the first, and what the first still says counts for nothing."""
    placed = desk.place()
    old = desk.connections["w1"]
    (closed,) = of(Close, desk.hello(leases=[]))
    assert (closed.connection, closed.error.reason) == (old, Reason.STALE_EPOCH)
    new, desk.connections["w1"] = desk.connections["w1"], old
    assert desk.run(placed, LeasePhase.FINISHED) == []
    assert desk.gone() == []
    desk.connections["w1"] = new
    assert desk.brain.fleet.get("w1") is not None
    assert not of(Refuse, desk.ask("r9")[1])
