"""Dynamo's default cost, in blocks; the lowest wins.

    prefill = max(0, (tokens queued for prefill + prompt) / block size - credit * resident blocks)
    decode  = blocks that the worker's requests use, with the uncached ones of this one
    cost    = prefill load scale * prefill + decode + active request weight * requests

Defaults: credit 1, scale 1, weight 0, temperature 0; equals are decided by chance. The blocks in use are those that its
leases will compute: uncached prompt tokens and the expected answer. Source: dynamo, lib/kv-router/src/scheduling/
selector/default.rs.
"""

from dataclasses import dataclass

import numpy as np

from services.scheduler.domain.grammar import BestScore, Binding, Group, Policy, Weighted
from services.scheduler.domain.request import Request
from services.scheduler.domain.roster import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoWeights:
    """What can be set."""

    overlap_credit: float = 1.0
    prefill_load_scale: float = 1.0
    active_request: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockCost:
    """Scores the negative cost in blocks."""

    weights: DynamoWeights

    def score(self, group: Group, _request: Request, _now: float, /) -> Floats:
        columns, prompt, weights = group.columns, group.offer.prompt_tokens, self.weights
        queued = columns.prefill_tokens + prompt
        prefill = np.maximum(0.0, queued - weights.overlap_credit * group.cached_tokens)
        used = columns.kv_tokens - columns.kv_room + prompt - group.cached_tokens
        blocks = (weights.prefill_load_scale * prefill + used) / columns.block_size
        return -(blocks + weights.active_request * columns.requests)


def dynamo(weights: DynamoWeights) -> Policy:
    return Policy(
        name="dynamo/1", binding=Binding.AT_ONCE, scorers=(Weighted(scorer=BlockCost(weights)),), picker=BestScore()
    )
