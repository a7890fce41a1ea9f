"""The lease book: what was granted, who runs it, and which leases the scheduler must close itself.

A lease ends in one of three ways: its worker reports it finished (the usage record is then in the worker's outbox);
nobody used its ticket in time (UNUSED); or the worker that had it is gone (LOST). The last two are `due`, and the
scheduler writes their records.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from services.scheduler.domain.budget import reserved, used
from services.scheduler.domain.budgets import Budgets
from services.scheduler.domain.lease import NOTHING, Ending, Grant, Lease, LeasePhase, LeaseState, Occupancy
from services.scheduler.domain.limits import Limits

_ORDER = {LeasePhase.GRANTED: 0, LeasePhase.STARTED: 1, LeasePhase.DECODING: 2, LeasePhase.FINISHED: 3}


class Report(Enum):
    """What a worker's report of a lease amounted to."""

    UPDATED = "updated"
    ADOPTED = "adopted"
    FINISHED = "finished"
    FENCED = "fenced"
    """It runs a lease that is void: not its own, of another start, or closed. It must be cancelled."""
    UNKNOWN = "unknown"
    """Nothing is known of the lease, and the report does not say enough to learn it."""


@dataclass(frozen=True, slots=True)
class Due:
    """A lease that the scheduler must close."""

    lease: Lease
    ending: Ending


class LeaseBook:
    """All live leases, and the ids of those that ended not long ago.

    One request's attempt runs once. Two schedulers may have granted it, as the answer of the first got lost: the lease
    that is started stands for it, the other one can only end.

    Budgets count each lease as long as it is in the book, and what it cost when it leaves.
    `changed` names the workers whose occupancy changed; who renews what it keeps of them empties it.
    """

    def __init__(self, limits: Limits, budgets: Budgets) -> None:
        self._limits = limits
        self._budgets = budgets
        self.changed: set[str] = set()
        self._due_at = math.inf  # no lease is due earlier
        self._leases: dict[str, Lease] = {}
        self._by_attempt: dict[tuple[str, str, int], str] = {}
        self._by_worker: dict[str, set[str]] = {}
        self._occupied: dict[str, Occupancy] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def get(self, lease_id: str) -> Lease | None:
        return self._leases.get(lease_id)

    def of_attempt(self, tenant_id: str, request_id: str, attempt: int) -> Lease | None:
        lease_id = self._by_attempt.get((tenant_id, request_id, attempt))
        return self._leases[lease_id] if lease_id is not None else None

    def of_worker(self, worker_id: str) -> list[Lease]:
        return [self._leases[lease_id] for lease_id in sorted(self._by_worker.get(worker_id, ()))]

    def count_of(self, worker_id: str) -> int:
        return len(self._by_worker.get(worker_id, ()))

    def occupancy(self, worker_id: str) -> Occupancy:
        return self._occupied.get(worker_id, NOTHING)

    def ended(self, lease_id: str) -> bool:
        """Whether the lease ended not long ago."""
        return lease_id in self._ended

    def grant(self, grant: Grant) -> Lease:
        """Enter a new lease."""
        return self._enter(Lease(grant=grant))

    def _enter(self, lease: Lease) -> Lease:
        grant = lease.grant
        assert grant.lease_id not in self._leases
        self._leases[grant.lease_id] = lease
        self._by_attempt[_attempt_of(grant)] = grant.lease_id
        self._by_worker.setdefault(grant.worker_id, set()).add(grant.lease_id)
        self._recount(lease)
        self._budgets.reserve(grant.lease_id, reserved(grant))
        return lease

    def release(self, lease_id: str) -> Lease | None:
        """Free what the lease takes. None: it was released or had ended already."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.released:
            return None
        lease.released = True
        self._recount(lease)
        return lease

    def report(self, state: LeaseState, *, worker_id: str, epoch: str) -> tuple[Report, Lease | None]:
        """Take a worker's report of one lease. A finished lease leaves the book."""
        lease = self._leases.get(state.lease_id)
        if lease is None:
            return self._report_unknown(state, worker_id=worker_id, epoch=epoch)
        if (lease.grant.worker_id, lease.grant.worker_epoch) != (worker_id, epoch):
            return Report.FENCED, None
        if state.usage is not None and lease.grant.allows(state.usage):
            lease.usage = state.usage
        lease.orphaned_at = None
        if _ORDER[state.phase] > _ORDER[lease.phase]:
            lease.phase = state.phase
        self._recount(lease)
        if lease.phase is not LeasePhase.FINISHED and self._by_attempt.get(_attempt_of(lease.grant)) != state.lease_id:
            return Report.FENCED, None
        if lease.phase is LeasePhase.FINISHED:
            self.end(lease)
            return Report.FINISHED, lease
        return Report.UPDATED, lease

    def _report_unknown(self, state: LeaseState, *, worker_id: str, epoch: str) -> tuple[Report, Lease | None]:
        if state.phase is LeasePhase.FINISHED:
            self._remember(state.lease_id)
            return Report.FINISHED, None
        if state.lease_id in self._ended:
            return Report.FENCED, None
        grant = state.grant
        if grant is None or not grant.plausible(max_tokens=self._limits.max_prompt_tokens):
            return Report.UNKNOWN, None
        if grant.lease_id != state.lease_id or (grant.worker_id, grant.worker_epoch) != (worker_id, epoch):
            return Report.FENCED, None
        rival = self.of_attempt(*_attempt_of(grant))
        if rival is not None and rival.phase is not LeasePhase.GRANTED:
            return Report.FENCED, None
        if rival is not None:
            self.release(rival.grant.lease_id)
        usage = state.usage if state.usage is not None and grant.allows(state.usage) else None
        lease = Lease(grant=grant, phase=state.phase, usage=usage)
        return Report.ADOPTED, self._enter(lease)

    def orphan(self, lease: Lease, *, now: float) -> None:
        """Nobody vouches for the lease any more; it is due after the grace unless its worker names it again."""
        if lease.orphaned_at is None:
            lease.orphaned_at = now
            self._recount(lease)

    def vouch(self, lease: Lease) -> None:
        """The lease's worker is back, and the lease was not used yet: its ticket is good again."""
        lease.orphaned_at = None
        self._recount(lease)

    def due(self, now: float) -> list[Due]:
        """The leases that the scheduler must close now, and how."""
        if now < self._due_at:
            return []
        ends = [(lease, *self._ending(lease)) for lease in self._leases.values()]
        self._due_at = min((at for _, at, _ in ends if now < at), default=math.inf)
        found = [Due(lease, ending) for lease, at, ending in ends if at <= now]
        if found:
            # Until they are closed, they are due at every look.
            self._due_at = now
        return found

    def _ending(self, lease: Lease) -> tuple[float, Ending]:
        """When the scheduler must close a lease if nothing more is heard of it, and how."""
        used = lease.phase is not LeasePhase.GRANTED
        if lease.orphaned_at is not None:
            # The grace lets a restarted worker's outbox deliver the worker's own record first.
            return lease.orphaned_at + self._limits.lost_grace_s, Ending.LOST if used else Ending.UNUSED
        if used:
            return lease.grant.granted_at + self._limits.lease_max_s, Ending.LOST
        return lease.grant.expires_at + self._limits.start_grace_s, Ending.UNUSED

    def end(self, lease: Lease) -> None:
        """Take the lease out of the book."""
        grant = lease.grant
        self._uncount(lease)
        self._budgets.settle(grant.lease_id, used(grant, lease.usage))
        del self._leases[grant.lease_id]
        if self._by_attempt.get(_attempt_of(grant)) == grant.lease_id:
            del self._by_attempt[_attempt_of(grant)]
        held = self._by_worker[grant.worker_id]
        held.remove(grant.lease_id)
        if not held:
            del self._by_worker[grant.worker_id]
            self._occupied.pop(grant.worker_id, None)
        self._remember(grant.lease_id)

    def _remember(self, lease_id: str) -> None:
        self._ended[lease_id] = None
        self._ended.move_to_end(lease_id)
        if len(self._ended) > self._limits.max_ended_leases:
            self._ended.popitem(last=False)

    def _recount(self, lease: Lease) -> None:
        self._uncount(lease)
        self._due_at = min(self._due_at, self._ending(lease)[0])
        lease.counted = lease.occupancy()
        self._occupied[lease.grant.worker_id] = self.occupancy(lease.grant.worker_id).plus(lease.counted)

    def _uncount(self, lease: Lease) -> None:
        self.changed.add(lease.grant.worker_id)
        self._occupied[lease.grant.worker_id] = self.occupancy(lease.grant.worker_id).minus(lease.counted)
        lease.counted = NOTHING

    def validate(self) -> None:
        """Check the invariants: every table agrees with the leases."""
        by_worker: dict[str, set[str]] = {}
        occupied: dict[str, Occupancy] = {}
        for lease_id, lease in self._leases.items():
            grant = lease.grant
            assert grant.lease_id == lease_id
            assert lease_id not in self._ended
            assert lease.phase is not LeasePhase.FINISHED
            standing = self._by_attempt.get(_attempt_of(grant), lease_id)
            assert standing == lease_id or lease.released
            by_worker.setdefault(grant.worker_id, set()).add(lease_id)
            occupied[grant.worker_id] = occupied.get(grant.worker_id, NOTHING).plus(lease.occupancy())
        assert by_worker == self._by_worker
        assert occupied == self._occupied
        assert all(_attempt_of(self._leases[lease_id].grant) == each for each, lease_id in self._by_attempt.items())
        assert len(self._ended) <= self._limits.max_ended_leases
        assert all(self._due_at <= self._ending(lease)[0] for lease in self._leases.values())


def _attempt_of(grant: Grant) -> tuple[str, str, int]:
    return (grant.tenant_id, grant.request_id, grant.attempt)
