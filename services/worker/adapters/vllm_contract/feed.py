"""The KV cache as subscribers of vLLM's contract hear of it."""

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from downstack.scheduler.v1.scheduler_pb2 import ConnectRequest, KvDelta, KvSnapshot
from downstack.smg import common_pb2 as pb

from services.worker.adapters.vllm_contract.blocks import Block, BlockBook
from services.worker.app.worker import Worker

# Gateways refuse messages above 4 MiB; a block takes a few bytes a token.
_EVENTS_PER_BATCH = 256
_BLOCKS_PER_EVENT = 64


@dataclass(frozen=True)
class Change:
    """Events that belong together; `whole` says that they are the whole state."""

    events: Sequence[pb.KvCacheEvent]
    whole: bool


class View:
    """One subscriber's view: the blocks that are resident, known to the book, and the owner's."""

    def __init__(self, book: BlockBook, *, owner: str) -> None:
        self._book = book
        self._owner = owner
        self._resident: set[int] = set()
        self._shown: set[int] = set()
        # Resident and known, but not told yet: a block before it is missing.
        self._pending: set[int] = set()
        self._parts: list[int] = []
        self._events: list[pb.KvCacheEvent] = []
        self._whole = False

    def take(self, message: ConnectRequest) -> None:
        """Takes in what the worker says of its mirror."""
        match message.WhichOneof("message"):
            case "kv_snapshot":
                self._replace(message.kv_snapshot)
            case "kv_delta":
                self._apply(message.kv_delta)

    def learn(self, names: Sequence[int]) -> None:
        """These blocks are known now."""
        self._pending.update(name for name in names if name in self._resident and name not in self._shown)

    def change(self) -> Change:
        """What is to be told since the last time."""
        for name in sorted(self._pending):
            path = self._path(name)
            if path:
                self._show(path)
        change = Change(self._events, self._whole)
        self._events, self._whole = [], False
        return change

    def _replace(self, part: KvSnapshot) -> None:
        self._parts += part.hashes
        if part.last:
            self._clear()
            self._whole = True
            self._resident, self._parts = set(self._parts), []
            self.learn(self._book.owned(self._owner))

    def _apply(self, delta: KvDelta) -> None:
        for change in delta.changes:
            match change.WhichOneof("change"):
                case "stored":
                    self._resident.update(change.stored.hashes)
                    self.learn([name for name in change.stored.hashes if self._book.get(name)])
                case "removed":
                    self._remove(change.removed.hashes)
                case "cleared":
                    self._clear()

    def _remove(self, names: Sequence[int]) -> None:
        self._resident.difference_update(names)
        self._pending.difference_update(names)
        gone = [name for name in names if name in self._shown]
        self._shown.difference_update(gone)
        if gone:
            removed = pb.KvBlocksRemoved(block_hashes=[_signed(name) for name in gone])
            self._events.append(pb.KvCacheEvent(removed=removed))

    def _clear(self) -> None:
        self._resident.clear()
        self._pending.clear()
        self._shown.clear()
        self._events.append(pb.KvCacheEvent(cleared=pb.KvCacheCleared()))

    def _path(self, name: int) -> list[Block]:
        """The blocks that lead to this one and were not told yet, in order; none if one of them is missing."""
        path: list[Block] = []
        at: int | None = name
        while at is not None and at not in self._shown:
            block = self._book.get(at)
            if block is None or block.owner != self._owner or at not in self._resident:
                return []
            path.append(block)
            at = block.parent
        return path[::-1]

    def _show(self, path: Sequence[Block]) -> None:
        for start in range(0, len(path), _BLOCKS_PER_EVENT):
            blocks = path[start : start + _BLOCKS_PER_EVENT]
            stored = pb.KvBlocksStored(blocks=[_block(block) for block in blocks])
            if blocks[0].parent is not None:
                stored.parent_block_hash = _signed(blocks[0].parent)
            if blocks[0].salt:
                stored.cache_salt = blocks[0].salt
            self._events.append(pb.KvCacheEvent(stored=stored))
        names = [block.name for block in path]
        self._shown.update(names)
        self._pending.difference_update(names)


async def kv_batches(worker: Worker, book: BlockBook, *, owner: str) -> AsyncGenerator[pb.KvEventBatch, None]:
    """Numbered batches: the whole state first, and its changes; ends when the worker has another engine."""
    view, sequence = View(book, owner=owner), 0
    with worker.uplink() as uplink, book.listener(uplink.load_changed) as listener:
        while messages := await uplink.next_batch():
            for message in messages:
                view.take(message)
            view.learn(listener.take())
            for batch in _batches(view.change()):
                sequence += 1
                batch.sequence_number, batch.timestamp = sequence, time.time()
                yield batch


def _batches(change: Change) -> Iterator[pb.KvEventBatch]:
    parts = range(0, len(change.events), _EVENTS_PER_BATCH)
    blocks = sum(len(event.stored.blocks) for event in change.events) if change.whole else 0
    for index, start in enumerate(parts):
        batch = pb.KvEventBatch(events=change.events[start : start + _EVENTS_PER_BATCH])
        if change.whole:
            batch.snapshot.index, batch.snapshot.count, batch.snapshot.blocks = index, len(parts), blocks
        yield batch


def _block(block: Block) -> pb.KvBlock:
    return pb.KvBlock(block_hash=_signed(block.name), token_ids=block.tokens, block_size=len(block.tokens))


def _signed(name: int) -> int:
    """The contract has the 64 bits of a hash as a signed number."""
    return name - 2**64 if name >= 2**63 else name
