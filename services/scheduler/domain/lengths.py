"""How long answers tend to be, by tenant and model, learned from the leases that finished."""

from collections import OrderedDict

# The first guess, and the weight of each new observation.
_FIRST_GUESS = 128.0
_WEIGHT = 0.1


class OutputLengths:
    """Exponential mean of output tokens. Bounded: the pairs unused for longest are forgotten."""

    def __init__(self, *, max_entries: int) -> None:
        self._max_entries = max_entries
        self._means: OrderedDict[tuple[str, str], float] = OrderedDict()

    def expect(self, tenant_id: str, model: str, *, at_most: int) -> int:
        """The expected output of a request, 1 to `at_most` tokens."""
        mean = self._means.get((tenant_id, model), _FIRST_GUESS)
        return max(1, min(at_most, round(mean)))

    def learn(self, tenant_id: str, model: str, output_tokens: int) -> None:
        key = (tenant_id, model)
        mean = self._means.pop(key, None)
        self._means[key] = output_tokens if mean is None else mean + _WEIGHT * (output_tokens - mean)
        if len(self._means) > self._max_entries:
            self._means.popitem(last=False)
