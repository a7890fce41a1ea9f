"""llm-d's recommended stack: stay where the prefix is unless that is far slower, then go by the tokens in flight.

    sticky  = candidates that hold at least 0.80 of the prompt's blocks
    broken  = min ttft(sticky) - min ttft(others) > 18,000 ms,  ttft = tokens in flight / 15,928 tokens per second
    score   = 1 - min(1, tokens in flight / 4,194,304)

Tokens in flight are uncached prompt tokens that are still to be computed. The throughput is that of one Qwen3-32B on
two H100; it does not follow the workers' own rates. Source: llm-d-router, pkg/epp/framework/plugins/scheduling/
{filter/prefixcacheaffinity,scorer/tokenload}.
"""

from dataclasses import dataclass

import numpy as np

from services.scheduler.domain.grammar import BestScore, Binding, Group, Policy, Weighted
from services.scheduler.domain.policies.matching import matched_share
from services.scheduler.domain.request import Request
from services.scheduler.domain.roster import Bools, Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmDAffinityWeights:
    """What can be set."""

    affinity_threshold: float = 0.80
    max_ttft_penalty_ms: float = 18_000.0
    peak_prefill_tokens_per_s: float = 15_928.0
    max_tokens: float = 4_194_304.0


@dataclass(frozen=True, slots=True)
class PrefixAffinity:
    """Excludes workers that do not hold the prefix, where others do and are not far slower."""

    weights: LlmDAffinityWeights
    name: str = "affinity"

    def admits(self, group: Group, _request: Request, /) -> Bools | bool:
        sticky = group.admitted & (matched_share(group) >= self.weights.affinity_threshold)
        others = group.admitted & ~sticky
        if not sticky.any() or not others.any():
            return True
        ttft_ms = 1000 * group.columns.prefill_tokens / self.weights.peak_prefill_tokens_per_s
        penalty_ms = ttft_ms[sticky].min() - ttft_ms[others].min()
        return True if penalty_ms > self.weights.max_ttft_penalty_ms else sticky


@dataclass(frozen=True, slots=True)
class TokenLoad:
    """Scores how few tokens are in flight."""

    max_tokens: float

    def score(self, group: Group, _request: Request, _now: float, /) -> Floats:
        return 1.0 - np.minimum(1.0, group.columns.prefill_tokens / self.max_tokens)


def llm_d_affinity(weights: LlmDAffinityWeights) -> Policy:
    return Policy(
        name="llm-d-affinity/1",
        binding=Binding.AT_ONCE,
        filters=(PrefixAffinity(weights),),
        scorers=(Weighted(scorer=TokenLoad(weights.max_tokens)),),
        picker=BestScore(),
    )
