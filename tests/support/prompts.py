"""Prompts and parameters that every engine can take."""

from downstack.types.v1.chat_pb2 import SamplingParams


def prompt_of(seed: int, length: int = 100) -> list[int]:
    """Tokens that every vocabulary here has; another seed, other tokens."""
    return [(seed * 7 + position * 3) % 80 + 20 for position in range(length)]


def greedy(max_tokens: int, **more: object) -> SamplingParams:
    """The most likely answer, of exactly this length."""
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, **more)  # type: ignore[arg-type]
