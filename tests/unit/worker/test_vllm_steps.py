"""Which of vLLM's steps tell how long what takes."""

from types import SimpleNamespace

import pytest

from services.worker.adapters.vllm.steps import StepTimes
from services.worker.domain.rates import RateEstimate, Rates

TRUE = Rates(prefill_base_ms=8.0, prefill_ms_per_token=0.2, decode_base_ms=20.0, decode_ms_per_request=1.5)
FAR = Rates(prefill_base_ms=1.0, prefill_ms_per_token=1.0, decode_base_ms=1.0, decode_ms_per_request=10.0)


def details(*, prompts: int = 0, prompt_tokens: int = 0, decodes: int = 0) -> SimpleNamespace:
    """As vLLM's SchedulerIterationDetails."""
    return SimpleNamespace(
        num_ctx_requests=prompts, num_ctx_tokens=prompt_tokens, num_generation_requests=decodes
    )  # fmt: skip


def iteration(ms: float, *, decodes: int, firsts: int = 0, computed: int = 0, cached: int = 0) -> SimpleNamespace:
    """As vLLM's IterationStats."""
    return SimpleNamespace(
        inter_token_latencies_iter=[ms / 1000] * decodes,
        time_to_first_tokens_iter=[1.0] * firsts,
        prompt_token_stats=SimpleNamespace(computed=computed, cached_tokens=cached),
    )


def decode_steps(times: StepTimes, *batches: int) -> None:
    for batch in batches:
        times.saw(details(decodes=batch), iteration(TRUE.decode_ms(batch), decodes=batch), context_tokens=0)


def test_steps_that_only_decode_tell_the_rates_of_decoding() -> None:
    """By the interval between two tokens, whatever else was in the process."""
    estimate = RateEstimate(FAR)
    decode_steps(StepTimes(estimate), *(range(1, 9)), *(range(1, 9)))
    found = estimate.current()
    assert found.decode_base_ms == pytest.approx(TRUE.decode_base_ms, rel=0.02)
    assert found.decode_ms_per_request == pytest.approx(TRUE.decode_ms_per_request, rel=0.1)
    assert found.prefill_base_ms == FAR.prefill_base_ms


def test_a_request_that_paused_does_not_make_the_step_long() -> None:
    """Of the intervals the shortest is the step's."""
    estimate = RateEstimate(TRUE)
    step = iteration(TRUE.decode_ms(3), decodes=3)
    step.inter_token_latencies_iter[0] = 60.0
    StepTimes(estimate).saw(details(decodes=3), step, context_tokens=0)
    assert estimate.current().decode_base_ms == pytest.approx(TRUE.decode_base_ms)


def test_a_prompt_in_chunks_beside_decodes_tells_the_rates_of_prefill() -> None:
    """The chunks' steps together, less what the decodes took of them."""
    estimate = RateEstimate(FAR)
    times = StepTimes(estimate)
    decode_steps(times, *(range(1, 9)), *(range(1, 9)))
    for tokens in (100, 300, 500, 700, 900) * 3:
        for chunk, firsts in ((tokens, 0), (50, 1)):
            ms = TRUE.decode_ms(4) + TRUE.prefill_ms(chunk) - TRUE.prefill_base_ms  # one fixed time, the longer one
            step = iteration(ms, decodes=4, firsts=firsts, computed=(tokens + 50) * firsts, cached=32 * firsts)
            times.saw(details(prompts=1, prompt_tokens=chunk, decodes=4), step, context_tokens=0)
    found = estimate.current()
    assert found.prefill_ms_per_token == pytest.approx(TRUE.prefill_ms_per_token, rel=0.05)
    assert found.prefill_ms(700) == pytest.approx(TRUE.prefill_ms(700), rel=0.1)


def test_steps_that_cannot_be_told_apart_tell_nothing() -> None:
    """Two prompts in a step, a prompt that began unseen, and a step that made no next token."""
    estimate = RateEstimate(TRUE)
    times = StepTimes(estimate)
    two = iteration(900.0, decodes=1, firsts=2, computed=60)
    times.saw(details(prompts=2, prompt_tokens=60, decodes=1), two, context_tokens=0)
    rest = iteration(900.0, decodes=1, firsts=1, computed=400)
    times.saw(details(prompts=1, prompt_tokens=40, decodes=1), rest, context_tokens=0)
    times.saw(details(prompts=1, prompt_tokens=40), None, context_tokens=0)
    later = iteration(900.0, decodes=1, firsts=1, computed=80)
    times.saw(details(prompts=1, prompt_tokens=40, decodes=1), later, context_tokens=0)
    assert estimate.current() == TRUE
