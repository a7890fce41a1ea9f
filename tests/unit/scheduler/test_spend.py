"""The spend rate, worked out by hand."""

import pytest

from services.scheduler.domain.fading import FadingSum
from services.scheduler.domain.lease import LeasePhase, Usage
from tests.unit.scheduler.making import PRICE, Desk, offer


def test_a_steady_stream_has_its_rate() -> None:
    """5 every half second is 10 a second, whether the window has passed or not."""
    for seconds in (5, 300):
        sums = FadingSum(60.0, now=0.0)
        for number in range(2 * seconds):
            sums.add(5, now=number / 2)
        assert sums.per_second(seconds) == pytest.approx(10, rel=0.05)


def test_what_was_added_fades() -> None:
    sums = FadingSum(60.0, now=0.0)
    sums.add(100, now=0.0)
    assert sums.left(60.0) == pytest.approx(100 / 2.718281828)
    assert sums.left(3600.0) == pytest.approx(0, abs=1e-9)


def test_a_clock_that_goes_back_adds_nothing() -> None:
    sums = FadingSum(60.0, now=10.0)
    sums.add(100, now=10.0)
    assert sums.left(5.0) == 100


def test_leases_that_end_are_spent() -> None:
    """40 uncached tokens at 100, 24 cached ones at 10 and 7 of output at 400 in one second, as a rate."""
    desk = Desk()
    desk.hello()
    assert desk.brain.spend.nano_per_hour(now=desk.now) == {}
    placed = desk.place(offers=(offer(64),))
    desk.run(placed, LeasePhase.FINISHED, Usage(input_total=64, input_cached=24, output_total=7))
    found = desk.brain.spend.nano_per_hour(now=desk.now)
    assert found[PRICE.currency] == pytest.approx(3600 * (40 * 100 + 24 * 10 + 7 * 400), rel=0.02)
