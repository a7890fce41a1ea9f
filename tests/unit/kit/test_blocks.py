"""Block hashes: the definition, checked against a second way of computing it."""

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from services.kit.blocks import chain_hashes, next_hash, root_hash

TOKENS = st.lists(st.integers(min_value=0, max_value=2**32 - 1), max_size=200)


def by_definition(root: int, tokens: list[int], size: int) -> list[int]:
    hashes, parent = [], root
    for start in range(0, len(tokens) - size + 1, size):
        block = tokens[start : start + size]
        parent = xxhash.xxh3_64_intdigest(struct.pack(f"<Q{size}I", parent, *block))
        hashes.append(parent)
    return hashes


@given(tokens=TOKENS, size=st.integers(min_value=1, max_value=64), root=st.integers(min_value=0, max_value=2**64 - 1))
def test_chain_follows_the_definition(tokens: list[int], size: int, root: int) -> None:
    """h[i] = xxh3_64(h[i-1] as 8 bytes little-endian, then the block's tokens as uint32 little-endian)."""
    hashes = chain_hashes(root, tokens, size)
    assert hashes == by_definition(root, tokens, size)
    assert len(hashes) == len(tokens) // size


@given(tokens=TOKENS, size=st.integers(min_value=1, max_value=64))
def test_one_step_at_a_time_gives_the_same_chain(tokens: list[int], size: int) -> None:
    """A worker that learns of blocks one by one arrives at the router's hashes."""
    parent, found = root_hash(model="m", tokenizer_revision="r"), []
    for start in range(0, len(tokens) - size + 1, size):
        parent = next_hash(parent, tokens[start : start + size])
        found.append(parent)
    assert found == chain_hashes(root_hash(model="m", tokenizer_revision="r"), tokens, size)


def test_known_values() -> None:
    """Hashes are a contract between processes of different versions; these never change."""
    root = root_hash(model="sim-small", tokenizer_revision="63f21a46c9564cae", cache_salt="salt")
    assert root == xxhash.xxh3_64_intdigest(b"sim-small\x0063f21a46c9564cae\x00\x00salt")
    assert chain_hashes(root, list(range(64)), 32) == [16969716259210722718, 8993130478485133430]


def test_what_belongs_to_nobody_else_has_another_root() -> None:
    """Model, tokenizer, adapter and salt each separate prompts that are otherwise equal."""
    base = {"model": "m", "tokenizer_revision": "r", "adapter": "", "cache_salt": ""}
    roots = {root_hash(**base)} | {root_hash(**(base | {name: "x"})) for name in base}
    assert len(roots) == 5


def test_tokens_out_of_range_are_refused() -> None:
    with pytest.raises(OverflowError):
        next_hash(0, [2**32])
    with pytest.raises(ValueError, match="block_size"):
        chain_hashes(0, [1], 0)
