"""An outbox in memory, for tests and benchmarks of the worker alone."""

from services.kit.errors import DownstackError, Reason
from services.kit.events.event import Event


class MemoryJournal:
    """Keeps events. While `full` it refuses them, as an outbox at its bound does."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.full = False

    def check_open(self) -> None:
        """Raises DownstackError JOURNAL_FULL while full."""
        if self.full:
            raise DownstackError(Reason.JOURNAL_FULL, "The journal is full.", retry_after_s=1.0)

    async def append(self, *events: Event) -> None:
        """Keeps the events, or raises DownstackError JOURNAL_FULL."""
        self.check_open()
        self.events += events
