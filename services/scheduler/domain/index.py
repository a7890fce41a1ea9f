"""The exact index: block hash → workers that hold the block now.

Each worker owns the mirror of its cache and sends it as a snapshot followed by deltas, numbered within an epoch. A gap
makes that worker's part untrusted: it answers no look-up until a snapshot has replaced it.

One walk along a prompt's hashes finds the resident prefix of every worker.
"""

import heapq
import sys
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from services.scheduler.domain.kv import Cleared, Delta, Removed, SnapshotPart, Stored
from services.scheduler.domain.owners import Owners
from services.scheduler.domain.predictions import Predictions

# A part's log is rewritten when it has that many stale entries, and more of them than blocks.
_MIN_STALE = 64
# A walk looks at so many blocks at once, since most have the owners of the block before.
_STRIDE = 32
# Up to so many workers are cheaper to name one by one.
_FEW = 4


@dataclass(slots=True)
class _Assembly:
    """A snapshot of which the last part is still to come."""

    epoch: str
    sequence: int
    blocks: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Part:
    """One worker's part. `pending` are deltas that came while a snapshot was awaited.

    `log` names every block that the worker holds, and some that it held: the owners decide. A set would take eight
    times as much.
    """

    worker_id: str
    number: int
    pending: deque[Delta]
    bit: int
    log: "array[int]" = field(default_factory=lambda: array("Q"))
    held: int = 0
    epoch: str = ""
    sequence: int = 0
    trusted: bool = False
    assembly: _Assembly | None = None


class BlockIndex:
    """Block hashes of all workers. Bounded by `max_blocks_per_worker` and `max_predicted_blocks`."""

    def __init__(self, *, max_blocks_per_worker: int, max_pending_deltas: int, max_predicted_blocks: int) -> None:
        self._max_blocks = max_blocks_per_worker
        self._max_pending = max_pending_deltas
        self._owners = Owners()
        self._parts: dict[str, _Part] = {}
        self._by_number: dict[int, _Part] = {}
        self._free_numbers: list[int] = []
        self._width = 0
        self._trusted = 0
        self._predictions = Predictions(max_blocks=max_predicted_blocks)
        self.overflows = 0

    def longest(self, hashes: Sequence[int]) -> dict[str, int]:
        """The resident prefix of each worker that has one, in blocks."""
        return {
            self._by_number[number].worker_id: depth
            for owners, depth in self._levels(hashes)
            for number in _numbers(owners)
        }

    def depths(self, hashes: Sequence[int]) -> npt.NDArray[np.float64]:
        """The resident prefix of each worker, in blocks, at the worker's `number`."""
        found = np.zeros(self._width)
        for owners, depth in self._levels(hashes):
            if owners.bit_count() <= _FEW:
                for number in _numbers(owners):
                    found[number] = depth
            else:
                octets = owners.to_bytes((self._width + 7) // 8, "little")
                flags = np.unpackbits(np.frombuffer(octets, np.uint8), count=self._width, bitorder="little")
                found[flags.view(np.bool_)] = depth
        return found

    def number(self, worker_id: str) -> int:
        """A small number that is the worker's until it is dropped."""
        return self._part(worker_id).number

    def _levels(self, hashes: Sequence[int]) -> list[tuple[int, int]]:
        """The owners of a prefix, as bits, and its blocks: the shortest first, each worker once."""
        levels: list[tuple[int, int]] = []
        alive, depth = -1, 0
        before: tuple[int | None, int | None] = (-1, -1)
        for start in range(0, len(hashes), _STRIDE):
            blocks = hashes[start : start + _STRIDE]
            held = tuple(self._owners.of(blocks))
            if self._all_hold(held, alive):
                # Whatever is predicted adds nothing to it.
                depth += len(blocks)
                continue
            guessed = tuple(self._predictions.owners(blocks))
            if held.count(before[0]) == len(blocks) == guessed.count(before[1]):
                depth += len(blocks)
                continue
            for owners in zip(held, guessed, strict=True):
                if owners[0] is not before[0] or owners[1] is not before[1]:
                    before = owners
                    here = (((owners[0] or 0) & self._trusted) | (owners[1] or 0)) & alive
                    if here != alive:
                        if depth:
                            levels.append((alive & ~here, depth))
                        alive = here
                        if not alive:
                            return levels
                depth += 1
        if depth:
            levels.append((alive, depth))
        return levels

    def _all_hold(self, held: tuple[int | None, ...], alive: int) -> bool:
        """Whether these owners are the same throughout, and all that are left are among those believed."""
        first = held[0]
        return first is not None and first & self._trusted & alive == alive and held.count(first) == len(held)

    def predict(
        self, worker_id: str, hashes: Sequence[int], *, known: int = 0, until: float, at_most: int | None = None
    ) -> None:
        """Count blocks as resident for a while: the worker was just given a prompt that will make them so.

        The first `known` blocks count as resident already; of these only predictions are renewed. `at_most` bounds the
        predictions of a worker that reports no evictions.
        """
        part = self._part(worker_id)
        renewed = self._predictions.about(part.bit, hashes[:known])
        self._predictions.add(part.bit, [*renewed, *hashes[known:]], until=until, at_most=at_most)

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
        resident = self._resident(part)
        self._remove(part, tuple(resident - assembly.blocks))
        self._store(part, tuple(assembly.blocks - resident))
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
        del self._by_number[part.number]
        heapq.heappush(self._free_numbers, part.number)

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
        return frozenset(self._resident(part)) if part is not None else frozenset()

    def blocks_of(self, worker_id: str) -> int:
        part = self._parts.get(worker_id)
        return part.held if part is not None else 0

    @property
    def blocks(self) -> int:
        """Different blocks that some worker holds."""
        return len(self._owners)

    @property
    def predicted_blocks(self) -> int:
        return self._predictions.blocks

    def memory_bytes(self) -> int:
        """An estimate of the memory taken, predictions included."""
        logs = sum(sys.getsizeof(part.log) for part in list(self._parts.values()))
        return self._owners.memory_bytes() + logs + self._predictions.memory_bytes()

    def validate(self) -> None:
        """Check the invariants: the owners are the union of the parts, and nothing else."""
        union: dict[int, int] = {}
        for part in self._parts.values():
            assert self._by_number[part.number] is part
            assert part.bit == 1 << part.number
            assert part.trusted == bool(self._trusted & part.bit)
            blocks = self._resident(part)
            assert part.held == len(blocks) <= self._max_blocks
            assert len(part.log) <= 2 * part.held + _MIN_STALE
            for block in blocks:
                union[block] = union.get(block, 0) | part.bit
        assert union == self._owners.as_dict()
        assert len(self._by_number) == len(self._parts)
        assert sorted([*self._by_number, *self._free_numbers]) == list(range(self._width))
        self._predictions.validate()

    def _part(self, worker_id: str) -> _Part:
        part = self._parts.get(worker_id)
        if part is None:
            if self._free_numbers:
                number = heapq.heappop(self._free_numbers)
            else:
                number, self._width = self._width, self._width + 1
            part = _Part(worker_id, number, deque(maxlen=self._max_pending), bit=1 << number)
            self._parts[worker_id] = self._by_number[number] = part
        return part

    def _resident(self, part: _Part) -> set[int]:
        return self._owners.held_by(part.bit, part.log)

    def _trust(self, part: _Part) -> None:
        part.trusted = True
        self._trusted |= part.bit

    def _distrust(self, part: _Part) -> None:
        part.trusted = False
        self._trusted &= ~part.bit

    def _store(self, part: _Part, hashes: Sequence[int]) -> None:
        added = self._owners.add(part.bit, hashes)
        part.log.extend(added)
        part.held += len(added)
        self._predictions.settle(part.bit, hashes)
        self._tidy(part)

    def _remove(self, part: _Part, hashes: Sequence[int]) -> None:
        part.held -= self._owners.discard(part.bit, hashes)
        self._predictions.settle(part.bit, hashes)
        self._tidy(part)

    def _tidy(self, part: _Part) -> None:
        """Keep the stale entries of a part's log from outnumbering its blocks."""
        if len(part.log) > 2 * part.held + _MIN_STALE:
            part.log = array("Q", self._resident(part))

    def _empty(self, part: _Part) -> None:
        self._remove(part, tuple(self._resident(part)))
        self._predictions.drop(part.bit)

    def _overflowed(self, part: _Part) -> bool:
        if part.held <= self._max_blocks:
            return False
        self.overflows += 1
        self._empty(part)
        self._distrust(part)
        return True


def _numbers(owners: int) -> Iterator[int]:
    while owners:
        number = (owners & -owners).bit_length() - 1
        yield number
        owners ^= 1 << number
