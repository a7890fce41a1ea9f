"""Any worker that can take the request, by chance."""

from collections.abc import Sequence

from services.scheduler.domain.grammar import Candidate, Chance, Policy


class AnyOf:
    """Picks by chance."""

    def pick(self, candidates: Sequence[Candidate], chance: Chance, /) -> Candidate:
        return candidates[int(chance.random() * len(candidates))]


def uniform() -> Policy:
    return Policy(name="random/1", picker=AnyOf())
