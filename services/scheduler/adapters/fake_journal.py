"""A journal in memory, for tests."""

from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.budget import BudgetKey
from services.scheduler.domain.decision import Decision
from services.scheduler.domain.instructions import RecordPassed, RecordUsage, RecordWorker
from services.scheduler.domain.lease import Grant
from services.scheduler.domain.reconcile import Unmatched


class FakeJournal:
    """Keeps what it is given; refuses all while `full`."""

    def __init__(self) -> None:
        self.full = False
        self.backlog = 0.0
        self.decisions: list[Decision] = []
        self.grants: list[Grant] = []
        self.closures: list[Unmatched] = []
        self.usage: list[RecordUsage] = []
        self.workers: list[RecordWorker] = []
        self.passed: list[RecordPassed] = []
        self.changes: list[tuple[str, BudgetKey]] = []

    def check_open(self) -> None:
        if self.full:
            raise DownstackError(Reason.JOURNAL_FULL, "the journal is full")

    async def decided(self, decision: Decision, grant: Grant) -> None:
        self.check_open()
        self.decisions.append(decision)
        self.grants.append(grant)

    async def closed(self, record: RecordUsage) -> None:
        self.check_open()
        self.usage.append(record)

    async def reconciled(self, lease: Unmatched) -> None:
        self.check_open()
        self.closures.append(lease)

    def backlog_s(self) -> float:
        return self.backlog

    async def worker_changed(self, record: RecordWorker) -> None:
        self.check_open()
        self.workers.append(record)

    async def budget_passed(self, record: RecordPassed) -> None:
        self.check_open()
        self.passed.append(record)

    async def budget_changed(self, key: BudgetKey, *, action: str) -> None:
        self.check_open()
        self.changes.append((action, key))
