"""What can happen to the scheduler. `call` and `connection` are numbers that the shell gives out, never twice."""

from dataclasses import dataclass

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


Stimulus = (
    PlaceRequested | PlaceAbandoned | LeaseReleased | WorkerHello | WorkerGone | WorkerReported | DrainWanted | Tick
)
