"""An engine's names of blocks and ours."""

from services.worker.domain.names import BlockNames


def test_a_name_lasts_as_long_as_the_last_copy() -> None:
    """Two copies of one block, of which one goes and then the other; what has no name is left out."""
    names = BlockNames[str]()
    assert [names.stored("a", 1), names.stored("a", 1), names.stored("b", 2)] == [1, 1, 2]
    assert names.removed(["a", "unknown"]) == [1]
    assert (names.ours("a"), names.ours("unknown"), len(names)) == (1, None, 2)
    assert names.removed(["a", "b"]) == [1, 2]
    assert (names.ours("a"), len(names)) == (None, 0)


def test_nothing_is_known_after_clearing() -> None:
    names = BlockNames[int]()
    names.stored(7, 70)
    names.clear()
    assert names.removed([7]) == []
