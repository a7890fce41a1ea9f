"""What can happen to the scheduler. `call` and `connection` are numbers that the shell gives out, never twice."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from services.scheduler.domain.budget import Budget, BudgetKey
from services.scheduler.domain.kv import Delta, SnapshotPart
from services.scheduler.domain.lease import LeaseState
from services.scheduler.domain.request import Request
from services.scheduler.domain.worker import Load, WorkerSpec


@dataclass(frozen=True, slots=True)
class PlaceRequested:
    """A caller asks for a placement, and waits."""

    call: int
    request: Request


@dataclass(frozen=True, slots=True)
class PlaceAbandoned:
    """A caller waits no longer."""

    call: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReleased:
    """A lease's holder is done with it.

    `aborted`: it did not let the answer end. `unused`: it never sent the ticket. An empty tenant is any.
    """

    lease_id: str
    tenant_id: str
    aborted: bool = False
    unused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHello:
    """A worker introduces itself on a new connection."""

    connection: int
    worker_id: str
    epoch: str
    endpoint: str
    spec: WorkerSpec
    leases: tuple[LeaseState, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A connection ended."""

    connection: int
    worker_id: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """The worker takes no more leases, and leaves when the running ones end."""


Report = Load | Delta | SnapshotPart | tuple[LeaseState, ...] | Leaving


@dataclass(frozen=True, slots=True)
class WorkerReported:
    """A connected worker said something."""

    connection: int
    worker_id: str
    report: Report


@dataclass(frozen=True, slots=True)
class DrainWanted:
    """An operator wants a worker to leave."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class ClockRead:
    """The wall clock shows `now` + `offset`."""

    offset: float


@dataclass(frozen=True, slots=True)
class BudgetsLoaded:
    """These are all budgets."""

    budgets: tuple[Budget, ...]


@dataclass(frozen=True, slots=True)
class SpendRead:
    """What the ledger says of a tenant's budgets on a day: their sums, and which leases have rows in them."""

    tenant_id: str
    day: dt.date
    sums: Mapping[BudgetKey, int]
    rows: tuple[str, ...]


BudgetStimulus = ClockRead | BudgetsLoaded | SpendRead
Stimulus = (
    PlaceRequested
    | PlaceAbandoned
    | LeaseReleased
    | WorkerHello
    | WorkerGone
    | WorkerReported
    | DrainWanted
    | Tick
    | BudgetStimulus
)
