"""The simulated engine against vLLM's own scheduler: the same workloads, step by step, exactly the same."""

from collections.abc import Callable, Sequence
from itertools import takewhile

import pytest

from bench.fidelity.figures import compare
from bench.fidelity.observed import Driven
from bench.fidelity.workload import KINDS, workload
from services.worker.domain.sim.core import Shape, SimSequence
from services.worker.domain.sim.pool import BlockPool

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def reference() -> Callable[[Shape], Driven]:
    """vLLM's scheduler; its import takes long, so it is not done where this test is not chosen."""
    from bench.fidelity.vllm_scheduler import VllmEngine  # noqa: PLC0415

    return VllmEngine


def test_it_does_exactly_what_vllm_does(reference: Callable[[Shape], Driven]) -> None:
    """Cached tokens, first scheduling, preemptions, KV events, and every step: all the same in all workloads."""
    figures = compare((workload(seed) for seed in range(42)), reference)
    assert figures.explained == {}
    assert figures.kinds == dict.fromkeys(KINDS, (14, 14))
    covered = figures.covered
    assert covered.requests_with_hits > 100
    assert covered.preemptions > 100
    assert covered.blocks_removed > 1000
    assert covered.aborted > 50
    assert covered.resets > 0


def test_it_does_exactly_what_vllm_does_ahead() -> None:
    """The same where a step is scheduled while the one before it is computed, as vLLM does on a GPU."""
    from bench.fidelity.vllm_scheduler import VllmEngineAhead  # noqa: PLC0415

    figures = compare((workload(seed) for seed in range(24)), VllmEngineAhead, depth=2)
    assert figures.explained == {}
    assert figures.kinds == dict.fromkeys(KINDS, (8, 8))
    assert figures.covered.preemptions > 50
    assert figures.covered.aborted > 30


def _frees_heads_first(monkeypatch: pytest.MonkeyPatch) -> None:
    release = BlockPool.release
    monkeypatch.setattr(BlockPool, "release", lambda pool, blocks: release(pool, blocks[::-1]))


def _ignores_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimSequence, "rank", property(lambda sequence: (0, sequence.arrival)))


def _finds_nothing_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    find = BlockPool.cached_prefix

    def cached_prefix(pool: BlockPool, hashes: Sequence[int]) -> list[int]:
        return list(takewhile(lambda block: pool.count_free([block]), find(pool, hashes)))

    monkeypatch.setattr(BlockPool, "cached_prefix", cached_prefix)


@pytest.mark.parametrize("spoil", [_frees_heads_first, _ignores_priorities, _finds_nothing_in_use])
def test_the_comparison_notices_an_engine_that_is_a_little_different(
    reference: Callable[[Shape], Driven], monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """An agreement means something: each of these engines works, and none is taken for vLLM."""
    spoil(monkeypatch)
    figures = compare((workload(seed) for seed in range(6)), reference)
    assert figures.agree < 6
    assert figures.differ["first_scheduling"] + figures.differ["kv_events"] > 0
