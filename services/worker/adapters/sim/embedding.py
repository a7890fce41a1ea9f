"""What the simulated engine makes of a text: a unit vector that depends on all of its tokens, and on nothing else."""

from collections.abc import Sequence

import numpy as np

from services.kit.blocks import next_hash
from services.worker.ports import Vector

DIMENSIONS = 384


def unit_vector(token_ids: Sequence[int]) -> Vector:
    """Texts with the same tokens have the same vector; all others are about orthogonal."""
    values = np.random.default_rng(next_hash(0, token_ids)).standard_normal(DIMENSIONS)
    return tuple((values / np.linalg.norm(values)).tolist())
