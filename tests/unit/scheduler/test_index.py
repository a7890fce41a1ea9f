"""The index is exactly the union of the workers' mirrors, whatever happens on the way."""

from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.scheduler.domain.index import BlockIndex
from services.scheduler.domain.kv import Change, Cleared, Delta, Removed, SnapshotPart, Stored


def make_index(**changed: int) -> BlockIndex:
    bounds = {"max_blocks_per_worker": 1000, "max_pending_deltas": 8, "max_predicted_blocks": 100}
    return BlockIndex(**{**bounds, **changed})


def stored(sequence: int, *hashes: int, epoch: str = "e1") -> Delta:
    return Delta(epoch=epoch, sequence=sequence, changes=(Stored(hashes),))


def snapshot(sequence: int, *hashes: int, epoch: str = "e1", last: bool = True) -> SnapshotPart:
    return SnapshotPart(epoch=epoch, sequence=sequence, hashes=hashes, last=last)


def test_longest_prefix_of_every_worker_in_one_pass() -> None:
    """A prefix ends at the first block that a worker lacks, whatever it holds after it."""
    index = make_index()
    index.apply_delta("all", stored(1, 1, 2, 3, 4))
    index.apply_delta("two", stored(1, 1, 2, 4))
    index.apply_delta("tail", stored(1, 2, 3, 4))
    assert index.longest([1, 2, 3, 4]) == {"all": 4, "two": 2}
    assert index.longest([1, 2, 3, 4, 5]) == {"all": 4, "two": 2}
    assert index.longest([9, 1]) == {}
    assert index.longest([]) == {}


def test_a_gap_silences_the_worker_and_asks_once() -> None:
    """After a gap nothing is answered for the worker until its snapshot; others are not touched."""
    index = make_index()
    index.apply_delta("w", stored(1, 1))
    index.apply_delta("other", stored(1, 1))
    assert index.apply_delta("w", stored(3, 3)) is True
    assert index.apply_delta("w", stored(4, 4)) is False
    assert index.longest([1]) == {"other": 1}
    assert not index.trusted("w")
    assert index.apply_snapshot("w", snapshot(3, 1, 2, 3)) is False
    assert index.resident("w") == {1, 2, 3, 4}, "the delta after the snapshot was kept and applied"
    assert index.position("w") == ("e1", 4)
    index.validate()


def test_a_snapshot_takes_effect_with_its_last_part_only() -> None:
    """A snapshot that was cut off changes nothing, and a newer one replaces it."""
    index = make_index()
    index.apply_snapshot("w", snapshot(5, 1, 2, last=False))
    assert index.longest([1]) == {}
    index.apply_snapshot("w", snapshot(7, 7, last=False))
    index.apply_snapshot("w", snapshot(7, 8))
    assert index.resident("w") == {7, 8}
    assert index.trusted("w")


def test_an_old_snapshot_does_not_undo_newer_deltas() -> None:
    """A snapshot taken before the deltas that were applied is ignored."""
    index = make_index()
    index.apply_delta("w", stored(1, 1))
    index.apply_delta("w", stored(2, 2))
    assert index.apply_snapshot("w", snapshot(1, 1)) is False
    assert index.resident("w") == {1, 2}


def test_repeated_deltas_are_ignored() -> None:
    """A delta that was applied already changes nothing, even if its content would."""
    index = make_index()
    index.apply_delta("w", stored(1, 1))
    index.apply_delta("w", Delta(epoch="e1", sequence=2, changes=(Removed((1,)),)))
    assert index.apply_delta("w", stored(1, 1)) is False
    assert index.resident("w") == frozenset()


def test_a_new_engine_starts_empty() -> None:
    """The first delta of a new epoch replaces all of the old one."""
    index = make_index()
    index.apply_delta("w", stored(1, 1, 2))
    assert index.apply_delta("w", stored(1, 3, epoch="e2")) is False
    assert index.resident("w") == {3}
    assert index.apply_delta("w", stored(9, 4, epoch="e3")) is True, "a later delta of an unknown epoch is a gap"


def test_predictions_live_for_a_while_and_yield_to_facts() -> None:
    """A predicted block counts until its time or until the worker says how it stands."""
    index = make_index()
    index.apply_delta("w", stored(1, 1))
    index.predict("w", [1, 2, 3], known=1, until=10.0)
    assert index.longest([1, 2, 3]) == {"w": 3}
    assert index.predicted_blocks == 2, "what is resident needs no prediction"
    index.apply_delta("w", Delta(epoch="e1", sequence=2, changes=(Stored((2,)), Removed((3,)))))
    assert index.longest([1, 2, 3]) == {"w": 2}
    index.predict("w", [4], until=20.0)
    index.predict("w", [4], known=1, until=30.0)
    index.expire(20.0)
    assert index.longest([4]) == {"w": 1}
    index.expire(30.0)
    assert index.longest([4]) == {}
    index.validate()


def test_predictions_are_bounded() -> None:
    """Over the bound the predictions that end soonest go first."""
    index = make_index(max_predicted_blocks=3)
    index.predict("w", [1, 2], until=10.0)
    index.predict("w", [3, 4], until=20.0)
    assert index.predicted_blocks <= 3
    assert index.longest([3, 4]) == {"w": 2}
    index.validate()


def test_a_worker_cannot_flood_the_index() -> None:
    """A worker that reports more blocks than the bound loses its part, and is counted."""
    index = make_index(max_blocks_per_worker=10)
    assert index.apply_delta("w", stored(1, *range(11))) is True
    assert index.blocks == 0
    assert index.overflows == 1
    index.apply_snapshot("w", snapshot(2, *range(100)))
    assert not index.trusted("w")
    assert index.overflows == 2
    index.validate()


def test_memory_is_reported() -> None:
    """The estimate grows with the blocks, and shrinks when a worker is dropped."""
    index = make_index(max_blocks_per_worker=100_000)
    empty = index.memory_bytes()
    index.apply_delta("w", stored(1, *range(50_000)))
    full = index.memory_bytes()
    assert 50_000 * 72 < full - empty < 50_000 * 300
    index.drop("w")
    assert index.blocks == 0
    assert index.blocks_of("w") == 0


class MirrorsMachine(RuleBasedStateMachine):
    """Workers change their caches; what they report may get lost, and they may restart."""

    @initialize()
    def start(self) -> None:
        self.index = make_index()
        self.mirrors: dict[str, set[int]] = defaultdict(set)
        self.sequence: dict[str, int] = defaultdict(int)
        self.epoch: dict[str, int] = defaultdict(lambda: 1)

    workers = st.sampled_from(["a", "b", "c"])
    hashes = st.lists(st.integers(0, 12), max_size=5)

    def _delta(self, worker: str, changes: list[Change]) -> Delta:
        self.sequence[worker] += 1
        return Delta(epoch=f"e{self.epoch[worker]}", sequence=self.sequence[worker], changes=tuple(changes))

    @rule(worker=workers, added=hashes, removed=hashes, cleared=st.booleans(), lost=st.booleans(), twice=st.booleans())
    def change(
        self, *, worker: str, added: list[int], removed: list[int], cleared: bool, lost: bool, twice: bool
    ) -> None:
        mirror = self.mirrors[worker]
        changes: list[Change] = []
        if cleared:
            mirror.clear()
            changes.append(Cleared())
        mirror.update(added)
        mirror.difference_update(removed)
        changes += [Stored(tuple(added)), Removed(tuple(removed))]
        delta = self._delta(worker, changes)
        for _ in range(0 if lost else 1 + twice):
            trusted = self.index.trusted(worker)
            if self.index.apply_delta(worker, delta):
                assert trusted, "a snapshot is asked for once, when trust ends"
                assert not self.index.trusted(worker)

    @rule(worker=workers)
    def restart(self, worker: str) -> None:
        self.mirrors[worker].clear()
        self.sequence[worker] = 0
        self.epoch[worker] += 1

    @rule(worker=workers, cut=st.booleans(), behind=st.booleans())
    def send_snapshot(self, *, worker: str, cut: bool, behind: bool) -> None:
        blocks, sequence = sorted(self.mirrors[worker]), self.sequence[worker]
        half, epoch = len(blocks) // 2, f"e{self.epoch[worker]}"
        late = self._delta(worker, [Stored((99,))]) if behind else None
        if late is not None:  # a change that overtakes the snapshot on its way
            self.mirrors[worker].add(99)
            self.index.apply_delta(worker, late)
        self.index.apply_snapshot(worker, snapshot(sequence, *blocks[:half], epoch=epoch, last=False))
        if not cut:
            self.index.apply_snapshot(worker, snapshot(sequence, *blocks[half:], epoch=epoch))

    @rule(worker=workers, predicted=hashes)
    def predict_and_expire(self, *, worker: str, predicted: list[int]) -> None:
        self.index.predict(worker, predicted, until=1.0)
        self.index.expire(1.0)

    @rule(worker=workers)
    def drop(self, worker: str) -> None:
        self.index.drop(worker)

    @invariant()
    def trusted_parts_are_the_mirrors(self) -> None:
        self.index.validate()
        for worker, mirror in self.mirrors.items():
            current = self.index.position(worker) == (f"e{self.epoch[worker]}", self.sequence[worker])
            if self.index.trusted(worker) and current:
                assert self.index.resident(worker) == mirror
        for block in range(13):
            for worker in self.index.longest([block]):
                assert self.index.trusted(worker)
                assert block in self.index.resident(worker)


MirrorsMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_index_equals_the_mirrors = MirrorsMachine.TestCase


@pytest.mark.parametrize("count", [1, 64, 200])
def test_many_workers_have_bits_of_their_own(count: int) -> None:
    """Every worker keeps its own prefix, also after others were dropped and came again."""
    index = make_index()
    for number in range(count):
        index.apply_delta(f"w{number}", stored(1, *range(number % 5 + 1)))
    index.drop("w0")
    index.apply_delta("again", stored(1, 0, 1))
    found = index.longest(range(5))
    assert len(found) == count
    assert found["again"] == 2
    index.validate()
