"""A remote server's KV events, turned into changes of blocks by the names that router and scheduler use."""

from collections.abc import Iterable, Sequence

from downstack.smg import common_pb2 as pb

from services.kit.blocks import next_hash, root_hash
from services.worker.domain.mirror import Cleared, KvChange, Removed, Stored
from services.worker.domain.names import BlockNames

_DEVICE = frozenset({pb.KV_CACHE_TIER_UNSPECIFIED, pb.KV_CACHE_TIER_DEVICE})
# Servers put this before the salt that they make of images' names.
_SALT_MARK = "mm:"


class RemoteBlocks:
    """The server names a block by a hash of its own; ours follows from the parent's and the tokens.

    What lies elsewhere than on the device, belongs to another group of layers, or depends on more than tokens, adapter
    and salt has no name here, and neither has what comes after it.
    """

    def __init__(self, *, model: str, tokenizer_revision: str, block_size: int) -> None:
        self._model = model
        self._tokenizer_revision = tokenizer_revision
        self._block_size = block_size
        self._names = BlockNames[int]()
        self._sequence: int | None = None

    def translate(self, batch: pb.KvEventBatch) -> list[KvChange] | None:
        """The changes of a batch, in order. None: batches were lost, and a new subscription is needed."""
        if self._is_gap(batch):
            return None
        found: list[KvChange] = []
        for event in batch.events:
            match event.WhichOneof("data"):
                case "stored":
                    found.append(Stored(tuple(self._stored(event.stored))))
                case "removed":
                    gone = event.removed.block_hashes if _is_ours(event.removed) else ()
                    found.append(Removed(tuple(self._names.removed(gone))))
                case "cleared":
                    self._names.clear()
                    found.append(Cleared())
        return found

    def _is_gap(self, batch: pb.KvEventBatch) -> bool:
        last, self._sequence = self._sequence, batch.sequence_number
        if last is None or batch.HasField("snapshot"):
            return False
        # A batch without events repeats the number of the one before it.
        return batch.sequence_number > last + 1

    def _stored(self, event: pb.KvBlocksStored) -> list[int]:
        parent = self._parent(event) if _is_ours(event) else None
        names: list[int] = []
        for index, block in enumerate(event.blocks):
            if parent is None or len(block.token_ids) != self._block_size or _depends_on_more(event, index):
                break
            parent = next_hash(parent, block.token_ids)
            names.append(self._names.stored(block.block_hash, parent))
        return names

    def _parent(self, event: pb.KvBlocksStored) -> int | None:
        if event.HasField("parent_block_hash"):
            return self._names.ours(event.parent_block_hash)
        return root_hash(
            model=self._model,
            tokenizer_revision=self._tokenizer_revision,
            adapter=event.lora_name,
            cache_salt=_salt(event).removeprefix(_SALT_MARK),
        )


def _is_ours(event: pb.KvBlocksStored | pb.KvBlocksRemoved) -> bool:
    return event.tier in _DEVICE and event.locality != pb.KV_CACHE_LOCALITY_REMOTE and event.group_idx == 0


def _texts(event: pb.KvBlocksStored, index: int) -> Sequence[str]:
    """The textual extra keys of a block without the adapter's name."""
    keys = event.blocks[index].extra_keys
    return [key.text for key in keys if key.WhichOneof("key") == "text" and key.text != event.lora_name]


def _salt(event: pb.KvBlocksStored) -> str:
    if event.HasField("cache_salt"):
        return event.cache_salt
    return next(iter(_texts(event, 0)), "") if event.blocks else ""


def _depends_on_more(event: pb.KvBlocksStored, index: int) -> bool:
    """Whether a block depends on more than tokens, adapter and, for the first block of a prompt, the salt."""
    keys: Iterable[pb.KvBlockExtraKey] = event.blocks[index].extra_keys
    allowed = 1 if index == 0 and not event.HasField("parent_block_hash") else 0
    return any(key.WhichOneof("key") != "text" for key in keys) or len(_texts(event, index)) > allowed
