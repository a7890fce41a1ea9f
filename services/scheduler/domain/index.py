"""The exact index: block hash → workers that hold the block now.

Each worker owns the mirror of its cache and sends it as a snapshot followed by deltas, numbered within an epoch. A gap
makes that worker's part untrusted: it answers no look-up until a snapshot has replaced it.

A block's owners are one integer with a bit for each worker, so that one walk along a prompt's hashes finds the resident
prefix of every worker.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from services.scheduler.domain.kv import Cleared, Delta, Removed, SnapshotPart, Stored
from services.scheduler.domain.predictions import Predictions

# What CPython takes for an integer of 64 bits, and for an owners' integer of up to 60 workers.
_INT_BYTES = 36


@dataclass(slots=True)
class _Assembly:
    """A snapshot of which the last part is still to come."""

    epoch: str
    sequence: int
    blocks: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Part:
    """One worker's part. `pending` are deltas that came while a snapshot was awaited."""

    worker_id: str
    bit: int
    pending: deque[Delta]
    blocks: set[int] = field(default_factory=set)
    epoch: str = ""
    sequence: int = 0
    trusted: bool = False
    assembly: _Assembly | None = None


class BlockIndex:
    """Block hashes of all workers. Bounded by `max_blocks_per_worker` and `max_predicted_blocks`."""

    def __init__(self, *, max_blocks_per_worker: int, max_pending_deltas: int, max_predicted_blocks: int) -> None:
        self._max_blocks = max_blocks_per_worker
        self._max_pending = max_pending_deltas
        self._owners: dict[int, int] = {}
        self._parts: dict[str, _Part] = {}
        self._by_bit: dict[int, _Part] = {}
        self._trusted = 0
        self._predictions = Predictions(max_blocks=max_predicted_blocks)
        self.overflows = 0

    def longest(self, hashes: Sequence[int]) -> dict[str, int]:
        """The resident prefix of each worker that has one, in blocks."""
        found: dict[str, int] = {}
        alive = -1
        depth = 0
        for block in hashes:
            here = ((self._owners.get(block, 0) & self._trusted) | self._predictions.owners(block)) & alive
            if here != alive and depth:
                self._note(found, alive & ~here, depth)
            alive = here
            if not alive:
                return found
            depth += 1
        if depth:
            self._note(found, alive, depth)
        return found

    def _note(self, found: dict[str, int], owners: int, depth: int) -> None:
        for bit in _bits(owners):
            found[self._by_bit[bit].worker_id] = depth

    def predict(self, worker_id: str, hashes: Sequence[int], *, until: float) -> None:
        """Count blocks as resident for a while: the worker was just given a prompt that will make them so."""
        part = self._part(worker_id)
        self._predictions.add(part.bit, [block for block in hashes if block not in part.blocks], until=until)

    def expire(self, now: float) -> None:
        """Drop the predictions that were not borne out in time."""
        self._predictions.expire(now)

    def apply_delta(self, worker_id: str, delta: Delta) -> bool:
        """Apply a delta. True: the worker's part cannot be trusted any more, ask it for a snapshot."""
        part = self._part(worker_id)
        if delta.epoch != part.epoch and delta.sequence == 1:
            # A new engine's first change: its cache was empty before it.
            self._empty(part)
            part.pending.clear()
            part.assembly = None
            part.epoch, part.sequence = delta.epoch, 0
            self._trust(part)
        if not part.trusted:
            part.pending.append(delta)
            return False
        return self._advance(part, delta)

    def _advance(self, part: _Part, delta: Delta) -> bool:
        if delta.epoch == part.epoch and delta.sequence <= part.sequence:
            return False
        if delta.epoch != part.epoch or delta.sequence != part.sequence + 1:
            self._distrust(part)
            part.pending.append(delta)
            return True
        part.sequence = delta.sequence
        for change in delta.changes:
            match change:
                case Stored(hashes):
                    self._store(part, hashes)
                case Removed(hashes):
                    self._remove(part, hashes)
                case Cleared():
                    self._empty(part)
        return self._overflowed(part)

    def apply_snapshot(self, worker_id: str, snapshot: SnapshotPart) -> bool:
        """Take a part of a snapshot; the last part replaces what was known. True as in `apply_delta`."""
        part = self._part(worker_id)
        if part.trusted and snapshot.epoch == part.epoch and snapshot.sequence < part.sequence:
            return False
        assembly = part.assembly
        if assembly is None or (assembly.epoch, assembly.sequence) != (snapshot.epoch, snapshot.sequence):
            assembly = part.assembly = _Assembly(snapshot.epoch, snapshot.sequence)
        assembly.blocks.update(snapshot.hashes)
        if len(assembly.blocks) > self._max_blocks:
            self.overflows += 1
            part.assembly = None
            self._distrust(part)
            return False
        return self._adopt(part, assembly) if snapshot.last else False

    def _adopt(self, part: _Part, assembly: _Assembly) -> bool:
        part.assembly = None
        self._remove(part, tuple(part.blocks - assembly.blocks))
        self._store(part, tuple(assembly.blocks - part.blocks))
        part.epoch, part.sequence = assembly.epoch, assembly.sequence
        self._trust(part)
        pending = [delta for delta in part.pending if delta.epoch == part.epoch]
        part.pending.clear()
        return any(self._advance(part, delta) for delta in pending)

    def distrust(self, worker_id: str) -> None:
        """Stop answering from a worker's part until its next snapshot."""
        self._distrust(self._part(worker_id))

    def drop(self, worker_id: str) -> None:
        """Forget a worker."""
        part = self._parts.pop(worker_id, None)
        if part is None:
            return
        self._empty(part)
        self._distrust(part)
        self._predictions.drop(part.bit)
        del self._by_bit[part.bit]

    def trusted(self, worker_id: str) -> bool:
        part = self._parts.get(worker_id)
        return part is not None and part.trusted

    def position(self, worker_id: str) -> tuple[str, int]:
        """The epoch and sequence that a worker's part has reached."""
        part = self._parts.get(worker_id)
        return (part.epoch, part.sequence) if part is not None else ("", 0)

    def resident(self, worker_id: str) -> frozenset[int]:
        """The blocks of a worker's part, trusted or not."""
        part = self._parts.get(worker_id)
        return frozenset(part.blocks) if part is not None else frozenset()

    def blocks_of(self, worker_id: str) -> int:
        part = self._parts.get(worker_id)
        return len(part.blocks) if part is not None else 0

    @property
    def blocks(self) -> int:
        """Different blocks that some worker holds."""
        return len(self._owners)

    @property
    def predicted_blocks(self) -> int:
        return self._predictions.blocks

    def memory_bytes(self) -> int:
        """An estimate of the memory taken, predictions included."""
        sets = sum(sys.getsizeof(part.blocks) for part in list(self._parts.values()))
        return (
            sys.getsizeof(self._owners) + 2 * _INT_BYTES * len(self._owners) + sets + self._predictions.memory_bytes()
        )

    def validate(self) -> None:
        """Check the invariants: the owners are the union of the parts, and nothing else."""
        union: dict[int, int] = {}
        for part in self._parts.values():
            assert self._by_bit[part.bit] is part
            assert part.trusted == bool(self._trusted & part.bit)
            assert len(part.blocks) <= self._max_blocks
            for block in part.blocks:
                union[block] = union.get(block, 0) | part.bit
        assert union == self._owners
        assert len(self._by_bit) == len(self._parts)
        self._predictions.validate()

    def _part(self, worker_id: str) -> _Part:
        part = self._parts.get(worker_id)
        if part is None:
            bit = 1
            while bit in self._by_bit:
                bit <<= 1
            part = _Part(worker_id, bit, deque(maxlen=self._max_pending))
            self._parts[worker_id] = self._by_bit[bit] = part
        return part

    def _trust(self, part: _Part) -> None:
        part.trusted = True
        self._trusted |= part.bit

    def _distrust(self, part: _Part) -> None:
        part.trusted = False
        self._trusted &= ~part.bit

    def _store(self, part: _Part, hashes: Sequence[int]) -> None:
        owners, bit = self._owners, part.bit
        part.blocks.update(hashes)
        for block in hashes:
            owners[block] = owners.get(block, 0) | bit
        self._predictions.settle(bit, hashes)

    def _remove(self, part: _Part, hashes: Sequence[int]) -> None:
        owners, gone = self._owners, ~part.bit
        part.blocks.difference_update(hashes)
        for block in hashes:
            left = owners.get(block, 0) & gone
            if left:
                owners[block] = left
            else:
                owners.pop(block, None)
        self._predictions.settle(part.bit, hashes)

    def _empty(self, part: _Part) -> None:
        self._remove(part, tuple(part.blocks))
        self._predictions.drop(part.bit)

    def _overflowed(self, part: _Part) -> bool:
        if len(part.blocks) <= self._max_blocks:
            return False
        self.overflows += 1
        self._empty(part)
        self._distrust(part)
        return True


def _bits(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit
