"""Sums over a window that fades, so that they need no memory of what was added."""

import math


class FadingSum:
    """What was added counts less with time: after `window_s` a share of 1/e is left of it."""

    def __init__(self, window_s: float, *, now: float) -> None:
        self._window_s = window_s
        self._since = self._at = now
        self._sum = 0.0

    def add(self, amount: float, *, now: float) -> None:
        self._sum = self.left(now) + amount
        self._at = max(self._at, now)

    def left(self, now: float) -> float:
        """What is left of it."""
        return self._sum * math.exp(-max(0.0, now - self._at) / self._window_s)

    def per_second(self, now: float) -> float:
        """The mean rate. Until a window has passed, it is over the time since the start, but at least a second."""
        seen_s = self._window_s * -math.expm1(-max(now - self._since, 1.0) / self._window_s)
        return self.left(now) / seen_s
