"""llm-d's default weights: prefix match 3, queue depth 2, KV utilization 2; the highest sum wins.

    prefix = matched blocks / blocks of the prompt
    queue  = (max - q) / (max - min) over the candidates; 1 where all are equal
    kv     = 1 - usage

Queue depth and KV usage are what the workers reported last. Source: llm-d-router, pkg/epp/config/loader/defaults.go and
pkg/epp/framework/plugins/scheduling/scorer/{prefix,queuedepth,kvcacheutilization}.
"""

from dataclasses import dataclass

import numpy as np

from services.scheduler.domain.grammar import BestScore, Binding, Group, Policy, Weighted
from services.scheduler.domain.policies.matching import matched_share
from services.scheduler.domain.request import Request
from services.scheduler.domain.roster import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmDWeights:
    """What can be set."""

    prefix: float = 3.0
    queue: float = 2.0
    kv: float = 2.0


class PrefixMatch:
    """Scores the share of the prompt's blocks that is resident."""

    def score(self, group: Group, _request: Request, _now: float, /) -> Floats:
        return matched_share(group)


class QueueDepth:
    """Scores how short the queue in the engine is, between the longest and the shortest."""

    def score(self, group: Group, _request: Request, _now: float, /) -> Floats:
        waiting = group.columns.waiting
        counted = waiting[group.admitted]
        if not len(counted) or counted.max() == counted.min():
            return np.ones(len(group))
        shortness: Floats = (counted.max() - waiting) / (counted.max() - counted.min())
        return shortness


class KvUtilization:
    """Scores the free share of the KV cache."""

    def score(self, group: Group, _request: Request, _now: float, /) -> Floats:
        return 1.0 - group.columns.kv_usage


def llm_d(weights: LlmDWeights) -> Policy:
    return Policy(
        name="llm-d/1",
        binding=Binding.AT_ONCE,
        scorers=(
            Weighted(scorer=PrefixMatch(), weight=weights.prefix),
            Weighted(scorer=QueueDepth(), weight=weights.queue),
            Weighted(scorer=KvUtilization(), weight=weights.kv),
        ),
        picker=BestScore(),
    )
