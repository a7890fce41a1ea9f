"""The default: the value of the answer, less its cost, less what its lateness costs its caller and all others.

    worth  = value * quality - cost - late
    delay  = prefill(w) * price of waiting * (always + behind * prompts that wait on a worker, on average)
    score  = worth - delay

`delay` is what the others pay: while a prompt is computed, whoever comes next waits. How many will come is not known,
but where many wait already, many will; so what a worker need not compute, because it holds it, counts the more the
busier the fleet is. An idle fleet goes by the time to the first token alone, nearly; a busy one stays where the prefix
is until another worker is ahead by several times what it would have to compute again. Then the miss makes a second
copy. What it costs the answers that run there is left to their pace (domain/pace.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from services.scheduler.domain.cost import Objectives, late, marginal
from services.scheduler.domain.grammar import BestScore, Group, Policy, Weighted
from services.scheduler.domain.request import Priority, Request
from services.scheduler.domain.roster import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class WorthWeights:
    """What can be set."""

    delay: float = 1.0
    """Weight of what a placement costs the others."""
    always: float = 1.0
    """Requests that a prompt delays on an idle fleet."""
    behind: float = 6.0
    """Requests that it delays, for each prompt that waits on an average worker."""


@dataclass(frozen=True, slots=True)
class Worth:
    """Scores in currency units. `value` is what a perfect answer is worth where the caller does not say.

    A caller that does not say, but sets a bound, is given the cheapest of sufficient quality, or else the fastest that
    it can afford.
    """

    objectives: Mapping[Priority, Objectives]
    value: float

    def score(self, group: Group, request: Request, now: float, /) -> Floats:
        left_ms = 1000 * (request.deadline_at - now)
        lateness = late(group.estimate, self.objectives[request.priority], left_ms=left_ms)
        if request.value is None and request.min_quality is not None:
            return -group.estimate.cost - lateness
        if request.value is None and request.max_cost is not None:
            return -lateness
        value = self.value if request.value is None else request.value
        return value * group.offer.quality - group.estimate.cost - lateness


@dataclass(frozen=True, slots=True)
class Delay:
    """Scores, negative and in currency units, the time that a placement takes from others."""

    objectives: Mapping[Priority, Objectives]
    weights: WorthWeights

    def score(self, group: Group, request: Request, now: float, /) -> Floats:
        columns, weights = group.columns, self.weights
        delayed = weights.always + weights.behind * _mean(columns.prefills, columns.ready)
        left_ms = 1000 * (request.deadline_at - now)
        per_ms = marginal(group.estimate, self.objectives[request.priority], left_ms=left_ms)
        return -group.estimate.prefill_ms * per_ms * delayed


def _mean(counts: Floats, ready: Floats) -> float:
    """Of those that are ready."""
    among = np.count_nonzero(ready)
    return float(counts @ ready) / among if among else 0.0


def ours(weights: WorthWeights, objectives: Mapping[Priority, Objectives], *, value: float) -> Policy:
    return Policy(
        name="worth/2",
        scorers=(
            Weighted(scorer=Worth(objectives, value)),
            Weighted(scorer=Delay(objectives, weights), weight=weights.delay),
        ),
        picker=BestScore(),
    )
