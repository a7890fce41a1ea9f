"""The parameters of sampling and their limits, checked before an engine sees them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.kit.errors import DownstackError, Reason, Violations
from services.worker.domain.constraints import check_regex, check_schema

MAX_ANSWERS = 8
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKENS = 64
MAX_SCHEMA_BYTES = 64 * 1024
MAX_REGEX_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is sampled. The fields mean what those of SamplingParams mean."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    json_schema: str | None = None
    regex: str | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an engine and a ticket allow."""

    context_tokens: int
    vocab_size: int
    max_output_tokens: int


def check_prompt(prompt: Sequence[int], bounds: Bounds) -> None:
    """Raises DownstackError: PARAM_OUT_OF_RANGE for no token or unknown ones, PROMPT_TOO_LONG."""
    if not prompt:
        raise DownstackError(Reason.PARAM_OUT_OF_RANGE, "prompt_token_ids: must not be empty")
    if len(prompt) >= bounds.context_tokens:
        message = f"The prompt has {len(prompt)} tokens; with one of the answer at most {bounds.context_tokens} fit."
        limit = {"prompt_tokens": str(len(prompt)), "context_tokens": str(bounds.context_tokens)}
        raise DownstackError(Reason.PROMPT_TOO_LONG, message, metadata=limit)
    if max(prompt) >= bounds.vocab_size:
        message = f"prompt_token_ids: the vocabulary has {bounds.vocab_size} tokens"
        raise DownstackError(Reason.PARAM_OUT_OF_RANGE, message)


def check_sampling(sampling: Sampling, bounds: Bounds) -> None:
    """Raises DownstackError PARAM_OUT_OF_RANGE with every parameter that is out of its range, or BAD_SCHEMA."""
    found = Violations()
    _check_ranges(sampling, bounds, found)
    _check_lists(sampling, bounds, found)
    _check_constraint(sampling, found)
    found.check()
    if sampling.json_schema is not None:
        check_schema(sampling.json_schema)
    if sampling.regex is not None:
        check_regex(sampling.regex)


def _check_ranges(sampling: Sampling, bounds: Bounds, found: Violations) -> None:
    tiny = math.ulp(0.0)
    ranges: list[tuple[str, float, float, float]] = [
        ("max_tokens", sampling.max_tokens, 1, bounds.max_output_tokens),
        ("min_tokens", sampling.min_tokens, 0, sampling.max_tokens),
        ("temperature", sampling.temperature, 0, 2),
        ("top_p", sampling.top_p, tiny, 1),
        ("top_k", sampling.top_k, 0, bounds.vocab_size),
        ("min_p", sampling.min_p, 0, 1),
        ("frequency_penalty", sampling.frequency_penalty, -2, 2),
        ("presence_penalty", sampling.presence_penalty, -2, 2),
        ("repetition_penalty", sampling.repetition_penalty, tiny, 2),
        ("n", sampling.n, 1, MAX_ANSWERS),
        ("logprobs", sampling.logprobs or 0, 0, MAX_LOGPROBS),
        ("seed", sampling.seed or 0, 0, 2**63 - 1),
    ]
    for name, value, least, most in ranges:
        # A comparison with NaN is false, so NaN is refused as well.
        if not least <= value <= most:
            above = "above 0" if least == tiny else f"from {least:g}"
            found.add(f"sampling.{name}", f"must be {above} to {most:g}")


def _check_lists(sampling: Sampling, bounds: Bounds, found: Violations) -> None:
    if len(sampling.stop) > MAX_STOPS:
        found.add("sampling.stop", f"must be at most {MAX_STOPS} strings")
    if any(not 1 <= len(text.encode()) <= MAX_STOP_BYTES for text in sampling.stop):
        found.add("sampling.stop", f"each string must be 1 to {MAX_STOP_BYTES} bytes")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKENS:
        found.add("sampling.stop_token_ids", f"must be at most {MAX_STOP_TOKENS} tokens")
    if any(token_id >= bounds.vocab_size for token_id in sampling.stop_token_ids):
        found.add("sampling.stop_token_ids", f"the vocabulary has {bounds.vocab_size} tokens")


def _check_constraint(sampling: Sampling, found: Violations) -> None:
    if sampling.json_schema is not None and not 1 <= len(sampling.json_schema.encode()) <= MAX_SCHEMA_BYTES:
        found.add("sampling.json_schema", f"must be 1 to {MAX_SCHEMA_BYTES} bytes")
    if sampling.regex is not None and not 1 <= len(sampling.regex.encode()) <= MAX_REGEX_BYTES:
        found.add("sampling.regex", f"must be 1 to {MAX_REGEX_BYTES} bytes")
