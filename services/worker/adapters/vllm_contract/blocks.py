"""What is behind a block's hash, for the blocks of this contract's own requests."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.kit.blocks import next_hash


@dataclass(frozen=True, slots=True)
class Block:
    """One block.

    Attributes:
        name: Its hash, as the worker's mirror has it.
        parent: The hash of the block before it. None: it is a prompt's first.
        owner: Who may know what is in it.
        salt: The cache salt that its owner asked for.
    """

    name: int
    parent: int | None
    tokens: "array[int]"
    owner: str
    salt: str


@dataclass(eq=False)
class Listener:
    """Hears of the blocks that become known."""

    wake: Callable[[], None]
    names: dict[int, None] = field(default_factory=dict)

    def take(self) -> list[int]:
        """The names since the last time."""
        names, self.names = list(self.names), {}
        return names


class BlockBook:
    """The blocks of the requests that came by this contract; at most `limit`, the oldest forgotten first.

    A mirror knows hashes only, and subscribers of the contract need tokens. What other callers' prompts are made of is
    none of a subscriber's business, so only blocks are known whose tokens came from the owner.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._blocks: dict[int, Block] = {}
        self._listeners: set[Listener] = set()

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, name: int) -> Block | None:
        """A block that is known."""
        return self._blocks.get(name)

    def owned(self, owner: str) -> list[int]:
        """The names of all blocks that are known and the owner's."""
        return [name for name, block in self._blocks.items() if block.owner == owner]

    def add(self, block: Block) -> None:
        """Knows a block from now on."""
        if block.name in self._blocks:
            return
        if len(self._blocks) >= self._limit:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[block.name] = block
        for listener in self._listeners:
            listener.names[block.name] = None
            listener.wake()

    @contextmanager
    def listener(self, wake: Callable[[], None]) -> Iterator[Listener]:
        """Inside the block, hears of blocks that become known; `wake` is called at each."""
        listener = Listener(wake)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)


class Chain:
    """The blocks of one growing sequence."""

    def __init__(self, book: BlockBook, *, root: int, block_size: int, owner: str, salt: str) -> None:
        self._book = book
        self._name = root
        self._parent: int | None = None
        self._block_size = block_size
        self._owner = owner
        self._salt = salt
        self._rest: list[int] = []

    def fork(self) -> "Chain":
        """A sequence that goes on from here by itself."""
        copy = Chain(self._book, root=self._name, block_size=self._block_size, owner=self._owner, salt=self._salt)
        copy._parent, copy._rest = self._parent, list(self._rest)
        return copy

    def extend(self, tokens: Sequence[int]) -> None:
        """The sequence goes on with these tokens."""
        self._rest += tokens
        size = self._block_size
        whole = len(self._rest) - len(self._rest) % size
        for start in range(0, whole, size):
            block = self._rest[start : start + size]
            self._name = next_hash(self._name, block)
            self._book.add(Block(self._name, self._parent, array("I", block), self._owner, self._salt))
            self._parent = self._name
        del self._rest[:whole]
