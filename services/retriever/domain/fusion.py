"""Fuse rankings by reciprocal rank."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def reciprocal_rank_fusion(rankings: Sequence[Sequence[Key]], *, k: int = 60) -> list[tuple[Key, float]]:
    """All keys with their scores, best first: `score = sum of 1 / (k + rank)` over the rankings that have the key.

    Ranks count from 1. Equal scores keep the order in which the keys are first met, earlier rankings first.
    Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods",
    SIGIR 2009; k = 60 is theirs.
    """
    scores: dict[Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, start=1):
            scores[key] = scores.get(key, 0.0) + 1.0 / (k + rank)
    return sorted(scores.items(), key=lambda item: -item[1])
