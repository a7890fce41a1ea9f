"""The mirror of the engine's KV cache: which blocks are resident, and how that changed, numbered."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stored:
    """Copies of these blocks were stored."""

    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """One copy of each of these blocks was evicted."""

    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cleared:
    """No block is resident."""


KvChange = Stored | Removed | Cleared


@dataclass(frozen=True, slots=True)
class Delta:
    """One numbered batch of changes of the set of resident blocks."""

    sequence: int
    changes: tuple[KvChange, ...]


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """A part of the set of resident blocks after the delta `sequence`."""

    sequence: int
    hashes: tuple[int, ...]
    last: bool


class Mirror:
    """The set of resident blocks.

    An engine may hold the same block twice, because two requests computed it at once, and reports each copy. The set
    changes only with the first copy that comes and the last one that goes, and so do the deltas.
    """

    def __init__(self) -> None:
        self._copies: dict[int, int] = {}
        self.sequence = 0

    def __len__(self) -> int:
        return len(self._copies)

    def __contains__(self, block: int) -> bool:
        return block in self._copies

    def apply(self, changes: Iterable[KvChange]) -> Delta | None:
        """Takes the engine's changes in; returns the change of the set, None if it stayed the same."""
        found: list[KvChange] = []
        for change in changes:
            match change:
                case Stored(hashes):
                    _append(found, Stored(tuple(block for block in hashes if self._add(block))))
                case Removed(hashes):
                    _append(found, Removed(tuple(block for block in hashes if self._drop(block))))
                case Cleared():
                    self._copies.clear()
                    found = [Cleared()]
        if not found:
            return None
        self.sequence += 1
        return Delta(self.sequence, tuple(found))

    def snapshot(self, part_size: int) -> Sequence[SnapshotPart]:
        """The whole set in parts of at most `part_size` blocks; at least one part, the last one marked."""
        blocks = tuple(self._copies)
        starts = range(0, max(1, len(blocks)), part_size)
        return [
            SnapshotPart(self.sequence, blocks[start : start + part_size], last=start + part_size >= len(blocks))
            for start in starts
        ]

    def _add(self, block: int) -> bool:
        copies = self._copies.get(block, 0)
        self._copies[block] = copies + 1
        return copies == 0

    def _drop(self, block: int) -> bool:
        copies = self._copies.get(block, 0)
        if copies > 1:
            self._copies[block] = copies - 1
        return copies == 1 and self._copies.pop(block) == 1


def _append(found: list[KvChange], change: Stored | Removed) -> None:
    """Appends a change that says something, to the one before it where that is of the same kind."""
    if not change.hashes:
        return
    last = found[-1] if found else None
    match last, change:
        case (Stored(before), Stored(now)):
            found[-1] = Stored(before + now)
        case (Removed(before), Removed(now)):
            found[-1] = Removed(before + now)
        case _:
            found.append(change)
