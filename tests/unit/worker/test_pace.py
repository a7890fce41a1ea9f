"""How often a stream gets a frame."""

from hypothesis import given
from hypothesis import strategies as st

from services.worker.domain.pace import Pace


def test_the_interval_grows_where_streams_wake_up_late_and_shrinks_again() -> None:
    """Up to the stated bound, and back to the configured time."""
    pace = Pace(shortest_s=0.02, longest_s=0.1)
    seen = [pace.interval_s]
    for _ in range(200):
        pace.woke(late_s=0.05)
        seen.append(pace.interval_s)
    assert seen[0] == 0.02
    assert seen == sorted(seen)
    assert seen[-1] == 0.1
    for _ in range(200):
        pace.woke(late_s=0.0005)
    assert pace.interval_s == 0.02


def test_a_single_late_wake_up_changes_little() -> None:
    """One collection of garbage is no load."""
    pace = Pace(shortest_s=0.02, longest_s=0.1)
    pace.woke(late_s=0.05)
    assert pace.interval_s < 0.03


@given(st.lists(st.floats(-1, 10)), st.floats(0, 0.1), st.floats(0, 0.1))
def test_the_interval_stays_within_its_bounds(late: list[float], shortest: float, longest: float) -> None:
    """Whatever the clock says."""
    pace = Pace(shortest_s=shortest, longest_s=longest)
    for seconds in late:
        pace.woke(late_s=seconds)
        assert shortest <= pace.interval_s <= max(shortest, longest)
