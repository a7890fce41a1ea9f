"""A journal in memory, for tests."""

from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.decision import Decision
from services.scheduler.domain.instructions import RecordUsage, RecordWorker
from services.scheduler.domain.request import Request


class FakeJournal:
    """Keeps what it is given; refuses all while `full`."""

    def __init__(self) -> None:
        self.full = False
        self.decisions: list[Decision] = []
        self.usage: list[RecordUsage] = []
        self.workers: list[RecordWorker] = []

    def check_open(self) -> None:
        if self.full:
            raise DownstackError(Reason.JOURNAL_FULL, "the journal is full")

    async def decided(self, decision: Decision, request: Request) -> None:  # noqa: ARG002  the port's signature
        self.check_open()
        self.decisions.append(decision)

    async def closed(self, record: RecordUsage) -> None:
        self.check_open()
        self.usage.append(record)

    async def worker_changed(self, record: RecordWorker) -> None:
        self.check_open()
        self.workers.append(record)
