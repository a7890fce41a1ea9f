"""From the monotonic time that decisions are made in to the wall-clock time of contracts and records, and back."""

from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.clock import Clock


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

    def moment(self, stamp: Timestamp) -> float:
        """The monotonic moment of a timestamp."""
        return self.monotonic(seconds_of(stamp))


def stamp_of(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e6) * 1000)
    return stamp


def seconds_of(stamp: Timestamp) -> float:
    return stamp.ToNanoseconds() / 1e9
