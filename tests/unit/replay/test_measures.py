"""The figures of a comparison, worked out by hand."""

import pytest
from downstack.replay.measures import Objectives, Outcome, summarize
from downstack.replay.workload import Job


def job(number: int, *, at: float, tenant: str = "a", prompt: int = 1000, reusable: int = 0) -> Job:
    return Job(
        number=number,
        at=at,
        tenant=tenant,
        conversation="",
        prompt_tokens=prompt,
        output_tokens=11,
        hashes=(),
        reusable_tokens=reusable,
    )


def answered(one: Job, *, ttft: float, tpot: float, cached: int = 0, predicted: int = 0) -> Outcome:
    return Outcome(
        one,
        granted_at=one.at,
        first_at=one.at + ttft,
        finished_at=one.at + ttft + 10 * tpot,
        output_tokens=11,
        cached_tokens=cached,
        predicted_cached_tokens=predicted,
    )


OUTCOMES = [
    answered(job(0, at=0.0), ttft=1.0, tpot=0.01),
    answered(job(1, at=2.0, tenant="b", reusable=512), ttft=3.0, tpot=0.01, cached=256, predicted=512),
    answered(job(2, at=3.0, reusable=512), ttft=0.5, tpot=0.2, cached=512, predicted=512),
    Outcome(job(3, at=4.0), refused="OVERLOADED"),
]


def test_only_answers_in_time_are_good() -> None:
    """One was late with its first token, one with the others, one was refused: a refusal is never hidden."""
    found = summarize(OUTCOMES, objectives=Objectives(ttft_s=2.0, tpot_s=0.1), price_per_s=0.5)
    assert found.goodput == pytest.approx(1 / 5.5)
    assert found.good_share == pytest.approx(1 / 4)
    assert (found.requests, found.admitted, found.refused, found.failed) == (4, 3, 1, 0)
    assert found.refusals == {"OVERLOADED": 1}
    assert found.ttft_p50_ms == pytest.approx(1000)
    assert found.makespan_s == pytest.approx(5.5)
    assert found.cost == pytest.approx(2.75)


def test_hits_are_a_share_of_what_an_endless_cache_would_give() -> None:
    """The rates are of the prompts: hits of those admitted, the bound of all."""
    found = summarize(OUTCOMES, objectives=Objectives(ttft_s=9.0, tpot_s=9.0), price_per_s=0.0)
    assert found.hit_rate == pytest.approx(768 / 3000)
    assert found.hit_share_of_bound == pytest.approx((768 / 3000) / (1024 / 4000))
    assert found.predicted_hit_share == pytest.approx(2 / 3)


def test_fairness_is_of_served_shares() -> None:
    """Tenant a got 2 of 3, tenant b 1 of 1: (2/3 + 1)^2 / (2 * (4/9 + 1))."""
    found = summarize(OUTCOMES, objectives=Objectives(ttft_s=9.0, tpot_s=9.0), price_per_s=0.0)
    assert found.jain == pytest.approx((5 / 3) ** 2 / (2 * (4 / 9 + 1)))


def test_a_replay_in_which_nothing_was_answered_has_figures_too() -> None:
    found = summarize(
        [Outcome(job(0, at=0.0), refused="OVERLOADED")], objectives=Objectives(ttft_s=1, tpot_s=1), price_per_s=1.0
    )
    assert (found.goodput, found.ttft_p99_ms, found.hit_rate) == (0.0, 0.0, 0.0)
