"""How long answers tend to be, by tenant and model, learned from the leases that finished."""

import math
from collections import OrderedDict
from typing import NamedTuple

# The weight of each new observation.
_WEIGHT = 0.1


class Length(NamedTuple):
    """Exponential mean and variance of an answer's tokens."""

    mean: float
    variance: float

    def after(self, tokens: int) -> "Length":
        """With one more observation."""
        apart = tokens - self.mean
        return Length(self.mean + _WEIGHT * apart, (1 - _WEIGHT) * (self.variance + _WEIGHT * apart * apart))


_FIRST_GUESS = Length(128.0, 128.0**2)


def _first(tokens: int) -> Length:
    """One observation says nothing of the spread: as wide as it is long."""
    return Length(tokens, float(tokens) ** 2)


class OutputLengths:
    """What is expected of a tenant on a model; of one that is new there, what the model's others had.

    Bounded: the pairs unused for longest are forgotten.
    """

    def __init__(self, *, max_entries: int) -> None:
        self._max_entries = max_entries
        self._lengths: OrderedDict[tuple[str, str], Length] = OrderedDict()

    def _of(self, tenant_id: str, model: str) -> Length:
        return self._lengths.get((tenant_id, model)) or self._lengths.get(("", model), _FIRST_GUESS)

    def expect(self, tenant_id: str, model: str, *, at_most: int) -> int:
        """The expected output of a request, 1 to `at_most` tokens."""
        return max(1, min(at_most, round(self._of(tenant_id, model).mean)))

    def expect_short(self, tenant_id: str, model: str, *, at_most: int) -> int:
        """The output of a request that turns out short: one standard deviation below the mean, at least 1 token."""
        length = self._of(tenant_id, model)
        return max(1, min(at_most, round(length.mean - math.sqrt(length.variance))))

    def learn(self, tenant_id: str, model: str, output_tokens: int) -> None:
        for key in ((tenant_id, model), ("", model)):
            known = self._lengths.pop(key, None)
            self._lengths[key] = _first(output_tokens) if known is None else known.after(output_tokens)
        while len(self._lengths) > self._max_entries:
            self._lengths.popitem(last=False)
