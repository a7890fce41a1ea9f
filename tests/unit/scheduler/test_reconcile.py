"""Comparing the ledger with itself: which leases without a row are closed, and when."""

from typing import Any

import pytest

from services.kit.clock import ManualClock
from services.kit.errors import DownstackError
from services.scheduler.adapters.fake_gaps import FakeGaps
from services.scheduler.adapters.fake_journal import FakeJournal
from services.scheduler.adapters.meter import SilentMeter
from services.scheduler.domain.lease import LeasePhase
from services.scheduler.domain.reconcile import Patience, Standing, Unmatched, missing, overdue, standing_of
from services.scheduler.reconciler import ReconcileLimits, Reconciler
from tests.unit.scheduler.making import Desk

NOW = 1_800_000_000.0
PATIENCE = Patience(idle_s=300.0, unseen_s=7500.0)


def unmatched(lease_id: str = "lse_1", *, age_s: float = 400.0, **changed: Any) -> Unmatched:
    fields: dict[str, Any] = {"worker_id": "w1", "recorded_at": NOW - age_s, "grant": b"grant"}
    return Unmatched(lease_id=lease_id, age_s=age_s, **{**fields, **changed})


class Gauge(SilentMeter):
    """Keeps what was counted."""

    def __init__(self) -> None:
        self.made = 0
        self.seen: list[int] = []

    def reconciled(self) -> None:
        self.made += 1

    def unmatched(self, leases: int) -> None:
        self.seen.append(leases)


class Bench:
    """A reconciler whose world is in memory. What is not in `known` is idle."""

    def __init__(self, **limits: Any) -> None:
        self.gaps, self.journal, self.gauge, self.clock = FakeGaps(), FakeJournal(), Gauge(), ManualClock(now=NOW)
        self.known: dict[str, Standing] = {}
        self.reconciler = Reconciler(
            self.gaps,
            journal=self.journal,
            meter=self.gauge,
            standing=lambda lease: self.known.get(lease.lease_id, Standing.IDLE),
            clock=self.clock,
            limits=ReconcileLimits(**{"patience": PATIENCE, **limits}),
        )

    @property
    def closed(self) -> list[str]:
        return [lease.lease_id for lease in self.journal.closures]


@pytest.mark.parametrize(
    ("standing", "age_s", "watched_s", "closed"),
    [
        (Standing.IDLE, 299, 9000, 0),
        (Standing.IDLE, 300, 300, 1),
        (Standing.IDLE, 9000, 299, 0),
        (Standing.ENDED, 7499, 9000, 0),
        (Standing.ENDED, 7500, 7500, 1),
        (Standing.UNKNOWN, 7499, 9000, 0),
        (Standing.UNKNOWN, 9000, 7499, 0),
        (Standing.UNKNOWN, 7500, 7500, 1),
        (Standing.HELD, 90_000, 90_000, 0),
    ],
)
def test_who_could_know_better_has_had_the_time(
    standing: Standing, age_s: float, watched_s: float, closed: int
) -> None:
    """A lease waits by what is known of it, and what the scheduler could not see is no waiting."""
    lease = unmatched(age_s=age_s)
    found = overdue([(lease, standing)], patience=PATIENCE, watched_s=watched_s)
    assert found == [lease] * closed
    assert missing([lease], lambda _: standing) == ([] if standing is Standing.HELD else [(lease, standing)])


def test_what_a_scheduler_knows_of_a_lease() -> None:
    """Live, ended here, not run by its connected worker, or unseen because the worker is away."""
    desk = Desk(ticket_ttl_s=30.0, lost_grace_s=10.0, forget_worker_s=60.0)

    def standing(lease_id: str, worker_id: str = "w1") -> Standing:
        lease = unmatched(lease_id, worker_id=worker_id)
        return standing_of(lease, book=desk.brain.book, fleet=desk.brain.fleet)

    assert standing("lse_of_an_earlier_process") is Standing.UNKNOWN, "its worker has not come yet"
    desk.hello()
    assert standing("lse_of_an_earlier_process") is Standing.IDLE
    placed = desk.place()
    assert standing(placed.grant.lease_id) is Standing.HELD
    desk.run(placed, LeasePhase.STARTED)
    assert standing(placed.grant.lease_id) is Standing.HELD
    desk.run(placed, LeasePhase.FINISHED)
    assert standing(placed.grant.lease_id) is Standing.ENDED
    desk.gone()
    assert standing("lse_of_an_earlier_process") is Standing.UNKNOWN
    assert standing("lse_1", worker_id="w2") is Standing.UNKNOWN


async def test_a_lease_is_closed_once() -> None:
    """Its record is written in the first comparison where it is due, and not again while its row is awaited."""
    bench = Bench()
    bench.gaps.open = {"t1": [unmatched("lse_1"), unmatched("lse_2")], "t2": [unmatched("lse_3")]}
    bench.known = {"lse_2": Standing.HELD}
    assert await bench.reconciler.compare() == 2
    assert bench.closed == [], "the scheduler has only begun to watch"
    bench.clock.advance(300)
    for _ in range(2):
        assert await bench.reconciler.compare() == 2
        assert bench.closed == ["lse_1", "lse_3"]
    bench.gaps.open = {"t1": [], "t2": []}
    assert await bench.reconciler.compare() == 0
    assert (bench.gauge.made, bench.gauge.seen) == (2, [2, 2, 2, 0])


async def test_a_blocked_way_to_the_ledger_stops_the_waiting() -> None:
    """While records wait for Kafka the workers' do too: the time begins anew when the way is free."""
    bench = Bench(blind_s=150.0)
    bench.gaps.open = {"t1": [unmatched()]}
    bench.clock.advance(1000)
    bench.journal.backlog = 150.0
    assert await bench.reconciler.compare() == 1
    bench.journal.backlog = 0.0
    bench.clock.advance(299)
    await bench.reconciler.compare()
    assert bench.closed == []
    bench.clock.advance(1)
    await bench.reconciler.compare()
    assert bench.closed == ["lse_1"]


async def test_a_full_journal_loses_nothing() -> None:
    """What could not be written is written by a later comparison."""
    bench = Bench()
    bench.gaps.open = {"t1": [unmatched("lse_1"), unmatched("lse_2")]}
    bench.clock.advance(300)
    bench.journal.full = True
    with pytest.raises(DownstackError, match="full"):
        await bench.reconciler.compare()
    bench.journal.full = False
    await bench.reconciler.compare()
    assert bench.closed == ["lse_1", "lse_2"]
    assert bench.gauge.made == 2


async def test_awaited_rows_are_bounded() -> None:
    """No more records than `max_pending` are on their way; the others follow as rows come in."""
    bench = Bench(max_pending=2, part_size=2)
    leases = [unmatched(f"lse_{n}") for n in range(5)]
    bench.gaps.open = {"t1": leases}
    bench.clock.advance(300)
    assert await bench.reconciler.compare() == 5
    assert bench.closed == ["lse_0", "lse_1"]
    bench.gaps.open = {"t1": leases[1:]}
    await bench.reconciler.compare()
    await bench.reconciler.compare()
    assert bench.closed == ["lse_0", "lse_1", "lse_2"]


async def test_matched_decisions_are_not_looked_at_again() -> None:
    """A comparison begins a little before the oldest decision that had no row in the last one."""
    bench = Bench(lookback_s=10_000.0)
    bench.gaps.open = {"t1": [unmatched("lse_1", age_s=500.0), unmatched("lse_2", age_s=400.0)]}
    await bench.reconciler.compare()
    await bench.reconciler.compare()
    bench.gaps.open = {"t1": []}
    await bench.reconciler.compare()
    assert [position[0] - NOW for position in bench.gaps.asked] == [-10_000.0, -560.0, -560.0]
