"""Tenants, pace, and the bound of an endless cache, worked out by hand."""

from collections import Counter

import pytest
from downstack.replay.trace import BLOCK_TOKENS, Arrival
from downstack.replay.workload import bound, make_jobs

TRACE = [
    Arrival(0.0, 3 * BLOCK_TOKENS + 5, 10, (1, 2, 3)),
    Arrival(2.0, 2 * BLOCK_TOKENS, 10, (1, 2)),
    Arrival(4.0, 4 * BLOCK_TOKENS + 9, 10, (1, 2, 3, 4)),
    Arrival(6.0, 2 * BLOCK_TOKENS + 1, 10, (7, 8)),
]


def test_the_bound_is_what_an_endless_cache_would_hold() -> None:
    """The second prompt is all cached but for its last block, since its last token must be computed."""
    jobs = make_jobs(TRACE, speed=1, tenants=1, seed=0)
    assert [job.reusable_tokens for job in jobs] == [0, BLOCK_TOKENS, 3 * BLOCK_TOKENS, 0]
    assert bound(jobs) == pytest.approx(4 * BLOCK_TOKENS / sum(job.prompt_tokens for job in jobs))


def test_speed_shortens_the_time_between_requests() -> None:
    assert [job.at for job in make_jobs(TRACE, speed=4, tenants=1, seed=0)] == [0.0, 0.5, 1.0, 1.5]


def test_a_prompt_that_goes_on_belongs_to_the_same_conversation() -> None:
    first, short, longer, other = (job.conversation for job in make_jobs(TRACE, speed=1, tenants=1, seed=0))
    assert first == longer
    assert len({first, short, other}) == 3


def test_conversations_stay_with_their_tenant_and_tenants_share_nothing() -> None:
    turns = [Arrival(float(n), BLOCK_TOKENS * 3, 1, (0, 3 * (n % 400) + 1, 3 * (n % 400) + 2)) for n in range(800)]
    jobs = make_jobs(turns, speed=1, tenants=4, seed=3)
    assert all(jobs[n].tenant == jobs[n + 400].tenant for n in range(400))
    holders: dict[int, set[str]] = {}
    for job in jobs:
        for block in job.hashes:
            holders.setdefault(block, set()).add(job.tenant)
    assert all(len(tenants) == 1 for tenants in holders.values())


def test_tenants_follow_zipf() -> None:
    """The k-th tenant has about a k-th of the first one's conversations; the seed decides which."""
    turns = [Arrival(float(n), 2 * BLOCK_TOKENS, 1, (2 * n, 2 * n + 1)) for n in range(6000)]
    counts = Counter(job.tenant for job in make_jobs(turns, speed=1, tenants=3, seed=1))
    assert counts["tenant-0"] / counts["tenant-1"] == pytest.approx(2, rel=0.15)
    assert counts["tenant-0"] / counts["tenant-2"] == pytest.approx(3, rel=0.15)
    assert make_jobs(turns, speed=1, tenants=3, seed=1) == make_jobs(turns, speed=1, tenants=3, seed=1)
