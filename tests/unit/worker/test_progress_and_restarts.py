"""What proves that an engine lives, and how often it is started anew."""

import pytest

from services.worker.domain.progress import Progress
from services.worker.domain.restarts import Restarts


class Watched:
    """An engine that is looked at four times a second."""

    def __init__(self) -> None:
        self.progress = Progress(silence_s=3.0, longest_step_s=60.0)
        self.now = 100.0
        self.steps = 0
        self.pulse: int | None = None
        self.unfinished = 0
        self.look()

    def look(self) -> None:
        self.progress.observe(steps=self.steps, unfinished=self.unfinished, pulse=self.pulse, now=self.now)

    def passes(self, seconds: float, *, stepping: bool = False, beating: bool = False) -> bool:
        """Lets time go by; returns whether the engine counts as healthy at its end."""
        for _ in range(round(seconds * 4)):
            self.now += 0.25
            self.steps += stepping
            if beating:
                self.pulse = (self.pulse or 0) + 1
            self.look()
        return self.progress.healthy


def test_without_a_pulse_work_and_no_steps_is_a_hang() -> None:
    """An idle engine is healthy however long it idles; one that steps again is healthy again."""
    engine = Watched()
    assert engine.passes(1000)
    engine.unfinished = 2
    assert engine.passes(3)
    assert not engine.passes(0.5)
    assert engine.passes(0.25, stepping=True)


def test_a_pulse_proves_that_a_long_step_computes() -> None:
    """A prefill of most of a minute is no hang; one that exceeds every bound is."""
    engine = Watched()
    engine.pulse, engine.unfinished = 0, 1
    assert engine.passes(59, beating=True)
    assert not engine.passes(2, beating=True)
    assert engine.passes(0.25, stepping=True)


@pytest.mark.parametrize("unfinished", [0, 3])
def test_an_engine_that_lost_its_pulse_hangs_also_when_it_is_idle(unfinished: int) -> None:
    """A stopped process is noticed before somebody needs it."""
    engine = Watched()
    engine.pulse, engine.unfinished = 0, unfinished
    assert engine.passes(10, beating=True, stepping=True)
    assert engine.passes(3)
    assert not engine.passes(0.5)


def test_steps_are_a_sign_of_life_as_well() -> None:
    """A busy engine need not be asked."""
    engine = Watched()
    engine.pulse, engine.unfinished = 0, 1
    assert engine.passes(100, stepping=True)


def test_a_watcher_that_slept_has_seen_nothing() -> None:
    """A process that was stopped for a minute does not take its engine for dead when it goes on."""
    engine = Watched()
    engine.pulse, engine.unfinished = 0, 1
    engine.now += 60
    engine.look()
    assert engine.progress.healthy
    assert engine.passes(1, beating=True)


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_settled_engine() -> None:
    """An engine that dies at once after each start is not started without end at full speed."""
    restarts = Restarts(first_pause_s=0.5, longest_pause_s=4.0, max_failures=3)
    restarts.started(now=0)
    pauses = []
    for now in range(100, 105):
        restarts.lost(now=now)
        pauses.append(restarts.pause_s)
        restarts.started(now=now)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.0]
    restarts.lost(now=1000)
    assert restarts.pause_s == 0.5
    assert not restarts.exhausted


def test_only_starts_that_failed_in_a_row_are_a_reason_to_give_up() -> None:
    """A start between them begins the count anew."""
    restarts = Restarts(first_pause_s=0.5, longest_pause_s=4.0, max_failures=2)
    restarts.failed()
    restarts.started(now=0)
    restarts.failed()
    assert not restarts.exhausted
    restarts.failed()
    assert restarts.exhausted
    assert restarts.pause_s == 4.0
