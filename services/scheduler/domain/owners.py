"""Block hash → the workers that have the block, as one integer with a bit for each worker.

Equal integers are one object: neighbours in a chain tend to have the same owners, so that walks and updates compare
identities and compute only where the owners change.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence

# What CPython's allocator takes for an integer of 64 bits.
_INT_BYTES = 48
# Integers that are remembered for sharing.
_MAX_SHARED = 16_384


class Owners:
    """A table of blocks. A block without owners is not in it."""

    def __init__(self) -> None:
        self._table: dict[int, int] = {}
        self._shared: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._table)

    def of(self, hashes: Iterable[int]) -> Iterator[int | None]:
        """The owners of each block, None for none."""
        return map(self._table.get, hashes)

    def held_by(self, bit: int, hashes: Sequence[int]) -> set[int]:
        """Those of the blocks that the worker of `bit` has."""
        pairs = zip(hashes, self.of(hashes), strict=True)
        return {block for block, owners in pairs if owners is not None and owners & bit}

    def add(self, bit: int, hashes: Sequence[int]) -> list[int]:
        """Make the worker of `bit` an owner. Returns the blocks that it had not."""
        table, added = self._table, []
        if table.keys().isdisjoint(hashes):
            fresh = dict.fromkeys(hashes, self._share(bit))
            table.update(fresh)
            return list(fresh)
        before, after, known = -1, 0, False
        for block in hashes:
            owners = table.get(block, 0)
            if owners is not before:
                before, after, known = owners, self._share(owners | bit), owners & bit != 0
            if not known:
                table[block] = after
                added.append(block)
        return added

    def discard(self, bit: int, hashes: Iterable[int]) -> int:
        """Make the worker of `bit` no owner. Returns how many of the blocks it had."""
        table, count = self._table, 0
        before, after, known = -1, 0, False
        for block in hashes:
            owners = table.get(block, 0)
            if owners is not before:
                before, after, known = owners, self._share(owners & ~bit), owners & bit != 0
            if not known:
                continue
            count += 1
            if after:
                table[block] = after
            else:
                del table[block]
        return count

    def _share(self, owners: int) -> int:
        if len(self._shared) >= _MAX_SHARED:
            self._shared.clear()
        return self._shared.setdefault(owners, owners)

    def memory_bytes(self) -> int:
        """An estimate of the memory taken."""
        shared = sum(map(sys.getsizeof, list(self._shared)))
        return sys.getsizeof(self._table) + sys.getsizeof(self._shared) + shared + _INT_BYTES * len(self._table)

    def as_dict(self) -> dict[int, int]:
        """A copy of the table."""
        return dict(self._table)
