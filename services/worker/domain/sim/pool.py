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
        self._refs = [0] * size
        self._hashes: list[int | None] = [None] * size
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(size))
        # The same content may be in several blocks: requests that computed it at the same time.
        self._by_hash: dict[int, OrderedDict[int, None]] = {}
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
        found = []
        for block_hash in hashes:
            blocks = self._by_hash.get(block_hash)
            if not blocks:
                break
            found.append(next(iter(blocks)))
        return found

    def count_free(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are in the free queue."""
        return sum(block in self._free for block in blocks)

    def touch(self, blocks: Iterable[int]) -> None:
        """One more user of each of these blocks."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._free[block]
            self._refs[block] += 1

    def take(self, count: int) -> list[int]:
        """The least recently used free blocks, for new content. There must be enough."""
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._evict(block)
            self._refs[block] = 1
            taken.append(block)
        return taken

    def register(self, blocks: Sequence[int], hashes: Sequence[int]) -> None:
        """These blocks in a row are full, and these are the hashes of their content."""
        for block, block_hash in zip(blocks, hashes, strict=True):
            self._hashes[block] = block_hash
            self._by_hash.setdefault(block_hash, OrderedDict())[block] = None
        self._changes.append(Stored(tuple(hashes)))

    def release(self, blocks: Sequence[int]) -> None:
        """One user less of each; the first of them that become free are evicted first.

        Callers give a sequence's blocks in reverse, so that the tail of a prompt goes before its head.
        """
        self.releases += 1
        unhashed = []
        for block in blocks:
            self._refs[block] -= 1
            if self._refs[block]:
                continue
            self._free[block] = None
            if self._hashes[block] is None:
                unhashed.append(block)
        for block in reversed(unhashed):
            self._free.move_to_end(block, last=False)

    def reset(self) -> bool:
        """Forgets all content, unless a block is in use."""
        if len(self._free) < self.size:
            return False
        self._by_hash.clear()
        self._hashes = [None] * self.size
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

    def _evict(self, block: int) -> None:
        block_hash = self._hashes[block]
        if block_hash is None:
            return
        blocks = self._by_hash[block_hash]
        del blocks[block]
        if not blocks:
            del self._by_hash[block_hash]
        self._hashes[block] = None
        self._changes.append(Removed((block_hash,)))

    def validate(self, users: Iterable[Sequence[int]]) -> None:
        """Asserts that the counts are those of the users' blocks, and that nothing leaked. For tests."""
        refs = [0] * self.size
        for blocks in users:
            for block in blocks:
                refs[block] += 1
        assert refs == self._refs, (refs, self._refs)
        assert set(self._free) == {block for block in range(self.size) if refs[block] == 0}
        hashed = {block for block in range(self.size) if self._hashes[block] is not None}
        assert hashed == {block for blocks in self._by_hash.values() for block in blocks}
