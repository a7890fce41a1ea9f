"""Any worker that can take the request, by chance."""

from services.scheduler.domain.grammar import Chance, Policy, Slate


class AnyOf:
    """Picks by chance."""

    def pick(self, slate: Slate, chance: Chance, /) -> int:
        return int(slate.passed[int(chance.random() * len(slate.passed))])


def uniform() -> Policy:
    return Policy(name="random/1", picker=AnyOf())
