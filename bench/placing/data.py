"""The data of the decision benchmark: who holds which blocks, and which prompts come.

All prompts begin with the same 64 blocks, which every worker holds, as a system prompt would be. Beyond them are
chains, each on four workers. A prompt follows a chain up to a random block; what comes after is new.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.kit.blocks import chain_hashes, root_hash

HOT_BLOCKS = 64
COPIES = 4
_VOCABULARY = 150_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much of everything."""

    workers: int
    blocks: int
    prompt_blocks: int
    block_size: int
    rounds: int
    seed: int


def make(shape: Shape, path: Path) -> int:
    """Write the data. Returns the resident blocks, each counted on each of its workers."""
    random = np.random.default_rng(shape.seed)
    hot = min(HOT_BLOCKS, shape.prompt_blocks // 2)
    copies = min(COPIES, shape.workers)
    tail = shape.prompt_blocks - hot
    chains = max(1, round((shape.blocks - hot * shape.workers) / (copies * tail)))
    tokens = random.integers(0, _VOCABULARY, (chains, shape.prompt_blocks * shape.block_size), dtype=np.uint32)
    tokens[:, : hot * shape.block_size] = tokens[0, : hot * shape.block_size]
    owners = np.array([random.choice(shape.workers, copies, replace=False) for _ in range(chains)])
    prompts = tokens[random.integers(0, chains, shape.rounds)]
    for prompt, kept in zip(prompts, random.integers(0, shape.prompt_blocks + 1, shape.rounds), strict=True):
        new = prompt[kept * shape.block_size :]
        new[:] = random.integers(0, _VOCABULARY, len(new), dtype=np.uint32)
    np.savez(
        path,
        chains=tokens,
        chain_hashes=_hashes(tokens, shape.block_size),
        owners=owners,
        prompts=prompts,
        prompt_hashes=_hashes(prompts, shape.block_size),
        numbers=np.array([shape.workers, hot, shape.block_size]),
    )
    return hot * shape.workers + chains * copies * tail


def _hashes(tokens: np.ndarray, block_size: int) -> np.ndarray:
    root = root_hash(model="m", tokenizer_revision="r")
    return np.array([chain_hashes(root, row.tolist(), block_size) for row in tokens], np.uint64)
