"""Which requests show in a few seconds how fast an engine is."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.worker.domain.rates import Rates

_LONGEST_PROMPT = 8192
_LADDER = 4
_NEW_TOKENS = 16
_BATCHES = (8, 1, 2, 32)
_ANSWER_TOKENS = 4
# For what follows a prompt of the ladder.
_ROOM = _NEW_TOKENS + _ANSWER_TOKENS + 1


@dataclass(frozen=True, slots=True)
class Probe:
    """Equal requests at once, and how long they should be.

    Attributes:
        text: Probes with the same number have prompts that begin alike, others do not.
        cached_tokens: About how much of the prompt was computed by a probe before this one.
    """

    text: int
    prompt_tokens: int
    cached_tokens: int = 0
    requests: int = 1
    answer_tokens: int = _ANSWER_TOKENS

    def takes_ms(self, rates: Rates) -> float:
        """How long it takes at these rates."""
        prefill_ms = rates.prefill_ms(self.prompt_tokens - self.cached_tokens, start=self.cached_tokens)
        step_ms = rates.decode_ms(self.requests, context_tokens=self.requests * self.prompt_tokens)
        return self.requests * prefill_ms + self.answer_tokens * step_ms


def probes(*, context_tokens: int, block_size: int, max_num_seqs: int) -> Iterator[Probe]:
    """The requests to make, the most telling first; those that would take too long can be left out.

    Prompts of several lengths: the time of a token, and of attention. Batches of them with one more token, and all but
    that one cached: decoding by batch and by context. A few more tokens after a cached prompt: attention to a context.
    Other prompts of the same lengths.
    """
    lengths = _lengths(min(_LONGEST_PROMPT, context_tokens - _ROOM), block_size=block_size)
    for text, length in enumerate(lengths):
        yield Probe(text, length, answer_tokens=2)
    for size in _BATCHES:
        for text, length in enumerate(lengths):
            if size <= max_num_seqs:
                yield Probe(text, length + 1, cached_tokens=length, requests=size)
    for text, length in enumerate(lengths):
        yield Probe(text, length + _NEW_TOKENS, cached_tokens=length, answer_tokens=2)
    for text, length in enumerate(lengths, start=len(lengths)):
        yield Probe(text, length, answer_tokens=2)


def _lengths(longest: int, *, block_size: int) -> list[int]:
    """From short to long, each a few times the one before it, and all of whole blocks, so that they can be cached."""
    found = []
    while longest >= block_size:
        found.append(longest // block_size * block_size)
        longest //= _LADDER
    return found[::-1]
