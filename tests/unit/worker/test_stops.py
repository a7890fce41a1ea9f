"""Stop strings and rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.domain.rates import RateEstimate, Rates
from services.worker.domain.stops import StopMatcher

TEXT = st.text("abc", max_size=30)


@given(TEXT, st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.lists(st.integers(1, 5)))
def test_a_stop_string_is_found_however_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    """What is shown is the text before the first stop string, whatever the pieces were."""
    pieces, rest = [], text
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    matcher, whole = StopMatcher(stops), StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in [*pieces, *rest]) + matcher.flush()
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert matcher.stopped == bool(ends)
    assert shown.startswith(text[: min(ends)] if ends else text)
    assert not any(stop in shown for stop in stops)
    assert whole.push(text) + whole.flush() == (text[: min(ends)] if ends else text)


def test_rates_start_as_declared_and_follow_what_is_measured() -> None:
    """A straight line is found again; too few observations change nothing."""
    estimate = RateEstimate(Rates(5.0, 0.1, 10.0, 0.5))
    estimate.saw_prefill(new_tokens=100, ms=1000.0)
    assert estimate.current() == Rates(5.0, 0.1, 10.0, 0.5)
    for tokens in (10, 50, 100, 200, 400):
        estimate.saw_prefill(new_tokens=tokens, ms=20.0 + 2.0 * tokens)
    for batch in (1, 2, 4, 8, 8):
        estimate.saw_decode(batch=batch, ms=30.0 + 3.0 * (batch - 1))
    for tokens in (10, 50, 100, 200, 400) * 80:
        estimate.saw_prefill(new_tokens=tokens, ms=20.0 + 2.0 * tokens)
    found = estimate.current()
    assert found.prefill_ms_per_token == pytest.approx(2.0, rel=0.01)
    assert found.prefill_base_ms == pytest.approx(20.0, rel=0.05)
    assert found.decode_base_ms == pytest.approx(30.0, rel=0.01)
    assert found.decode_ms_per_request == pytest.approx(3.0, rel=0.01)


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 1e4)), max_size=40))
def test_rates_are_never_negative(seen: list[tuple[int, float]]) -> None:
    """Whatever was measured, a prediction of a time is a time."""
    estimate = RateEstimate(Rates(5.0, 0.1, 10.0, 0.5))
    for batch, ms in seen:
        estimate.saw_decode(batch=batch, ms=ms)
    rates = estimate.current()
    assert rates.decode_base_ms >= 0
    assert rates.decode_ms_per_request >= 0
