"""The autoscaling signal, worked out by hand."""

import pytest

from services.scheduler.domain.demand import DemandLimits, ModelDemand, work_ms
from services.scheduler.domain.worker import Rates
from tests.unit.scheduler.making import Desk, spec

LIMITS = DemandLimits(window_s=60.0, utilization=0.8, drain_s=5.0)


def steady(*, per_s: float, work: float, seconds: float) -> ModelDemand:
    demand = ModelDemand(LIMITS, now=0.0)
    for number in range(int(seconds * per_s)):
        demand.came(work, now=number / per_s)
    return demand


def test_the_work_of_a_request_is_its_prefill_and_its_share_of_a_full_batch() -> None:
    """5 + 60 new tokens + 60 * (100 + 40) / 2 pairs of 0.01 ms, and 10 steps of (10 + 3 * 2) / 4 ms + 105.5 * 0.1."""
    desk = Desk()
    rates = Rates(
        prefill_base_ms=5,
        prefill_ms_per_token=1,
        decode_base_ms=10,
        decode_ms_per_request=2,
        prefill_ms_per_pair=0.01,
        decode_ms_per_context_token=0.1,
    )
    desk.hello(rates=rates)
    (worker,) = desk.brain.fleet
    assert worker.spec.max_num_seqs == spec().max_num_seqs == 4
    found = work_ms(worker, prompt_tokens=100, cached_tokens=40, output_tokens=11)
    assert found == pytest.approx(5 + 60 + 42 + 10 * (4 + 10.55))


def test_steady_traffic_wants_its_work_over_the_utilization() -> None:
    """10 requests a second of 400 ms are 4 busy workers; at 80 % that is 5, or 6 where the mean is a little above."""
    assert steady(per_s=10, work=400, seconds=300).replicas(waiting=0, now=300) in {5, 6}


def test_the_signal_is_right_before_a_whole_window_has_passed() -> None:
    assert steady(per_s=10, work=400, seconds=10).replicas(waiting=0, now=10) in {5, 6}


def test_what_waits_should_be_gone_in_time() -> None:
    """100 waiting requests of 400 ms in 5 s are 8 workers more; 8 / 0.8 is 10."""
    busy = steady(per_s=10, work=400, seconds=300)
    more = busy.replicas(waiting=100, now=300) - busy.replicas(waiting=0, now=300)
    assert 9 <= more <= 11


def test_a_model_that_nobody_asks_for_wants_nothing() -> None:
    demand = steady(per_s=10, work=400, seconds=60)
    assert demand.replicas(waiting=0, now=60) > 0
    assert demand.replicas(waiting=0, now=3600) == 0
    assert demand.replicas(waiting=1, now=3600) == 1


def test_the_brain_counts_what_it_places_and_what_it_turns_away() -> None:
    """A model is wanted while its requests wait for a worker that is not there any more."""
    desk = Desk(look_ahead=0, max_queued=1)
    desk.hello()
    assert desk.brain.demand.replicas_wanted(now=desk.now) == {}
    desk.place()
    assert desk.brain.demand.replicas_wanted(now=desk.now) == {"m": 1}
    desk.gone()
    desk.ask("req_2")
    assert desk.brain.demand.replicas_wanted(now=desk.now)["m"] >= 1
    desk.now += 3600
    assert desk.brain.demand.replicas_wanted(now=desk.now)["m"] == 1
