"""The scheduler's index follows the worker's mirror, whatever breaks between them.

Lost connections, new schedulers, other engines, lost events and snapshots that somebody asked for are one thing to both
sides: a snapshot, and the deltas after it. The messages are the real ones, and both ends are the services' own.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from downstack.scheduler.v1.scheduler_pb2 import ConnectRequest, Hello, LeaseState, LoadReport
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.clock import ManualClock
from services.scheduler.adapters.reading import report_of
from services.scheduler.adapters.timeline import Timeline
from services.scheduler.domain.index import BlockIndex
from services.scheduler.domain.kv import Delta, SnapshotPart
from services.worker.app.uplink import Uplink, UplinkLimits
from services.worker.domain.mirror import Cleared, KvChange, Mirror, Removed, Stored
from services.worker.domain.mirror import SnapshotPart as MirrorPart

WORKER = "wkr"
LIMITS = UplinkLimits(max_deltas=3, part_size=4)
HASHES = st.lists(st.integers(0, 15), min_size=1, max_size=6).map(tuple)
CHANGES = st.lists(st.one_of(HASHES.map(Stored), HASHES.map(Removed), st.just(Cleared())), min_size=1, max_size=4)
EVENTS = st.one_of(
    CHANGES,
    CHANGES,
    st.sampled_from(["speak", "speak", "arrive", "arrive", "link lost", "other engine", "other scheduler", "resync"]),
)


class Pair:
    """A worker with its mirror, a scheduler with its index, and the messages on their way between them."""

    def __init__(self) -> None:
        self.epochs = 0
        self.draining = False
        self.timeline = Timeline(ManualClock())
        self.on_the_way: deque[ConnectRequest] = deque()
        self.mirror = Mirror()
        self.index = self._new_index()
        self.uplink = Uplink(self, LIMITS)

    @property
    def epoch(self) -> str:
        return f"epo_{self.epochs}"

    def hello(self) -> Hello:
        return Hello(worker_id=WORKER, epoch=self.epoch)

    def load(self) -> LoadReport:
        return LoadReport()

    def snapshot(self, part_size: int) -> Sequence[MirrorPart]:
        return self.mirror.snapshot(part_size)

    def lease_states(self, lease_ids: Iterable[str]) -> list[LeaseState]:
        return []

    def unacknowledged(self) -> list[LeaseState]:
        return []

    def happen(self, event: str | list[KvChange]) -> None:
        match event:
            case "speak":
                self.on_the_way += self.uplink._kv()
            case "arrive":
                self._arrive()
            case "link lost":
                self._connect()
                self.index.distrust(WORKER)
            case "other scheduler":
                self._connect()
                self.index = self._new_index()
            case "other engine":
                self.epochs += 1
                self.mirror = Mirror()
                self._connect()
                self.index.drop(WORKER)
            case "resync":
                self.uplink.resync()
            case _:
                assert not isinstance(event, str)
                delta = self.mirror.apply(event)
                if delta is not None:
                    self.uplink.add_delta(delta)

    def settle(self) -> None:
        """Lets all arrive."""
        for _ in range(4):
            self.on_the_way += self.uplink._kv()
            while self.on_the_way:
                self._arrive()

    def _arrive(self) -> None:
        if not self.on_the_way:
            return
        said = report_of(self.on_the_way.popleft(), timeline=self.timeline)
        match said:
            case Delta():
                again = self.index.apply_delta(WORKER, said)
            case SnapshotPart():
                again = self.index.apply_snapshot(WORKER, said)
            case _:
                raise AssertionError(said)
        if again:
            self.uplink.resync()

    def _connect(self) -> None:
        self.on_the_way.clear()
        self.uplink = Uplink(self, LIMITS)

    @staticmethod
    def _new_index() -> BlockIndex:
        return BlockIndex(max_blocks_per_worker=100, max_pending_deltas=8, max_predicted_blocks=10)


def resident(mirror: Mirror) -> frozenset[int]:
    return frozenset(block for part in mirror.snapshot(100) for block in part.hashes)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_the_index_is_the_mirror_once_all_has_arrived(events: list[str | list[KvChange]]) -> None:
    """And is trusted, and keeps its own invariants all the way."""
    pair = Pair()
    for event in events:
        pair.happen(event)
        pair.index.validate()
    pair.settle()
    assert pair.index.trusted(WORKER)
    assert pair.index.resident(WORKER) == resident(pair.mirror)
    assert pair.index.position(WORKER) == (pair.epoch, pair.mirror.sequence)
