"""Whether every lease that was granted has its row in the ledger, and which of those without one to close now.

A lease is left without a row when the scheduler crashes between its grant and its end, or before a record that it
meant to write is durable. Nobody else will write one then. But a worker's record may be on its way for long, and the
first record of a lease stays; so a lease is closed here only after everybody who could know better has had the time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.leases import LeaseBook

Position = tuple[float, str]
"""A place in the ledger's decisions: when one was recorded, in seconds since 1970, and its lease."""


class Standing(Enum):
    """What a scheduler knows of a lease that has no row."""

    HELD = "held"
    """It is live: its worker or the scheduler will close it."""
    ENDED = "ended"
    """It ended while this process ran: its record is in the worker's outbox or in the scheduler's."""
    IDLE = "idle"
    """Its worker is connected, and does not run it."""
    UNKNOWN = "unknown"
    """Its worker is not connected: it may still run the lease, unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmatched:
    """A decision whose lease has no row.

    `age_s` counts from when the decision reached the ledger; `grant` is a serialized downstack.scheduler.v1.LeaseGrant.
    """

    lease_id: str
    worker_id: str
    recorded_at: float
    age_s: float
    grant: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A part of a tenant's decisions, in the order of their positions: those without a row, and where the part ends."""

    unmatched: list[Unmatched]
    end: Position
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a lease without a row is left alone. No worker can begin to run it in that time unseen."""

    idle_s: float
    """Where its worker says that it does not run it."""
    unseen_s: float
    """Where its worker may run it, or has its record."""

    def wait_s(self, standing: Standing) -> float | None:
        """The wait for a lease of that standing; None: as long as it stays so."""
        match standing:
            case Standing.HELD:
                return None
            case Standing.IDLE:
                return self.idle_s
            case Standing.ENDED | Standing.UNKNOWN:
                return self.unseen_s


def standing_of(lease: Unmatched, *, book: LeaseBook, fleet: Fleet) -> Standing:
    """What book and fleet know of the lease."""
    if book.get(lease.lease_id) is not None:
        return Standing.HELD
    if book.ended(lease.lease_id):
        return Standing.ENDED
    worker = fleet.get(lease.worker_id)
    return Standing.UNKNOWN if worker is None or worker.connection is None else Standing.IDLE


def missing(found: Iterable[Unmatched], standing: Callable[[Unmatched], Standing]) -> list[tuple[Unmatched, Standing]]:
    """The leases that should have a row: all but the live ones."""
    judged = ((lease, standing(lease)) for lease in found)
    return [(lease, known) for lease, known in judged if known is not Standing.HELD]


def overdue(found: Iterable[tuple[Unmatched, Standing]], *, patience: Patience, watched_s: float) -> list[Unmatched]:
    """The leases to close now.

    `watched_s` is how long the scheduler has been watching without a break; what it could not see does not count as
    waiting.
    """
    due = []
    for lease, known in found:
        wait_s = patience.wait_s(known)
        if wait_s is not None and min(lease.age_s, watched_s) >= wait_s:
            due.append(lease)
    return due
