"""The mirror of the KV cache."""

from hypothesis import given
from hypothesis import strategies as st

from services.worker.domain.mirror import Cleared, KvChange, Mirror, Removed, Stored

HASHES = st.lists(st.integers(0, 12), min_size=1, max_size=5).map(tuple)
CHANGES = st.lists(st.one_of(HASHES.map(Stored), HASHES.map(Removed), st.just(Cleared())), max_size=6)


def replay(blocks: set[int], changes: tuple[KvChange, ...]) -> set[int]:
    """What a scheduler makes of a delta."""
    for change in changes:
        match change:
            case Stored(hashes):
                assert not blocks.intersection(hashes)
                blocks = blocks | set(hashes)
            case Removed(hashes):
                assert blocks.issuperset(hashes)
                blocks = blocks - set(hashes)
            case Cleared():
                blocks = set()
    return blocks


def resident(mirror: Mirror) -> set[int]:
    return {block for part in mirror.snapshot(3) for block in part.hashes}


def test_a_block_that_is_held_twice_stays_until_both_copies_went() -> None:
    """Deltas name the set, not the copies."""
    mirror = Mirror()
    first = mirror.apply([Stored((1, 2)), Stored((1,))])
    assert first is not None
    assert first.changes == (Stored((1, 2)),)
    assert mirror.apply([Removed((1,))]) is None
    gone = mirror.apply([Removed((1,))])
    assert gone is not None
    assert gone.changes == (Removed((1,)),)
    assert (1 in mirror, 2 in mirror, len(mirror)) == (False, True, 1)


def test_what_changes_nothing_has_no_number() -> None:
    """Sequence numbers have no gap, so a delta that says nothing is not one."""
    mirror = Mirror()
    assert mirror.apply([Removed((9,))]) is None
    assert mirror.apply([]) is None
    delta = mirror.apply([Stored((9,))])
    assert delta is not None
    assert delta.sequence == mirror.sequence == 1


def test_clearing_an_empty_cache_is_told_as_well() -> None:
    """A scheduler may know of blocks that this mirror never saw."""
    mirror = Mirror()
    delta = mirror.apply([Stored((1,)), Cleared(), Stored((2,))])
    assert delta is not None
    assert delta.changes == (Cleared(), Stored((2,)))


def test_a_snapshot_comes_in_parts() -> None:
    """Each block once, the last part marked; an empty cache has one empty part."""
    mirror = Mirror()
    assert [(part.hashes, part.last) for part in mirror.snapshot(4)] == [((), True)]
    mirror.apply([Stored(tuple(range(10)))])
    parts = mirror.snapshot(4)
    assert [len(part.hashes) for part in parts] == [4, 4, 2]
    assert [part.last for part in parts] == [False, False, True]
    assert {part.sequence for part in parts} == {1}


@given(st.lists(CHANGES, max_size=12))
def test_deltas_replayed_are_the_snapshot(batches: list[list[KvChange]]) -> None:
    """Whoever applies every delta has exactly what a snapshot would say, at each position."""
    mirror, seen, sequence = Mirror(), set[int](), 0
    for batch in batches:
        delta = mirror.apply(batch)
        if delta is not None:
            sequence += 1
            assert delta.sequence == sequence
            seen = replay(seen, delta.changes)
        assert seen == resident(mirror)
