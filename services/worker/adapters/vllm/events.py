"""vLLM's KV events, turned into changes of blocks by the names that router and scheduler use."""

from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from prometheus_client import Counter
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored

from services.kit.blocks import next_hash, root_hash
from services.worker.domain.mirror import Cleared, KvChange, Removed, Stored
from services.worker.domain.names import BlockNames

_log = structlog.get_logger()
UNMAPPED = Counter("downstack_worker_kv_blocks_unmapped", "Blocks of the engine that have no name here.", ("why",))


class BlockTranslator:
    """vLLM names a block by a hash of its own; ours follows from the parent's and the tokens, which the event has.

    A first block's parent is the root, which the cache salt goes into: vLLM publishes it among the block's extra keys.
    Blocks whose content is not their tokens alone (images, embeddings) have no name here and are left out, and with
    them all that comes after them.
    """

    def __init__(self, *, model: str, tokenizer_revision: str, block_size: int) -> None:
        self._model = model
        self._tokenizer_revision = tokenizer_revision
        self._block_size = block_size
        self._names = BlockNames[int | bytes]()

    def __len__(self) -> int:
        return len(self._names)

    def translate(self, events: Iterable[Any]) -> list[KvChange]:
        """The changes of one batch of events, in order."""
        found: list[KvChange] = []
        for event in events:
            if isinstance(event, BlockStored):
                found.append(Stored(tuple(self._stored(event))))
            elif isinstance(event, BlockRemoved):
                found.append(Removed(tuple(self._names.removed(event.block_hashes))))
            elif isinstance(event, AllBlocksCleared):
                self._names.clear()
                found.append(Cleared())
        return found

    def forget(self) -> list[KvChange]:
        """Events were lost, so nothing is certain any more: what comes from now on is."""
        self._names.clear()
        return [Cleared()]

    def _stored(self, event: BlockStored) -> list[int]:
        parent = self._parent(event)
        if parent is None or event.block_size != self._block_size:
            UNMAPPED.labels("parent" if parent is None else "block_size").inc(len(event.block_hashes))
            return []
        names = []
        for index, theirs in enumerate(event.block_hashes):
            if _has_other_content(event, index):
                UNMAPPED.labels("content").inc(len(event.block_hashes) - index)
                break
            start = index * self._block_size
            parent = next_hash(parent, event.token_ids[start : start + self._block_size])
            names.append(self._names.stored(theirs, parent))
        return names

    def _parent(self, event: BlockStored) -> int | None:
        if event.parent_block_hash is not None:
            return self._names.ours(event.parent_block_hash)
        return root_hash(
            model=self._model,
            tokenizer_revision=self._tokenizer_revision,
            adapter=event.lora_name or "",
            cache_salt=_salt(event),
        )


def _texts(event: BlockStored, index: int) -> list[str]:
    """The textual extra keys of a block without the adapter's name, which comes first."""
    keys = _keys(event, index)
    texts = [key for key in keys if isinstance(key, str)]
    return texts[1:] if event.lora_name and texts[:1] == [event.lora_name] else texts


def _keys(event: BlockStored, index: int) -> Sequence[Any]:
    return (event.extra_keys[index] if event.extra_keys else None) or ()


def _salt(event: BlockStored) -> str:
    texts = _texts(event, 0)
    return texts[0] if texts else ""


def _has_other_content(event: BlockStored, index: int) -> bool:
    """Whether a block depends on more than tokens, adapter and, for the first block of a prompt, the salt."""
    allowed = 1 if index == 0 and event.parent_block_hash is None else 0
    return any(not isinstance(key, str) for key in _keys(event, index)) or len(_texts(event, index)) > allowed
