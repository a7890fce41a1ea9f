"""What the shell is to do."""

from dataclasses import dataclass

from services.kit.errors import DownstackError
from services.scheduler.domain.budget import BudgetStatus
from services.scheduler.domain.decision import Decision
from services.scheduler.domain.lease import Ending, Grant, Lease
from services.scheduler.domain.worker import WorkerPhase, WorkerSpec


@dataclass(frozen=True, slots=True)
class Place:
    """Answer a call with a placement. `again`: the call repeats one that was placed already."""

    call: int
    grant: Grant
    endpoint: str
    decision: Decision
    again: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer a call with an error."""

    call: int
    error: DownstackError


@dataclass(frozen=True, slots=True)
class Released:
    """Answer a release; False: the lease had ended already."""

    released: bool


@dataclass(frozen=True, slots=True)
class Accept:
    """Welcome a connection."""

    connection: int


@dataclass(frozen=True, slots=True)
class Close:
    """End a connection with an error."""

    connection: int
    error: DownstackError


@dataclass(frozen=True, slots=True)
class AskResync:
    """Ask for a snapshot."""

    connection: int


@dataclass(frozen=True, slots=True)
class AskDrain:
    """Ask a worker to leave."""

    connection: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """End leases at once."""

    connection: int
    lease_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Finished leases need not be reported again."""

    connection: int
    lease_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecordUsage:
    """Write the usage record of a lease that its worker will not record."""

    lease: Lease
    ending: Ending
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordWorker:
    """Publish a step in a worker's life."""

    worker_id: str
    epoch: str
    phase: WorkerPhase
    spec: WorkerSpec
    at: float


@dataclass(frozen=True, slots=True)
class RecordPassed:
    """Publish that a budget was passed."""

    status: BudgetStatus
    at: float


Record = RecordUsage | RecordWorker | RecordPassed
ToWorker = Accept | Close | AskResync | AskDrain | Cancel | Acknowledge
Instruction = Place | Refuse | Released | ToWorker | Record
