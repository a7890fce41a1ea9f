"""From the monotonic time that decisions are made in to the wall-clock time of contracts and records, and back."""

from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.clock import Clock

# The last second of the year 9999.
_LAST_S = 253_402_300_799.0


class Timeline:
    """Moments in both times, by what the two clocks show now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def wall(self, moment: float) -> float:
        return moment + self._clock.now() - self._clock.monotonic()

    def monotonic(self, wall: float) -> float:
        return wall - self._clock.now() + self._clock.monotonic()

    def stamp(self, moment: float) -> Timestamp:
        """The timestamp of a monotonic moment."""
        return stamp_of(self.wall(moment))

    def stamp_now(self) -> Timestamp:
        """The timestamp of now."""
        return stamp_of(self._clock.now())

    def moment(self, stamp: Timestamp) -> float:
        """The monotonic moment of a timestamp."""
        return self.monotonic(seconds_of(stamp))


def stamp_of(seconds: float) -> Timestamp:
    """The timestamp of a wall-clock time, to the microsecond, within what timestamps can say."""
    stamp = Timestamp()
    stamp.FromMicroseconds(round(min(max(seconds, 0.0), _LAST_S) * 1e6))
    return stamp


def seconds_of(stamp: Timestamp) -> float:
    """The wall-clock time of a timestamp, be it a valid one or not."""
    return stamp.seconds + stamp.nanos / 1e9
