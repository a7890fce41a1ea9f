"""Predicted blocks: what a placement will make resident, believed for a short while.

A burst of requests with one prefix is placed before the first of them has stored a block; without predictions the burst
would scatter over all workers.
"""

import heapq
import sys
from collections.abc import Sequence


class Predictions:
    """Block hash → workers (as bits) that will soon hold the block. Bounded; the oldest go first."""

    def __init__(self, *, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._owners: dict[int, int] = {}
        self._until: dict[int, dict[int, float]] = {}
        self._batches: list[tuple[float, int, int, Sequence[int]]] = []
        self._added = 0
        self._held = 0

    def owners(self, block: int) -> int:
        return self._owners.get(block, 0)

    @property
    def blocks(self) -> int:
        return self._held

    def add(self, bit: int, hashes: Sequence[int], *, until: float) -> None:
        """Believe that the worker of `bit` holds these blocks, up to a time."""
        if not hashes:
            return
        believed = self._until.setdefault(bit, {})
        for block in hashes:
            if block not in believed:
                self._held += 1
                self._owners[block] = self._owners.get(block, 0) | bit
            believed[block] = max(until, believed.get(block, until))
        self._added += 1
        heapq.heappush(self._batches, (until, self._added, bit, hashes))
        while self._held > self._max_blocks:
            self._pop_batch(force=True)

    def expire(self, now: float) -> None:
        while self._batches and self._batches[0][0] <= now:
            self._pop_batch(force=False)

    def _pop_batch(self, *, force: bool) -> None:
        until, _, bit, hashes = heapq.heappop(self._batches)
        believed = self._until.get(bit, {})
        self.settle(bit, [block for block in hashes if block in believed and (force or believed[block] <= until)])

    def settle(self, bit: int, hashes: Sequence[int]) -> None:
        """Forget predictions about these blocks: the worker has told how it stands."""
        believed = self._until.get(bit)
        if not believed:
            return
        for block in hashes:
            if believed.pop(block, None) is None:
                continue
            self._held -= 1
            left = self._owners[block] & ~bit
            if left:
                self._owners[block] = left
            else:
                del self._owners[block]

    def drop(self, bit: int) -> None:
        """Forget all predictions about a worker."""
        self.settle(bit, tuple(self._until.get(bit, ())))
        self._until.pop(bit, None)

    def memory_bytes(self) -> int:
        tables = sum(sys.getsizeof(believed) for believed in list(self._until.values()))
        return sys.getsizeof(self._owners) + tables + sys.getsizeof(self._batches)

    def validate(self) -> None:
        """Check the invariants: owners and lives agree, and the bound holds."""
        union: dict[int, int] = {}
        for bit, believed in self._until.items():
            for block in believed:
                union[block] = union.get(block, 0) | bit
        assert union == self._owners
        assert self._held == sum(len(believed) for believed in self._until.values())
        assert self._held <= self._max_blocks
