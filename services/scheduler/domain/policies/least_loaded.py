"""The worker with the fewest requests for the size of its batch."""

from services.scheduler.domain.grammar import BestScore, Group, Policy, Weighted
from services.scheduler.domain.request import Request
from services.scheduler.domain.roster import Floats


class Idleness:
    """Scores the free share of the batch."""

    def score(self, group: Group, _request: Request, _now: float, /) -> Floats:
        return -group.columns.requests / group.columns.max_num_seqs


def least_loaded() -> Policy:
    return Policy(name="least-loaded/1", scorers=(Weighted(scorer=Idleness()),), picker=BestScore())
