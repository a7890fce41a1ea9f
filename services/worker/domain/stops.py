"""Stop strings over a text that comes in pieces."""

from collections.abc import Sequence


class StopMatcher:
    """Passes text on up to the first stop string, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._hold = max((len(stop) for stop in stops), default=1) - 1
        self._pending = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that can be shown now; nothing any more once a stop string was found."""
        if self.stopped:
            return ""
        self._pending += text
        found = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._take(min(found))
        return self._take(max(0, len(self._pending) - self._hold))

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        return "" if self.stopped else self._take(len(self._pending))

    def _take(self, length: int) -> str:
        taken, self._pending = self._pending[:length], self._pending[length:]
        return taken
