"""smg's cache_aware with its approximate tree: shortest queue where loads differ much, else the best match, if good.

    imbalanced = max - min > 32 and max > 1.1 * min       requests in flight, over the candidates
    imbalanced                          -> the fewest requests
    matched / prompt > 0.5              -> the worker that the tree names for the longest match
    otherwise                           -> the fewest requests

The tree holds what was sent where, not what the engines hold: it never hears of an eviction. Here it is a table of
chained block hashes, which name the nodes of such a tree. It forgets the blocks that were sent least recently beyond
`max_blocks`, where smg looks each 120 s for workers beyond 2^26 tokens. Of several workers that were sent the longest
match, the latest is named. Ties go to the first worker. Source: smg, model_gateway/src/policies/cache_aware.rs.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.scheduler.domain.grammar import Binding, Chance, FirstBest, Group, Policy, Slate, Weighted
from services.scheduler.domain.request import Request
from services.scheduler.domain.roster import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class SmgWeights:
    """What can be set."""

    cache_threshold: float = 0.5
    balance_abs_threshold: float = 32
    balance_rel_threshold: float = 1.1
    max_blocks: float = 1_000_000


class SentBlocks:
    """Block hash → the workers that were sent it, the latest last. Bounded: the longest unsent go first."""

    def __init__(self, *, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._sent: OrderedDict[int, dict[str, None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sent)

    def longest(self, hashes: Sequence[int]) -> tuple[str, int]:
        """The worker of the longest prefix that was sent, and its blocks; "" and 0 for none."""
        found, depth = None, 0
        for block in hashes:
            workers = self._sent.get(block)
            if workers is None:
                break
            found, depth = workers, depth + 1
        return (next(reversed(found)), depth) if found else ("", 0)

    def insert(self, hashes: Sequence[int], worker_id: str) -> None:
        # The tail first, so that it is forgotten before what it hangs on.
        for block in reversed(hashes):
            workers = self._sent.setdefault(block, {})
            workers.pop(worker_id, None)
            workers[worker_id] = None
            self._sent.move_to_end(block)
        while len(self._sent) > self._max_blocks:
            self._sent.popitem(last=False)


class CacheAware:
    """Scores and picks; remembers what it picked."""

    def __init__(self, weights: SmgWeights) -> None:
        self._weights = weights
        self._tree = SentBlocks(max_blocks=int(weights.max_blocks))
        self._first = FirstBest()

    def score(self, group: Group, _request: Request, _now: float, /) -> Floats:
        load, offer = group.columns.requests, group.offer
        if self._imbalanced(load[group.admitted]):
            return -load
        worker_id, blocks = self._tree.longest(offer.block_hashes)
        if blocks * offer.block_size <= self._weights.cache_threshold * offer.prompt_tokens:
            return -load
        scores = np.zeros(len(group))
        row = group.roster.rows.get(worker_id)
        if row is not None:
            scores[row] = 1.0
        return scores

    def _imbalanced(self, load: Floats) -> bool:
        if not len(load):
            return False
        most, least = float(load.max()), float(load.min())
        weights = self._weights
        return most - least > weights.balance_abs_threshold and most > weights.balance_rel_threshold * least

    def pick(self, slate: Slate, chance: Chance, /) -> int:
        row = self._first.pick(slate, chance)
        group, worker = slate.place(row)
        self._tree.insert(group.offer.block_hashes, worker.worker_id)
        return row


def smg(weights: SmgWeights) -> Policy:
    cache_aware = CacheAware(weights)
    return Policy(
        name="smg-cache-aware/1", binding=Binding.AT_ONCE, scorers=(Weighted(scorer=cache_aware),), picker=cache_aware
    )
