"""How long to wait before a part that died is started again."""

from dataclasses import dataclass


@dataclass
class Backoff:
    """Doubling delays, from the first again once a part has lived for `steady_s`."""

    first_s: float = 0.2
    longest_s: float = 10.0
    steady_s: float = 30.0
    _next_s: float = 0.0

    def after_death(self, lived_s: float) -> float:
        """The delay before the next start, given how long the last one lasted."""
        if lived_s >= self.steady_s or not self._next_s:
            self._next_s = self.first_s
        delay_s = self._next_s
        self._next_s = min(self._next_s * 2, self.longest_s)
        return delay_s
