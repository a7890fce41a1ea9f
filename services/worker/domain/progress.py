"""Health by progress: an engine is healthy while its steps advance, or something else proves that it lives."""

# The longest time between two looks that counts: a watcher that slept has seen nothing, good or bad.
_LONGEST_GAP_S = 1.0


class Progress:
    """Watches an engine's steps and, where it has one, its pulse.

    An engine without a pulse is judged by its steps alone: with work and no step for `silence_s` it hangs. One with a
    pulse may take up to `longest_step_s` for a step, such as a long prefill or a compilation, as long as its pulse
    goes on; without pulse and steps for `silence_s` it hangs, also when it is idle.
    """

    def __init__(self, *, silence_s: float, longest_step_s: float) -> None:
        self._silence_s = silence_s
        self._longest_step_s = longest_step_s
        self._seen: tuple[int, int | None] | None = None
        self._at = 0.0
        self._silent_s = 0.0
        self._stuck_s = 0.0

    def observe(self, *, steps: int, unfinished: int, pulse: int | None, now: float) -> None:
        """Notes what the engine has done and has to do. To be called more often than once a second."""
        passed = min(now - self._at, _LONGEST_GAP_S) if self._seen is not None else 0.0
        stepped = self._seen is None or steps != self._seen[0]
        beats = pulse is not None and (self._seen is None or pulse != self._seen[1])
        self._seen, self._at = (steps, pulse), now
        idle = unfinished == 0
        lives = stepped or beats or (pulse is None and idle)
        self._silent_s = 0.0 if lives else self._silent_s + passed
        self._stuck_s = 0.0 if stepped or idle else self._stuck_s + passed

    @property
    def healthy(self) -> bool:
        """Whether the last sign of life, and the last step with work to do, are recent enough."""
        return self._silent_s <= self._silence_s and self._stuck_s <= self._longest_step_s
