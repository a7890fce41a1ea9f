"""The simulated engine's waiting requests, the most important first."""

import heapq
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

_LEAST_COMPACTED = 64


class Ranked(Protocol):
    """What can wait: the lowest rank goes first, and no two have the same."""

    @property
    def rank(self) -> tuple[int, int]:
        """(priority, arrival)."""
        ...


T = TypeVar("T", bound=Ranked)


class WaitingQueue(Generic[T]):
    """A heap of ranks from which entries can be removed; a rank that nobody has any more is skipped."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []
        self._waiting: dict[tuple[int, int], T] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        return iter(self._waiting.values())

    def push(self, entry: T) -> None:
        """One more that waits."""
        self._waiting[entry.rank] = entry
        heapq.heappush(self._heap, entry.rank)

    def first(self) -> T | None:
        """The most important one; it stays."""
        while self._heap:
            entry = self._waiting.get(self._heap[0])
            if entry is not None:
                return entry
            heapq.heappop(self._heap)
        return None

    def remove(self, entry: T) -> None:
        """One that waits does so no longer."""
        del self._waiting[entry.rank]
        if len(self._heap) > _LEAST_COMPACTED + 2 * len(self._waiting):
            self._heap = sorted(self._waiting)
