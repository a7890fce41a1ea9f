"""Chained hashes of a prompt's blocks: the names by which router, scheduler and worker speak of KV-cache blocks."""

import sys
from array import array
from collections.abc import Sequence

import xxhash


def root_hash(*, model: str, tokenizer_revision: str, adapter: str = "", cache_salt: str = "") -> int:
    """The hash before the first block. Prompts share blocks only where all four are equal."""
    return xxhash.xxh3_64_intdigest(f"{model}\0{tokenizer_revision}\0{adapter}\0{cache_salt}".encode())


def next_hash(parent: int, block: Sequence[int]) -> int:
    """The hash of a block after `parent`: xxh3_64(parent as 8 bytes, then each token as 4 bytes, little-endian)."""
    return xxhash.xxh3_64_intdigest(parent.to_bytes(8, "little") + _packed(block))


def chain_hashes(root: int, token_ids: Sequence[int], block_size: int) -> list[int]:
    """The hashes of the full blocks of a prompt, in order. A last block that is not full has none."""
    if block_size < 1:
        raise ValueError("block_size is at least 1")
    packed, width = _packed(token_ids), 4 * block_size
    hashes, parent = [], root
    for start in range(0, len(token_ids) // block_size * width, width):
        parent = xxhash.xxh3_64_intdigest(parent.to_bytes(8, "little") + packed[start : start + width])
        hashes.append(parent)
    return hashes


def _packed(token_ids: Sequence[int]) -> bytes:
    tokens = array("I", token_ids)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tobytes()
