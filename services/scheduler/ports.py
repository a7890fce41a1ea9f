"""What the scheduler needs of the world."""

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from services.scheduler.domain.budget import Budget, BudgetKey
from services.scheduler.domain.decision import Decision
from services.scheduler.domain.instructions import RecordPassed, RecordUsage, RecordWorker
from services.scheduler.domain.lease import Grant
from services.scheduler.domain.ledger import DecisionEntry, Grouping, Page, UsageEntry, UsageFilter, UsageTotal
from services.scheduler.domain.reconcile import Compared, Position, Unmatched


class Journal(Protocol):
    """Where facts are made durable before anybody acts on them. All raise JOURNAL_FULL."""

    def check_open(self) -> None:
        """Return if new work can be recorded."""
        ...

    async def decided(self, decision: Decision, grant: Grant) -> None:
        """Record a placement, with all that is needed to close its lease later."""
        ...

    async def closed(self, record: RecordUsage) -> None:
        """Record the usage of a lease whose worker will not."""
        ...

    async def reconciled(self, lease: Unmatched) -> None:
        """Record a lease of which nothing more is known as unused. The same lease always gives the same record."""
        ...

    def backlog_s(self) -> float:
        """How long the oldest record has waited for its way to the ledger; 0 if none waits."""
        ...

    async def worker_changed(self, record: RecordWorker) -> None:
        """Record a step in a worker's life."""
        ...

    async def budget_passed(self, record: RecordPassed) -> None:
        """Record that a budget was passed. The same budget and period always give the same record."""
        ...

    async def budget_changed(self, key: BudgetKey, *, action: str) -> None:
        """Record who changed a budget."""
        ...


class Meter(Protocol):
    """Counts what the scheduler does."""

    def placed(self, decision: Decision) -> None: ...

    def refused(self, reason: str) -> None: ...

    def closed(self, ending: str) -> None: ...

    def late(self, source: str) -> None: ...

    def reconciled(self) -> None: ...

    def unmatched(self, leases: int) -> None: ...


class LedgerStore(Protocol):
    """The ledger's tables. Every call sees and writes one tenant's rows only. All raise DEPENDENCY_UNAVAILABLE."""

    async def add_usage(self, tenant_id: str, entries: Sequence[UsageEntry]) -> list[UsageEntry]:
        """Add rows; a lease that has one keeps it. Returns the entries whose lease has a row that says otherwise."""
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


class BudgetStore(Protocol):
    """The budgets, and the sums of the ledger's rows that they limit. All raise DEPENDENCY_UNAVAILABLE."""

    async def revision(self) -> int:
        """The number of the last change."""
        ...

    async def load(self) -> tuple[int, list[Budget]]:
        """All budgets, and the number of their last change."""
        ...

    async def put(self, budget: Budget) -> None:
        """Set a budget. Raises TENANT_NOT_FOUND, KEY_NOT_FOUND, or QUOTA_EXCEEDED: there are too many."""
        ...

    async def remove(self, key: BudgetKey) -> bool:
        """Remove a budget. False: there is none."""
        ...

    async def spent(
        self, tenant_id: str, budgets: Sequence[Budget], *, day: dt.date, leases: Sequence[str]
    ) -> tuple[Mapping[BudgetKey, int], list[str]]:
        """What is spent of a tenant's budgets in the periods that the day lies in, and which leases that includes."""
        ...


class LedgerGaps(Protocol):
    """Compares the ledger's decisions with its rows. All raise DEPENDENCY_UNAVAILABLE."""

    def tenants(self) -> AsyncIterator[str]:
        """The ids of all tenants."""
        ...

    async def compare(self, tenant_id: str, *, after: Position, older_than_s: float, limit: int) -> Compared:
        """Look at up to `limit` of a tenant's decisions that have been in the ledger for that long."""
        ...
