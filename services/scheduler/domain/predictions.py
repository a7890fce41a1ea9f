"""Predicted blocks: what a placement will make resident, believed for a short while.

A burst of requests with one prefix is placed before the first of them has stored a block; without predictions the burst
would scatter over all workers.
"""

import heapq
import itertools
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence

from services.scheduler.domain.owners import Owners


class Predictions:
    """Block hash → workers (as bits) that will soon hold the block. Bounded; the oldest go first."""

    def __init__(self, *, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._owners = Owners()
        self._until: dict[int, dict[int, float]] = {}
        self._batches: list[tuple[float, int, int, array[int]]] = []
        self._latest: dict[int, float] = {}  # by worker, the latest end of a belief
        self._added = 0
        self._held = 0

    def owners(self, hashes: Iterable[int]) -> Iterator[int | None]:
        """The workers of each block, as bits; None for no worker."""
        return self._owners.of(hashes)

    @property
    def blocks(self) -> int:
        return self._held

    def about(self, bit: int, hashes: Iterable[int]) -> list[int]:
        """Those of the blocks that the worker of `bit` is believed to hold soon."""
        believed = self._until.get(bit)
        return [block for block in hashes if block in believed] if believed else []

    def add(self, bit: int, hashes: Sequence[int], *, until: float, at_most: int | None = None) -> None:
        """Believe that the worker of `bit` holds these blocks, up to a time.

        `at_most`: so many blocks are all that it can hold; those not believed anew for longest are dropped.
        """
        if not hashes:
            return
        believed = self._until.setdefault(bit, {})
        known = not believed.keys().isdisjoint(hashes)
        fresh = [block for block in hashes if block not in believed] if known else hashes
        self._held += len(self._owners.add(bit, fresh))
        if until < self._latest.get(bit, until):
            believed.update({block: max(until, believed.get(block, until)) for block in hashes})
        else:
            self._latest[bit] = until
            believed.update(dict.fromkeys(hashes, until))
        self._added += 1
        # An array, since the garbage collector would look at each item of a list.
        heapq.heappush(self._batches, (until, self._added, bit, array("Q", hashes)))
        if at_most is not None:
            self._evict(bit, hashes, at_most)
        while self._held > self._max_blocks:
            self._pop_batch(force=True)

    def _evict(self, bit: int, latest: Sequence[int], at_most: int) -> None:
        """Do as the worker's cache will: the least recently used blocks go, the tail of a prompt before its head."""
        believed = self._until[bit]
        for block in reversed(latest):
            believed[block] = believed.pop(block)
        self.settle(bit, list(itertools.islice(believed, max(0, len(believed) - at_most))))

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
        settled = [block for block in hashes if believed.pop(block, None) is not None]
        self._held -= self._owners.discard(bit, settled)

    def drop(self, bit: int) -> None:
        """Forget all predictions about a worker."""
        self.settle(bit, tuple(self._until.get(bit, ())))
        self._until.pop(bit, None)
        self._latest.pop(bit, None)

    def memory_bytes(self) -> int:
        tables = sum(sys.getsizeof(believed) for believed in list(self._until.values()))
        return self._owners.memory_bytes() + tables + sys.getsizeof(self._batches)

    def validate(self) -> None:
        """Check the invariants: owners and lives agree, and the bound holds."""
        union: dict[int, int] = {}
        for bit, believed in self._until.items():
            for block in believed:
                union[block] = union.get(block, 0) | bit
        assert union == self._owners.as_dict()
        assert self._held == sum(len(believed) for believed in self._until.values())
        assert self._held <= self._max_blocks
