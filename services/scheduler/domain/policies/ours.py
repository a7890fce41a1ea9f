"""The default: value of the answer, less its cost, less what its lateness costs; the highest wins."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.scheduler.domain.cost import Objectives, late
from services.scheduler.domain.grammar import BestScore, Group, Policy, Weighted
from services.scheduler.domain.request import Priority, Request
from services.scheduler.domain.roster import Floats


@dataclass(frozen=True, slots=True)
class Worth:
    """Scores in currency units. `value` is what a perfect answer is worth where the caller does not say."""

    objectives: Mapping[Priority, Objectives]
    value: float

    def score(self, group: Group, request: Request, now: float, /) -> Floats:
        value = self.value if request.value is None else request.value
        left_ms = 1000 * (request.deadline_at - now)
        lateness = late(group.estimate, self.objectives[request.priority], left_ms=left_ms)
        return value * group.offer.quality - group.estimate.cost - lateness


def ours(objectives: Mapping[Priority, Objectives], *, value: float) -> Policy:
    scorer = Worth(objectives, value)
    return Policy(name="worth/1", scorers=(Weighted(scorer=scorer),), picker=BestScore())
