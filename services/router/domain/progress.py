"""Follows one stream: what was delivered, when the first token came, and the numbers of the last frame."""

from dataclasses import dataclass

from services.router.domain.outcome import Timings, Usage


@dataclass(slots=True)
class Progress:
    """One request from its receipt to its last frame. All times are monotonic, in seconds."""

    received_s: float
    prompt_tokens: int = 0
    retrieved_tokens: int = 0
    prepare_s: float | None = None
    queue_ms: float | None = None
    cached_tokens: int | None = None
    output_tokens: int = 0
    first_token_s: float | None = None
    last_token_s: float | None = None

    def token_frame(self, *, output_tokens: int, cached_tokens: int | None, now_s: float) -> None:
        """Take note of a frame of tokens; `output_tokens` is cumulative."""
        if cached_tokens is not None:
            self.cached_tokens = cached_tokens
        if output_tokens > self.output_tokens:
            self.output_tokens = output_tokens
            self.last_token_s = now_s
            if self.first_token_s is None:
                self.first_token_s = now_s

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.received_s

    @property
    def tpot_s(self) -> float | None:
        """The mean time per token after the first; unknown below two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1)

    def delivered(self) -> Usage:
        """What the caller got so far, as far as the router knows."""
        return Usage(
            input_total=self.prompt_tokens,
            input_cached=self.cached_tokens,
            output_total=self.output_tokens,
            retrieved_context=self.retrieved_tokens or None,
            output_delivered=self.output_tokens,
        )

    def usage(self, counted: Usage) -> Usage:
        """The engine's count, completed by what only the router knows."""
        cached = self.cached_tokens if counted.input_cached is None else counted.input_cached
        return Usage(
            input_total=self.prompt_tokens if counted.input_total is None else counted.input_total,
            input_cached=cached,
            output_total=self.output_tokens if counted.output_total is None else counted.output_total,
            reasoning=counted.reasoning,
            retrieved_context=self.retrieved_tokens or counted.retrieved_context,
            output_delivered=self.output_tokens,
        )

    def timings(self, measured: Timings, *, now_s: float) -> Timings:
        """The engine's own durations, and the router's for all that the caller waits for."""
        return Timings(
            queue_ms=self.queue_ms,
            engine_queue_ms=measured.engine_queue_ms,
            prefill_ms=measured.prefill_ms,
            ttft_ms=_ms(self.ttft_s),
            tpot_ms=_ms(self.tpot_s),
            total_ms=_ms(now_s - self.received_s),
            prepare_ms=_ms(self.prepare_s),
        )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000.0
