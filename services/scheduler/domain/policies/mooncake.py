"""Mooncake's Algorithm 1: the worker with the shortest time to the first token.

    ttft = prefill of what is queued there + prefill(prompt, resident prefix)

The engines here move no KV blocks between workers, so the algorithm's other branch (fetch the longest prefix from the
worker that has it) is never taken, as with an infinite balancing threshold. Its refusal of what would miss the
objectives is admission's, for all policies alike. Source: Qin et al., "Mooncake" (FAST 2025), Algorithm 1.
"""

from services.scheduler.domain.grammar import BestScore, Binding, Group, Policy, Weighted
from services.scheduler.domain.request import Request
from services.scheduler.domain.roster import Floats


class ShortestTtft:
    """Scores the negative time to the first token, in milliseconds."""

    def score(self, group: Group, _request: Request, _now: float, /) -> Floats:
        return -(group.columns.backlog_ms + group.estimate.prefill_ms)


def mooncake() -> Policy:
    return Policy(
        name="mooncake/1", binding=Binding.AT_ONCE, scorers=(Weighted(scorer=ShortestTtft()),), picker=BestScore()
    )
