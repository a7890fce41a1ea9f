"""The block pool of the simulated engine: reference counts, one free queue that is also the LRU cache."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from services.worker.domain.mirror import Cleared, KvChange, Removed, Stored


class BlockPool:
    """Blocks that are used, free, or free and still cached.

    As in vLLM's block pool: a block that nobody uses joins the free queue, at the end if its content has a hash (so
    that the queue's head is the least recently used), at the front if not. It stays findable until it is taken.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._refs: dict[int, int] = {}
        self._hash_of: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(size))
        self._by_hash: dict[int, int] = {}
        # Further blocks of the same content: requests that computed it at the same time.
        self._copies: dict[int, OrderedDict[int, None]] = {}
        self._changes: list[KvChange] = []
        self.releases = 0

    @property
    def free(self) -> int:
        """The number of blocks that can be taken, cached ones included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """The used share, 0 to 1."""
        return 1 - len(self._free) / self.size

    def cached_prefix(self, hashes: Sequence[int]) -> list[int]:
        """The blocks of the longest prefix of these hashes that is cached."""
        found, by_hash = [], self._by_hash
        for block_hash in hashes:
            block = by_hash.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def count_free(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are in the free queue."""
        return sum(block in self._free for block in blocks)

    def touch(self, blocks: Iterable[int]) -> None:
        """One more user of each of these blocks."""
        refs, free = self._refs, self._free
        for block in blocks:
            users = refs.get(block, 0)
            if not users:
                del free[block]
            refs[block] = users + 1

    def take(self, count: int) -> list[int]:
        """The least recently used free blocks, for new content. There must be enough."""
        pop, hash_of = self._free.popitem, self._hash_of
        taken = [pop(False)[0] for _ in range(count)]
        self._refs.update(dict.fromkeys(taken, 1))
        evicted = [block for block in taken if block in hash_of]
        if evicted:
            self._changes.append(Removed(tuple([self._forget(block) for block in evicted])))
        return taken

    def register(self, blocks: Sequence[int], hashes: Sequence[int]) -> None:
        """These blocks in a row are full, and these are the hashes of their content."""
        self._hash_of.update(zip(blocks, hashes, strict=True))
        by_hash = self._by_hash
        if by_hash.keys().isdisjoint(hashes):
            by_hash.update(zip(hashes, blocks, strict=True))
        else:
            for block, block_hash in zip(blocks, hashes, strict=True):
                if by_hash.setdefault(block_hash, block) != block:
                    self._copies.setdefault(block_hash, OrderedDict())[block] = None
        self._changes.append(Stored(tuple(hashes)))

    def release(self, blocks: Iterable[int]) -> None:
        """One user less of each; the first of them that become free are evicted first.

        Callers give a sequence's blocks in reverse, so that the tail of a prompt goes before its head.
        """
        self.releases += 1
        refs, free, hash_of = self._refs, self._free, self._hash_of
        unhashed = []
        for block in blocks:
            users = refs[block]
            if users > 1:
                refs[block] = users - 1
                continue
            del refs[block]
            free[block] = None
            if block not in hash_of:
                unhashed.append(block)
        for block in reversed(unhashed):
            free.move_to_end(block, last=False)

    def reset(self) -> bool:
        """Forgets all content, unless a block is in use."""
        if self._refs:
            return False
        self._by_hash.clear()
        self._copies.clear()
        self._hash_of.clear()
        self._changes.append(Cleared())
        return True

    @property
    def changed(self) -> bool:
        """Whether there are changes to drain."""
        return bool(self._changes)

    def drain_changes(self) -> list[KvChange]:
        """What changed since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def _forget(self, block: int) -> int:
        """The block's content cannot be found any more; returns its hash."""
        block_hash = self._hash_of.pop(block)
        if block_hash not in self._copies:
            del self._by_hash[block_hash]
            return block_hash
        copies = self._copies[block_hash]
        if self._by_hash[block_hash] == block:
            self._by_hash[block_hash], _ = copies.popitem(last=False)
        else:
            del copies[block]
        if not copies:
            del self._copies[block_hash]
        return block_hash

    def validate(self, users: Iterable[Sequence[int]]) -> None:
        """Asserts that the counts are those of the users' blocks, and that nothing leaked. For tests."""
        refs: dict[int, int] = {}
        for blocks in users:
            for block in blocks:
                refs[block] = refs.get(block, 0) + 1
        assert refs == self._refs, (refs, self._refs)
        assert set(self._free) == set(range(self.size)) - refs.keys()
        assert all(self._hash_of[block] == block_hash for block_hash, block in self._by_hash.items())
        copies = [(block, block_hash) for block_hash, found in self._copies.items() for block in found]
        assert all(self._hash_of[block] == block_hash for block, block_hash in copies)
        assert len(self._hash_of) == len(self._by_hash) + len(copies)
