"""When a worker is given a prompt, and when it must first get on with its answers."""

import numpy as np
import pytest

from services.scheduler.domain.lease import LeasePhase, Occupancy
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.pace import Pace, duty
from services.scheduler.domain.roster import Figures, figures_of
from services.scheduler.domain.worker import Worker
from tests.unit.scheduler.making import RATES, Desk, offer, spec


def figures(*, chunk_tokens: int, requests: int = 0, number: int = 0) -> Figures[float]:
    """A worker: a step of 10 ms and 1 ms for each further request, a chunk of 5 ms and 1 ms a token."""
    held = Occupancy(requests=requests)
    made = spec(max_num_batched_tokens=chunk_tokens, max_num_seqs=64)
    worker = Worker(worker_id="w", epoch="e", endpoint="w:1", spec=made, connection=1, reported_at=0.0, rates=RATES)
    return figures_of(worker, held, number=number, limits=Limits())


def test_the_duty_leaves_answers_their_pace() -> None:
    """(1/10 - 1/60) / (1/10 - 1/205) of the time for prompts gives a token each 60 ms."""
    share = duty(figures(chunk_tokens=200), tpot_ms=60.0)
    assert share == pytest.approx(0.0833333 / 0.0951220, abs=1e-4)
    assert share / 205 + (1 - share) / 10 == pytest.approx(1 / 60)


def test_short_chunks_hold_nobody_up() -> None:
    """A chunk that takes no longer than a token may, needs no rest; slow answers leave prompts half of the time."""
    assert duty(figures(chunk_tokens=55), tpot_ms=60.0) == 1.0
    assert duty(figures(chunk_tokens=200, requests=63), tpot_ms=60.0) == 0.5


def test_a_prompt_takes_its_worker_longer_than_it_computes() -> None:
    """At a duty of one half a prompt of 600 ms takes 1.2 s; beyond one second ahead, no more is given."""
    pace, both = Pace(Limits(prefill_ahead_ms=1000.0, pace_tpot_ms=60.0)), np.array([3, 2])
    assert pace.allows(both, now=100.0).all()
    pace.given(figures(chunk_tokens=200, requests=63, number=3), prefill_ms=600.0, now=100.0)
    assert pace.allows(both, now=100.1).tolist() == [False, True], "another worker is not held up"
    assert pace.allows(both, now=100.2).all()


def test_prompts_wait_in_the_scheduler() -> None:
    """A worker with more than a second of prompts is given the next one when its first is computed."""
    desk = Desk(prefill_ahead_ms=1000.0)
    desk.hello(max_num_seqs=64)
    first = desk.place("r1", offers=(offer(1600, first_hash=1),))
    call, found = desk.ask("r2", offers=(offer(160, first_hash=10_000),))
    assert found == []
    desk.now += 1.0
    (placed,) = desk.run(first, LeasePhase.DECODING)
    assert getattr(placed, "call", None) == call


def test_an_idle_worker_is_given_a_prompt_whatever_it_had() -> None:
    desk = Desk(prefill_ahead_ms=0.0)
    desk.hello()
    desk.run(desk.place("r1", offers=(offer(1600),)), LeasePhase.FINISHED)
    assert desk.place("r2", offers=(offer(1600, first_hash=50_000),)).grant.worker_id == "w1"
