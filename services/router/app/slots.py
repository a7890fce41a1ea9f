"""The router's own concurrency limit: it refuses at once and never queues."""

from collections.abc import Iterator
from contextlib import contextmanager

from services.kit.errors import DownstackError, Reason

RETRY_AFTER_S = 1.0


class Slots:
    """Counts the requests in flight."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    @property
    def taken(self) -> int:
        return self._taken

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold one slot. OVERLOADED where all are taken."""
        if self._taken >= self._most:
            raise DownstackError(
                Reason.OVERLOADED,
                f"this router already runs {self._most} requests",
                metadata={"limit": str(self._most)},
                retry_after_s=RETRY_AFTER_S,
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
