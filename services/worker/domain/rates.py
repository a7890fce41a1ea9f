"""How fast the engine is, learned from what it does."""

from dataclasses import dataclass

_FORGET = 0.98
# Fewer observations than this say less than the declaration.
_ENOUGH = 4.0


@dataclass(frozen=True, slots=True)
class Rates:
    """A linear model of an engine's speed, in milliseconds.

    Attributes:
        prefill_base_ms: Each step that prefills.
        prefill_ms_per_token: Each new token of a prompt.
        decode_base_ms: A decode step with one request.
        decode_ms_per_request: Each further request of the batch.
        prefill_ms_per_pair: Each pair of a new token and a token before it: attention.
        decode_ms_per_context_token: Each token of context, summed over the batch.
    """

    prefill_base_ms: float
    prefill_ms_per_token: float
    decode_base_ms: float
    decode_ms_per_request: float
    prefill_ms_per_pair: float = 0.0
    decode_ms_per_context_token: float = 0.0

    def prefill_ms(self, new_tokens: int, *, start: int = 0) -> float:
        """The time to compute `new_tokens` tokens of a prompt that follow `start` computed ones."""
        pairs = new_tokens * (start + new_tokens / 2)
        return self.prefill_base_ms + self.prefill_ms_per_token * new_tokens + self.prefill_ms_per_pair * pairs

    def decode_ms(self, batch: int, *, context_tokens: int = 0) -> float:
        """The time of a step that decodes for `batch` requests, which hold so many tokens together."""
        further = self.decode_ms_per_request * (batch - 1)
        return self.decode_base_ms + further + self.decode_ms_per_context_token * context_tokens


class Line:
    """y = base + slope * x by least squares, where older observations count less and less."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, x: float, y: float) -> None:
        """Takes one observation in."""
        self._weight = self._weight * _FORGET + 1.0
        self._x = self._x * _FORGET + x
        self._y = self._y * _FORGET + y
        self._xx = self._xx * _FORGET + x * x
        self._xy = self._xy * _FORGET + x * y

    def fit(self, *, base: float, slope: float) -> tuple[float, float]:
        """(base, slope), neither negative; the declared ones where too little was seen.

        Where all observations have about the same x, the declared slope stays as far as it fits under them.
        """
        if self._weight < _ENOUGH:
            return base, slope
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        if variance > 0.01 * mean_x * mean_x + 1e-9:
            slope = max(0.0, (self._xy / self._weight - mean_x * mean_y) / variance)
        if mean_x > 0:
            slope = min(slope, mean_y / mean_x)
        return max(0.0, mean_y - slope * mean_x), slope


class RateEstimate:
    """The declared rates, moved by what was measured."""

    def __init__(self, declared: Rates) -> None:
        self._declared = declared
        self._prefill = Line()
        self._decode = Line()

    def saw_prefill(self, *, new_tokens: int, ms: float) -> None:
        """A prefill of `new_tokens` uncached tokens took `ms`."""
        self._prefill.observe(new_tokens, ms)

    def saw_decode(self, *, batch: int, ms: float) -> None:
        """A step that decoded for `batch` requests took `ms`."""
        self._decode.observe(batch - 1, ms)

    def current(self) -> Rates:
        """The estimate now."""
        declared = self._declared
        prefill = self._prefill.fit(base=declared.prefill_base_ms, slope=declared.prefill_ms_per_token)
        decode = self._decode.fit(base=declared.decode_base_ms, slope=declared.decode_ms_per_request)
        return Rates(*prefill, *decode, declared.prefill_ms_per_pair, declared.decode_ms_per_context_token)
