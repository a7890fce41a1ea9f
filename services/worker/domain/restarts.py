"""When a lost engine is started anew, and when that is given up."""

# An engine that served this long after its start has settled: its next loss is the first again.
_SETTLED_S = 60.0


class Restarts:
    """Counts starts that failed and engines that did not last.

    The pause before a start doubles with each of them. Only starts that failed in a row are a reason to give up: an
    engine that starts can serve.
    """

    def __init__(self, *, first_pause_s: float, longest_pause_s: float, max_failures: int) -> None:
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._max_failures = max_failures
        self._setbacks = 0
        self._failures = 0
        self._started_at = 0.0

    @property
    def pause_s(self) -> float:
        """How long to wait before the next start."""
        return min(self._first_pause_s * 2.0 ** min(self._setbacks, 32), self._longest_pause_s)

    @property
    def exhausted(self) -> bool:
        """Whether as many starts failed in a row as may."""
        return self._failures >= self._max_failures

    def started(self, *, now: float) -> None:
        """An engine has started."""
        self._failures = 0
        self._started_at = now

    def lost(self, *, now: float) -> None:
        """The engine that had started is lost."""
        self._setbacks = 0 if now - self._started_at >= _SETTLED_S else self._setbacks + 1

    def failed(self) -> None:
        """A start failed."""
        self._setbacks += 1
        self._failures += 1
