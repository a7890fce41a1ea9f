"""How long vLLM's steps take, from its statistics of each."""

from dataclasses import dataclass
from typing import Any

from services.worker.domain.rates import Decode, Prefill, RateEstimate


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A step that computed a part of one prompt beside the next token of other requests."""

    tokens: int
    beside: Decode
    ms: float


class StepTimes:
    """Tells the estimate of each step whose work and time are known.

    A step's time is that between two tokens of a request in it, by the clock of the engine. So a step counts that made
    a next token. What it computed of prompts is known to the token, but not whose: it counts where a single prompt was
    computed, in a row of steps that ends with its first token.
    """

    def __init__(self, rates: RateEstimate) -> None:
        self._rates = rates
        self._chunks: list[_Chunk] = []

    def saw(self, details: Any, iteration: Any, *, context_tokens: int) -> None:
        """Takes vLLM's SchedulerIterationDetails and IterationStats of a step in; the latter is None without a token.

        The context is that of the requests that decoded, before this step.
        """
        intervals = iteration.inter_token_latencies_iter if iteration is not None else ()
        if not details.num_ctx_requests:
            self._chunks.clear()
        if not intervals:
            self._chunks.clear()
            return
        decode = Decode(details.num_generation_requests, context_tokens)
        ms = min(intervals) * 1000
        if not details.num_ctx_requests:
            self._rates.saw_decode(decode, ms=ms)
            return
        self._chunks.append(_Chunk(details.num_ctx_tokens, decode, ms))
        if details.num_ctx_requests > 1 or iteration.time_to_first_tokens_iter:
            chunks, self._chunks = self._chunks, []
            self._saw_prompts(chunks, iteration)

    def _saw_prompts(self, chunks: list[_Chunk], iteration: Any) -> None:
        """The prompts that these chunks are of, up to their first tokens."""
        prompts = iteration.prompt_token_stats
        alone = len(iteration.time_to_first_tokens_iter) == 1
        if not alone or sum(chunk.tokens for chunk in chunks) != prompts.computed:
            return
        self._rates.saw_prefill(
            Prefill.of(prompts.computed, start=prompts.cached_tokens, steps=len(chunks)),
            ms=sum(chunk.ms for chunk in chunks),
            beside=[chunk.beside for chunk in chunks],
        )
