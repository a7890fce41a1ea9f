"""Fusing rankings, and choosing how embeddings are compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.retriever.domain.fusion import reciprocal_rank_fusion
from services.retriever.domain.scan import Scan, choose_scan


def test_what_both_rankings_have_comes_first() -> None:
    """Two second places beat one first place, by the published formula."""
    fused = reciprocal_rank_fusion([["a", "b"], ["c", "b"]])
    assert fused == [("b", 2 / 62), ("a", 1 / 61), ("c", 1 / 61)]


def test_one_ranking_keeps_its_order() -> None:
    """An absent leg changes nothing, and no ranking is no result."""
    assert [key for key, _ in reciprocal_rank_fusion([["x", "y", "z"], []])] == ["x", "y", "z"]
    assert reciprocal_rank_fusion([]) == []


@given(rankings=st.lists(st.lists(st.integers(0, 30), unique=True, max_size=20), max_size=3), k=st.integers(1, 100))
def test_fusion_loses_and_doubles_nothing(rankings: list[list[int]], k: int) -> None:
    """Each key once, scores falling, each score the sum over its ranks."""
    fused = reciprocal_rank_fusion(rankings, k=k)
    assert sorted(key for key, _ in fused) == sorted({key for ranking in rankings for key in ranking})
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)
    for key, score in fused:
        expected = sum(1 / (k + ranking.index(key) + 1) for ranking in rankings if key in ranking)
        assert score == pytest.approx(expected)


@pytest.mark.parametrize(
    ("candidates", "exact_max", "scan"),
    [(0, 0, Scan.EXACT), (1, 0, Scan.HNSW), (20_000, 20_000, Scan.EXACT), (20_001, 20_000, Scan.HNSW)],
)
def test_small_sets_are_compared_exactly(candidates: int, exact_max: int, scan: Scan) -> None:
    """The bound itself is still exact, and the plan says what it rests on."""
    plan = choose_scan(candidates=candidates, exact_max=exact_max)
    assert plan.scan is scan
    assert str(candidates) in plan.reason
    assert str(exact_max) in plan.reason
