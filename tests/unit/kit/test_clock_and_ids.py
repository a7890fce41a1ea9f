"""Clocks and ids."""

import time

import pytest

from services.kit.clock import ManualClock, SystemClock
from services.kit.ids import event_id, new_id


def test_a_manual_clock_moves_only_by_hand() -> None:
    clock = ManualClock(now=100.0, monotonic=5.0)
    clock.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (102.5, 7.5)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_the_system_clock_is_the_machines() -> None:
    clock = SystemClock()
    assert abs(clock.now() - time.time()) < 1
    assert clock.monotonic() <= clock.monotonic()


def test_ids_are_unique_and_sort_by_time() -> None:
    """Ids of later milliseconds sort after those of earlier ones, as text."""
    ids = [new_id("req") for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert all(one.startswith("req_") and len(one) == 30 for one in ids)
    assert [one[:14] for one in ids] == sorted(one[:14] for one in ids)
    assert new_id("req_").count("_") == 1


def test_event_ids_follow_from_the_fact() -> None:
    """The same fact has the same id everywhere; parts cannot be shifted into each other."""
    assert event_id("usage", "lse_1") == event_id("usage", "lse_1")
    assert len({event_id("ab", "c"), event_id("a", "bc"), event_id("abc"), event_id("ab", "c", "")}) == 4
