"""How often a stream gets a frame: often enough for its reader, and rarely enough for the process."""

# A wake-up is never exact; up to this it is not late.
_TOLERANCE_S = 0.002
# Every wake-up of every stream is a sample, so the average follows the load within a few frames.
_WEIGHT = 0.05
_GAIN = 4.0


class Pace:
    """The interval between the frames of a stream, the same for all streams of a worker.

    Streams wake up to send what has gathered. Where they wake up late, the process has more to do than it can, and a
    frame costs about as much with one token as with ten: so the interval grows with the lateness, up to `longest_s`,
    and shrinks again to `shortest_s`.
    """

    def __init__(self, *, shortest_s: float, longest_s: float) -> None:
        self._shortest_s = shortest_s
        self._longest_s = max(shortest_s, longest_s)
        self._late_s = 0.0

    @property
    def interval_s(self) -> float:
        """The least time between two frames of one stream."""
        return min(self._longest_s, self._shortest_s + _GAIN * max(0.0, self._late_s - _TOLERANCE_S))

    def woke(self, *, late_s: float) -> None:
        """A stream woke up, this much after the time that it had asked for."""
        self._late_s += _WEIGHT * (max(0.0, late_s) - self._late_s)
