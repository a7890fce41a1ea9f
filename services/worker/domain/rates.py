"""How fast the engine is, learned from what it does."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.worker.domain.regression import Regression

# Of so many observations each, an estimate is made: steps that decode are many, prefills are few.
_FORGET_PREFILL = 1 - 1 / 100
_FORGET_DECODE = 1 - 1 / 1000
# Attention to so many tokens, and reading so many of context, takes about as long as what a step does without them.
_PAIRS_PER_TOKEN = {2: (1, 2_000.0)}
_CONTEXT_PER_STEP = {2: (0, 20_000.0)}


@dataclass(frozen=True, slots=True)
class Prefill:
    """What was computed of prompts, in one step or several.

    Attributes:
        new_tokens: Tokens that were computed, not found in the cache.
        pairs: Pairs of a new token and a token before it.
        steps: The steps that it took.
    """

    new_tokens: int
    pairs: float
    steps: int = 1

    @classmethod
    def of(cls, new_tokens: int, *, start: int = 0, steps: int = 1) -> "Prefill":
        """That of `new_tokens` tokens that follow `start` computed ones, of one prompt."""
        return cls(new_tokens, _pairs(new_tokens, start=start), steps)

    @property
    def sizes(self) -> Sequence[float]:
        """By what the rates of prefill are multiplied."""
        return (self.steps, self.new_tokens, self.pairs)


@dataclass(frozen=True, slots=True)
class Decode:
    """A step's part that made the next token of each of `batch` requests, which hold so many tokens together."""

    batch: int
    context_tokens: int = 0

    @property
    def sizes(self) -> Sequence[float]:
        """By what the rates of decoding are multiplied."""
        return (1, self.batch - 1, self.context_tokens)


@dataclass(frozen=True, slots=True)
class Rates:
    """A linear model of an engine's speed, in milliseconds.

    A step that prefills and decodes reads the weights once, so it has one fixed time: the longer one.

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
        pairs_ms = self.prefill_ms_per_pair * _pairs(new_tokens, start=start)
        return self.prefill_base_ms + self.prefill_ms_per_token * new_tokens + pairs_ms

    def decode_ms(self, batch: int, *, context_tokens: int = 0) -> float:
        """The time of a step that decodes for `batch` requests, which hold so many tokens together."""
        further = self.decode_ms_per_request * (batch - 1)
        return self.decode_base_ms + further + self.decode_ms_per_context_token * context_tokens


class RateEstimate:
    """The declared rates, moved by what was measured."""

    def __init__(self, declared: Rates) -> None:
        self.restart(declared)

    def restart(self, known: Rates) -> None:
        """Forgets what was measured; these rates hold where what will be measured says nothing."""
        self._prefill = Regression(
            (known.prefill_base_ms, known.prefill_ms_per_token, known.prefill_ms_per_pair),
            small=_PAIRS_PER_TOKEN,
            forget=_FORGET_PREFILL,
        )
        self._decode = Regression(
            (known.decode_base_ms, known.decode_ms_per_request, known.decode_ms_per_context_token),
            small=_CONTEXT_PER_STEP,
            forget=_FORGET_DECODE,
        )

    def saw_prefill(self, prefill: Prefill, *, ms: float, beside: Sequence[Decode] = ()) -> None:
        """A prefill took `ms`, in steps some of which decoded as well."""
        rates = self.current()
        both_ms = min(rates.prefill_base_ms, rates.decode_base_ms)
        decodes_ms = sum(rates.decode_ms(step.batch, context_tokens=step.context_tokens) - both_ms for step in beside)
        self._prefill.observe(prefill.sizes, ms - decodes_ms)

    def saw_decode(self, decode: Decode, *, ms: float) -> None:
        """A step that did nothing but decode took `ms`."""
        self._decode.observe(decode.sizes, ms)

    def current(self) -> Rates:
        """The estimate now."""
        prefill_base_ms, prefill_ms_per_token, prefill_ms_per_pair = self._prefill.coefficients.tolist()
        decode_base_ms, decode_ms_per_request, decode_ms_per_context_token = self._decode.coefficients.tolist()
        return Rates(
            prefill_base_ms=prefill_base_ms,
            prefill_ms_per_token=prefill_ms_per_token,
            decode_base_ms=decode_base_ms,
            decode_ms_per_request=decode_ms_per_request,
            prefill_ms_per_pair=prefill_ms_per_pair,
            decode_ms_per_context_token=decode_ms_per_context_token,
        )


def _pairs(new_tokens: int, *, start: int) -> float:
    return new_tokens * (start + new_tokens / 2)
