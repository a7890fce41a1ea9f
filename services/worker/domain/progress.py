"""Health by progress: an engine is healthy while its steps advance or nothing waits for one."""


class Progress:
    """Watches the number of steps of an engine that has, or has not, work to do."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._steps = -1
        self._moved_at = 0.0

    def observe(self, *, steps: int, unfinished: int, now: float) -> None:
        """Notes what the engine has done and has to do."""
        if steps != self._steps or unfinished == 0:
            self._steps = steps
            self._moved_at = now

    def healthy(self, *, now: float) -> bool:
        """Whether the last progress, or the last idleness, is recent enough."""
        return now - self._moved_at <= self._timeout_s
