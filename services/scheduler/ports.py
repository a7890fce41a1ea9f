"""What the scheduler needs of the world."""

from collections.abc import Sequence
from typing import Protocol

from services.scheduler.domain.decision import Decision
from services.scheduler.domain.instructions import RecordUsage, RecordWorker
from services.scheduler.domain.ledger import DecisionEntry, Grouping, Page, UsageEntry, UsageFilter, UsageTotal
from services.scheduler.domain.request import Request


class Journal(Protocol):
    """Where facts are made durable before anybody acts on them. All raise JOURNAL_FULL."""

    def check_open(self) -> None:
        """Return if new work can be recorded."""
        ...

    async def decided(self, decision: Decision, request: Request) -> None:
        """Record a placement."""
        ...

    async def closed(self, record: RecordUsage) -> None:
        """Record the usage of a lease whose worker will not."""
        ...

    async def worker_changed(self, record: RecordWorker) -> None:
        """Record a step in a worker's life."""
        ...


class Meter(Protocol):
    """Counts what the scheduler does."""

    def placed(self, decision: Decision) -> None: ...

    def refused(self, reason: str) -> None: ...

    def closed(self, ending: str) -> None: ...


class LedgerStore(Protocol):
    """The ledger's tables. Every call sees and writes one tenant's rows only. All raise DEPENDENCY_UNAVAILABLE."""

    async def add_usage(self, tenant_id: str, entries: Sequence[UsageEntry]) -> int:
        """Add rows; a lease that has one keeps it. Returns the number that were new."""
        ...

    async def add_decisions(self, tenant_id: str, entries: Sequence[DecisionEntry]) -> int:
        """Add decisions; one that is there stays. Returns the number that were new."""
        ...

    async def totals(self, tenant_id: str, chosen: UsageFilter, *, by: Grouping) -> list[UsageTotal]:
        """Sums, sorted by group and currency."""
        ...

    async def usage(self, tenant_id: str, chosen: UsageFilter, *, limit: int, after: tuple[float, str] | None) -> Page:
        """Rows, newest first, after a position (time, lease)."""
        ...

    async def decisions(self, tenant_id: str, request_id: str) -> list[DecisionEntry]:
        """The decisions of a request, first to last."""
        ...
