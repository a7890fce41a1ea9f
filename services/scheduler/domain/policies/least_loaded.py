"""The worker with the fewest requests for the size of its batch."""

from services.scheduler.domain.grammar import BestScore, Candidate, Policy, Weighted
from services.scheduler.domain.request import Request


class Idleness:
    """Scores the free share of the batch."""

    def score(self, candidate: Candidate, _request: Request, _now: float, /) -> float:
        return -candidate.held.requests / candidate.worker.spec.max_num_seqs


def least_loaded() -> Policy:
    return Policy(name="least-loaded/1", scorers=(Weighted(scorer=Idleness()),), picker=BestScore())
