"""A replay is the real policy on the simulated engine: deterministic, complete, and honest about what is lost."""

from dataclasses import replace

import pytest
from downstack.replay.compare import Setting, compare, policy_names
from downstack.replay.compare import replay as run
from downstack.replay.faults import Crash
from downstack.replay.measures import Objectives
from downstack.replay.simulation import sized
from downstack.replay.trace import BLOCK_TOKENS, Arrival
from downstack.replay.workload import Job, make_jobs

from services.worker.profiles import load_profile

PROFILE = sized(load_profile("h100-8b"))
SETTING = Setting(profiles=[PROFILE] * 3, objectives=Objectives(ttft_s=5.0, tpot_s=0.1))


def conversations(count: int = 20, turns: int = 4, *, pause_s: float = 4.0) -> list[Job]:
    """Conversations that grow by two blocks a turn, behind a system prompt of one block that all share."""
    arrivals = []
    for turn in range(turns):
        for number in range(count):
            own = tuple(1000 * (number + 1) + block for block in range(2 * (turn + 1)))
            blocks = (1, *own)
            at = turn * pause_s + number * pause_s / count
            arrivals.append(Arrival(at, len(blocks) * BLOCK_TOKENS + 17, 40, blocks))
    arrivals.sort(key=lambda one: one.at)
    return make_jobs(arrivals, speed=1.0, tenants=1, seed=0)


def test_every_request_comes_to_an_end_and_the_same_seed_gives_the_same_figures() -> None:
    jobs = conversations()
    first, second = run(jobs, SETTING, "worth"), run(jobs, SETTING, "worth")
    assert first.summary == second.summary
    assert first.summary.admitted == len(jobs)
    assert all(one.output_tokens == one.job.output_tokens for one in first.outcomes)
    assert all(one.first_at is not None and one.finished_at is not None for one in first.outcomes)


def test_the_cache_that_placement_follows_is_the_cache_that_is_hit() -> None:
    """What was predicted is delivered, and a conversation stays where its blocks are."""
    found = run(conversations(), SETTING, "worth")
    assert found.summary.predicted_hit_share >= 0.99
    assert found.summary.hit_share_of_bound >= 0.95
    homes = {}
    for one in found.outcomes:
        homes.setdefault(one.job.conversation, set()).add(one.worker_id)
    assert sum(len(workers) == 1 for workers in homes.values()) >= 0.9 * len(homes)


def test_all_policies_see_the_same_arrivals() -> None:
    jobs = conversations(count=6, turns=2)
    results = compare(jobs, SETTING, policy_names())
    assert [result.policy for result in results] == policy_names()
    assert all(result.summary.requests == len(jobs) for result in results)
    assert all(0 < result.summary.hit_rate < 1 for result in results)


@pytest.mark.parametrize("schedulers", [1, 4])
def test_schedulers_share_the_fleet(schedulers: int) -> None:
    """Each request is placed by one of them, and what it left in a cache is found by the others."""
    found = run(conversations(), replace(SETTING, schedulers=schedulers), "worth")
    assert found.summary.admitted == found.summary.requests
    assert found.summary.hit_share_of_bound >= 0.9


def test_requests_of_a_crashed_worker_go_elsewhere_unless_they_had_begun() -> None:
    """Nothing is lost without a word: who had a token already has failed, everybody else gets an answer."""
    jobs = conversations(count=60, pause_s=2.5)
    middle = jobs[len(jobs) // 2].at
    found = run(jobs, replace(SETTING, crashes=[Crash(middle, 0, 2.0), Crash(middle, 1, None)]), "least-loaded")
    summary = found.summary
    assert summary.admitted + summary.refused + summary.failed == summary.requests
    assert summary.failed > 0
    assert all(one.worker_id != "w0001" for one in found.outcomes if one.job.at > middle + 0.1 and not one.failed)
    assert any(one.worker_id == "w0000" for one in found.outcomes if one.job.at > middle + 3)


def test_prompts_that_no_worker_can_take_are_refused() -> None:
    jobs = make_jobs([Arrival(0.0, 200_000, 5), Arrival(1.0, 100, 5)], speed=1.0, tenants=1, seed=0)
    found = run(jobs, SETTING, "worth")
    assert [one.refused for one in found.outcomes] == ["PROMPT_TOO_LONG", ""]
