"""How fast an engine is, learned from made-up steps of a known engine."""

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.domain.rates import Decode, Prefill, RateEstimate, Rates

DECLARED = Rates(5.0, 0.1, 10.0, 0.5)
TRUE = Rates(
    prefill_base_ms=8.0,
    prefill_ms_per_token=0.2,
    decode_base_ms=20.0,
    decode_ms_per_request=1.5,
    prefill_ms_per_pair=0.0002,
    decode_ms_per_context_token=0.001,
)


@st.composite
def rates_of_any_size(draw: st.DrawFn) -> Rates:
    """Attention to 1,000 tokens, or reading 10,000 of context, takes at most about as long as all the rest."""
    per_token, decode_base = draw(st.floats(0.01, 2)), draw(st.floats(1, 50))
    return Rates(
        prefill_base_ms=draw(st.floats(0, 50)),
        prefill_ms_per_token=per_token,
        decode_base_ms=decode_base,
        decode_ms_per_request=draw(st.floats(0, 0.2)) * decode_base,
        prefill_ms_per_pair=draw(st.floats(0, 0.001)) * per_token,
        decode_ms_per_context_token=draw(st.floats(0, 0.0001)) * decode_base,
    )


def prefills(count: int, *, seed: int, longest: int = 2000) -> Iterator[tuple[int, int]]:
    """New tokens, and the tokens before them."""
    chance = random.Random(seed)
    for _ in range(count):
        yield chance.randint(16, longest), chance.choice([0, 0, chance.randint(0, 4000)])


def decodes(count: int, *, seed: int, batch: int | None = None) -> Iterator[Decode]:
    chance = random.Random(seed)
    for _ in range(count):
        size = batch or chance.randint(1, 16)
        yield Decode(size, size * chance.randint(100, 4000))


def noise(seed: int, spread: float) -> Callable[[], float]:
    chance = random.Random(seed)
    return lambda: 1 + chance.uniform(-spread, spread)


def learned(true: Rates, *, known: Rates = DECLARED, spread: float = 0.0, batch: int | None = None) -> Rates:
    """What is learned of 200 prefills and 500 decode steps."""
    estimate, factor = RateEstimate(known), noise(1, spread)
    for new, start in prefills(200, seed=2):
        estimate.saw_prefill(Prefill.of(new, start=start), ms=true.prefill_ms(new, start=start) * factor())
    for step in decodes(500, seed=3, batch=batch):
        ms = true.decode_ms(step.batch, context_tokens=step.context_tokens) * factor()
        estimate.saw_decode(step, ms=ms)
    return estimate.current()


def test_nothing_measured_is_as_declared() -> None:
    """Observations of nothing, or without a duration, change nothing either."""
    estimate = RateEstimate(TRUE)
    estimate.saw_prefill(Prefill(0, 0.0, steps=0), ms=5.0)
    estimate.saw_prefill(Prefill.of(100), ms=-3.0)
    estimate.saw_decode(Decode(4, 1000), ms=0.0)
    assert estimate.current() == TRUE


def test_all_six_rates_are_found_under_noise() -> None:
    """Within a few percent where each step is up to 20 % shorter or longer than it should be."""
    found = learned(TRUE, spread=0.2)
    assert found.prefill_ms_per_token == pytest.approx(TRUE.prefill_ms_per_token, rel=0.1)
    assert found.prefill_ms_per_pair == pytest.approx(TRUE.prefill_ms_per_pair, rel=0.1)
    assert found.decode_base_ms == pytest.approx(TRUE.decode_base_ms, rel=0.1)
    assert found.decode_ms_per_request == pytest.approx(TRUE.decode_ms_per_request, rel=0.15)
    assert found.decode_ms_per_context_token == pytest.approx(TRUE.decode_ms_per_context_token, rel=0.15)


@given(rates_of_any_size())
@settings(max_examples=30, deadline=None)
def test_predictions_become_those_of_the_true_engine(true: Rates) -> None:
    """Whatever the engine and however wrong the declaration: predictions are within 7 % in the range that was seen."""
    found = learned(true)
    for new, start in prefills(20, seed=5):
        expected = true.prefill_ms(new, start=start)
        assert found.prefill_ms(new, start=start) == pytest.approx(expected, rel=0.07)
    for step in decodes(20, seed=6):
        expected = true.decode_ms(step.batch, context_tokens=step.context_tokens)
        assert found.decode_ms(step.batch, context_tokens=step.context_tokens) == pytest.approx(expected, rel=0.07)


def test_batches_that_are_always_equal_keep_a_true_declaration() -> None:
    """They cannot tell the base from the requests, and what is right stays right."""
    found = learned(TRUE, known=TRUE, spread=0.1, batch=8)
    assert found.decode_base_ms == pytest.approx(TRUE.decode_base_ms, rel=0.1)
    assert found.decode_ms_per_request == pytest.approx(TRUE.decode_ms_per_request, rel=0.15)


@given(st.integers(1, 64), st.integers(0, 5000))
def test_batches_that_are_always_equal_are_predicted_right(batch: int, context: int) -> None:
    """Steps that are all alike are known after a few, and other batches get no absurd times."""
    estimate = RateEstimate(DECLARED)
    expected = TRUE.decode_ms(batch, context_tokens=batch * context)
    for _ in range(50):
        estimate.saw_decode(Decode(batch, batch * context), ms=expected)
    found = estimate.current()
    assert found.decode_ms(batch, context_tokens=batch * context) == pytest.approx(expected, rel=0.05)
    assert 0 <= found.decode_ms(1) <= expected * 1.01
    assert found.decode_base_ms >= min(DECLARED.decode_base_ms, expected) * 0.5


def test_short_prompts_leave_attention_as_it_was_known() -> None:
    """Where pairs make no difference that shows, their rate stays about where it was."""
    known = Rates(5.0, 0.1, 10.0, 0.5, prefill_ms_per_pair=0.0002)
    estimate, factor = RateEstimate(known), noise(1, 0.05)
    for new, _ in prefills(300, seed=2, longest=64):
        estimate.saw_prefill(Prefill.of(new), ms=known.prefill_ms(new) * factor())
    found = estimate.current()
    assert found.prefill_ms_per_pair == pytest.approx(known.prefill_ms_per_pair, rel=0.5)
    assert found.prefill_ms(2000) == pytest.approx(known.prefill_ms(2000), rel=0.35)


def test_an_engine_that_slows_down_is_followed() -> None:
    """What has been seen counts less and less."""
    estimate, slow = RateEstimate(TRUE), 2.0
    for factor in (1.0, slow):
        for step in decodes(4000, seed=3):
            expected = TRUE.decode_ms(step.batch, context_tokens=step.context_tokens)
            estimate.saw_decode(step, ms=factor * expected)
    assert estimate.current().decode_ms(8, context_tokens=8000) == pytest.approx(
        slow * TRUE.decode_ms(8, context_tokens=8000), rel=0.05
    )


def test_a_hiccup_changes_little() -> None:
    """One step in a hundred that takes a hundred times as long does not double the estimate."""
    estimate = RateEstimate(TRUE)
    for number, step in enumerate(decodes(2000, seed=3)):
        expected = TRUE.decode_ms(step.batch, context_tokens=step.context_tokens)
        estimate.saw_decode(step, ms=expected * (100 if number % 100 == 0 else 1))
    found = estimate.current().decode_ms(8, context_tokens=8000)
    assert found == pytest.approx(TRUE.decode_ms(8, context_tokens=8000), rel=0.05)


def test_a_prefill_beside_decodes_gives_the_rates_of_prefill() -> None:
    """What the decodes take of a step is known, and taken off."""
    estimate = RateEstimate(TRUE)
    for new, start in prefills(200, seed=2):
        beside = [Decode(4, 3000), Decode(4, 3004)]
        ms = sum(TRUE.decode_ms(step.batch, context_tokens=step.context_tokens) for step in beside)
        # Of the two fixed times of a step the longer one counts: the prefill's is the shorter one here.
        ms += TRUE.prefill_ms(new, start=start) - TRUE.prefill_base_ms
        estimate.saw_prefill(Prefill.of(new, start=start, steps=2), ms=ms, beside=beside)
    found = estimate.current()
    assert found.prefill_base_ms == pytest.approx(TRUE.prefill_base_ms, rel=0.05)
    assert found.prefill_ms_per_token == pytest.approx(TRUE.prefill_ms_per_token, rel=0.05)


def test_after_a_restart_only_the_known_rates_are_left() -> None:
    """A calibration becomes what the estimate falls back to."""
    estimate = RateEstimate(DECLARED)
    estimate.saw_decode(Decode(1), ms=500.0)
    estimate.restart(TRUE)
    assert estimate.current() == TRUE


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10**6), st.floats(0.001, 1e6)), max_size=40),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(-10, 1e6)), max_size=40),
)
def test_rates_are_never_negative(decoded: list[tuple[int, int, float]], filled: list[tuple[int, int, float]]) -> None:
    """Whatever was measured, a prediction of a time is a time."""
    estimate = RateEstimate(DECLARED)
    for batch, context_tokens, ms in decoded:
        estimate.saw_decode(Decode(batch, context_tokens), ms=ms)
    for new, start, ms in filled:
        estimate.saw_prefill(Prefill.of(new, start=start), ms=ms)
    rates = estimate.current()
    assert 0 <= rates.decode_ms(4, context_tokens=1000) < float("inf")
    assert 0 <= rates.prefill_ms(100, start=1000) < float("inf")
    assert min(rates.decode_base_ms, rates.decode_ms_per_request, rates.decode_ms_per_context_token) >= 0
    assert min(rates.prefill_base_ms, rates.prefill_ms_per_token, rates.prefill_ms_per_pair) >= 0
