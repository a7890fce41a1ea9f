"""Which worker is chosen, and what the record says of it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.domain.cost import cached_tokens, charge, estimate
from services.scheduler.domain.kv import Delta, Stored
from services.scheduler.domain.lease import NOTHING, LeasePhase, Occupancy, Usage
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.request import Offer
from services.scheduler.domain.roster import Columns, Figures, figures_of, tpot_ms
from services.scheduler.domain.worker import DEFAULT_RATES, Load, Rates, Worker
from tests.unit.scheduler.making import BLOCK, PRICE, RATES, Desk, offer, spec

FAST = Rates(prefill_base_ms=1.0, prefill_ms_per_token=0.1, decode_base_ms=1.0, decode_ms_per_request=0.1)


def worker(**changed: object) -> Worker:
    return Worker(
        worker_id="w", epoch="e", endpoint="w:1", spec=spec(**changed), connection=1, reported_at=0.0, rates=RATES
    )


def one_row(held: Occupancy = NOTHING, **changed: object) -> Columns:
    """The columns of a fleet of one worker."""
    return Figures(
        *(np.array([float(figure)]) for figure in figures_of(worker(**changed), held, number=0, limits=Limits()))
    )


def cached(columns: Columns, one: Offer, blocks: int) -> float:
    return float(cached_tokens(columns, one, np.array([float(blocks)]))[0])


def hold(desk: Desk, worker_id: str, *hashes: int) -> None:
    desk.say(Delta(epoch="kv", sequence=1, changes=(Stored(hashes),)), worker_id)


def two_workers(policy: str = "worth", **limits: float) -> Desk:
    desk = Desk(policy=policy, **limits)
    desk.hello("w1")
    desk.hello("w2")
    return desk


def test_the_cache_decides_between_equals() -> None:
    """Of two idle workers the one that holds the prefix is chosen, and the record says so."""
    desk = two_workers()
    hold(desk, "w2", *offer(160).block_hashes[:8])
    placed = desk.place(offers=(offer(160),))
    assert placed.grant.worker_id == "w2"
    assert placed.grant.predicted_cached_tokens == 128
    chosen, other = placed.decision.candidates
    assert (chosen.worker_id, chosen.cached_tokens, chosen.filtered_by) == ("w2", 128, "")
    assert chosen.ttft_ms == pytest.approx(5 + 32)
    assert other.ttft_ms == pytest.approx(5 + 160)
    assert chosen.score is not None
    assert other.score is not None
    assert chosen.score > other.score
    assert chosen.charge_nano == 32 * 100 + 128 * 10 + 16 * 400
    assert "holds 128 of 160 prompt tokens" in placed.decision.reason
    assert placed.decision.reason.endswith("w1 would take 165 ms with 0 cached.")


def test_the_load_outweighs_the_cache_where_it_must() -> None:
    """A worker whose queue costs more than its cache saves is passed over."""
    desk = two_workers()
    hold(desk, "w1", *offer(64).block_hashes)
    desk.place("long", offers=(offer(1600, first_hash=90_000),), excluded_workers=frozenset({"w2"}))
    assert desk.place("r2").grant.worker_id == "w2"


def test_a_burst_of_siblings_stays_together() -> None:
    """A sibling that comes before the first one's KV events is placed where those blocks are about to be."""
    desk = two_workers(predicted_life_s=5.0)
    first = desk.place("r1", offers=(offer(640),))
    desk.run(first, LeasePhase.DECODING)
    assert desk.brain.index.predicted_blocks == 40
    sibling = desk.place("r2", offers=(offer(640),))
    assert sibling.grant.worker_id == first.grant.worker_id
    assert sibling.grant.predicted_cached_tokens == 624
    desk.after(5.1)
    assert desk.brain.index.predicted_blocks == 0


def test_a_worker_without_events_is_believed_to_evict() -> None:
    """What its cache cannot hold any more counts as evicted: the least recently placed, the tail of a prompt first."""
    desk = Desk(approximate_life_s=120.0)
    desk.hello(kv_events=False, kv_blocks=50, max_num_seqs=8)
    first, second = offer(640), offer(320, first_hash=9000)
    for number, one in enumerate((first, second)):
        desk.run(desk.place(f"r{number}", offers=(one,)), LeasePhase.FINISHED)
    assert desk.brain.index.predicted_blocks == 50
    assert desk.brain.index.longest(first.block_hashes) == {"w1": 30}
    assert desk.brain.index.longest(second.block_hashes) == {"w1": 20}
    desk.after(60.0)
    assert desk.brain.index.predicted_blocks == 50, "they live longer than predictions that events will settle"


def test_the_faster_of_two_kinds_is_chosen() -> None:
    """Rates are each worker's own, and those it reports replace those it declared."""
    desk = two_workers()
    desk.say(Load(rates=FAST), "w2")
    assert desk.place("r1").grant.worker_id == "w2"
    desk.say(Load(rates=Rates(prefill_ms_per_token=float("nan"))), "w2")
    assert desk.brain.fleet.get("w2").rates == FAST, "impossible rates are not believed"  # type: ignore[union-attr]


def test_a_blocked_size_mismatch_is_no_hit() -> None:
    """Hashes of another block size say nothing about a worker's cache."""
    assert cached(one_row(), offer(64, block_size=BLOCK), 2) == 32
    assert cached(one_row(block_size=32), offer(64), 2) == 0
    assert cached(one_row(), offer(64, block_hashes=(), block_size=0), 2) == 0
    assert cached(one_row(), offer(64), 4) == 48, "the last token is always computed"
    assert cached(one_row(), offer(65), 4) == 64


def test_a_worker_is_given_no_more_than_keeps_its_batch_full() -> None:
    """A worker holds its batch and the look-ahead; the rest waits."""
    desk = Desk(look_ahead=2)
    desk.hello(max_num_seqs=4)
    placed = [desk.place(f"r{n}") for n in range(6)]
    assert desk.ask("r7")[1] == []
    assert placed[-1].decision.candidates[0].running_requests == 5
    assert len(desk.brain.queue) == 1


def test_the_kv_cache_bounds_what_is_given() -> None:
    """A worker whose leases will need all of its cache is given no more; the last of them may need more than that."""
    desk = Desk()
    desk.hello(kv_blocks=10, max_num_seqs=8)
    desk.place("r1", offers=(offer(96, first_hash=1),))
    second = desk.place("r2", offers=(offer(96, first_hash=100),))
    assert second.decision.candidates[0].ttft_ms == pytest.approx((5 + 96) + 16 * 11 * (112 - 48) / 112 + (5 + 96))
    assert desk.ask("r3", offers=(offer(96, first_hash=200),))[1] == []
    desk.hello("w2", kv_blocks=10)
    assert len(desk.brain.queue) == 0


def test_the_record_keeps_32_candidates() -> None:
    """With many workers the record has the best, the chosen one first."""
    desk = Desk()
    for number in range(40):
        desk.hello(f"w{number:02}")
    decision = desk.place().decision
    assert len(decision.candidates) == 32
    assert decision.candidates[0].worker_id == decision.worker_id


def test_filtered_candidates_name_their_filter() -> None:
    """Who could not take the request, and why, is in the record."""
    desk = two_workers()
    desk.hello("w3", context_tokens=32)
    desk.gone("w2")
    found = {each.worker_id: (each.filtered_by, each.score) for each in desk.place().decision.candidates}
    assert found["w2"] == ("ready", None)
    assert found["w3"] == ("context", None)
    assert found["w1"][0] == ""


def test_model_and_machine_are_chosen_together() -> None:
    """A better model wins by its worth, unless its price or its bounds say otherwise."""
    desk = Desk()
    desk.hello("w1", model="small")
    desk.hello("w2", model="large")
    offers = (offer(model="small", quality=0.5), offer(model="large", quality=0.9))
    placed = desk.place("r1", offers=offers)
    assert (placed.grant.model, placed.grant.requested_model) == ("large", "auto")
    assert desk.place("r2", offers=offers, value=0.0, min_quality=0.8).grant.model == "large"
    with_busy_large = desk.place("r3", offers=offers, value=0.0).grant
    assert with_busy_large.model == "small"


def test_round_robin_takes_turns() -> None:
    desk = Desk(policy="round-robin")
    for number in range(3):
        desk.hello(f"w{number}")
    chosen = [desk.place(f"r{n}").grant.worker_id for n in range(6)]
    assert chosen == ["w0", "w1", "w2", "w0", "w1", "w2"]


def test_least_loaded_spreads() -> None:
    desk = two_workers("least-loaded")
    chosen = Counter(desk.place(f"r{n}").grant.worker_id for n in range(8))
    assert chosen == {"w1": 4, "w2": 4}


def test_chance_is_seeded() -> None:
    """The same seed gives the same placements; random ones reach every worker."""

    def run(seed: int) -> list[str]:
        desk = Desk(policy="random", seed=seed)
        for number in range(4):
            desk.hello(f"w{number}", max_num_seqs=100)
        return [desk.place(f"r{n}").grant.worker_id for n in range(40)]

    assert run(3) == run(3)
    assert run(3) != run(4)
    assert len(set(run(3))) == 4


def test_stale_reports_widen_the_estimate() -> None:
    """A worker that has not reported for a while is still used, but not preferred."""
    desk = two_workers()
    desk.now += 5
    desk.say(Load(), "w2")
    assert desk.place().grant.worker_id == "w2"


def test_output_lengths_are_learned() -> None:
    """What a tenant's answers were long is what the next one is expected to be."""
    desk = Desk()
    desk.hello()
    desk.run(desk.place("r1"), LeasePhase.FINISHED, Usage(output_total=40))
    placed = desk.place("r2", offers=(offer(output_tokens=None),), max_output_tokens=1000)
    lease = desk.brain.book.get(placed.grant.lease_id)
    assert lease is not None
    assert lease.expected_output == 40


counts = st.integers(0, 5_000)


@given(prompt=st.integers(1, 5_000), reused=counts, more=counts, held=st.integers(0, 20), stale=st.floats(-5, 100))
def test_estimates_are_monotonic(prompt: int, reused: int, more: int, held: int, stale: float) -> None:
    """More cached never takes longer, more load never less, and nothing is negative."""
    reused = min(reused, prompt)
    warmer = min(reused + more, prompt)
    one = offer(prompt, block_hashes=(), block_size=0)

    def predict(tokens: int, occupancy: Occupancy) -> float:
        found = estimate(
            one_row(occupancy),
            one,
            cached=np.array([float(tokens)]),
            output=10,
            price=PRICE,
            reported_since=stale,
        )
        assert 0 <= found.ttft_ms[0] <= found.total_ms[0]
        assert found.cost[0] >= 0
        return float(found.ttft_ms[0])

    loaded = Occupancy(requests=held, prefills=held, prefill_tokens=100 * held)
    assert predict(warmer, loaded) <= predict(reused, loaded)
    assert predict(reused, loaded) >= predict(reused, Occupancy())


def test_charges_are_exact() -> None:
    assert charge(PRICE, uncached=3, cached=5, output=7) == 3 * 100 + 5 * 10 + 7 * 400
    assert tpot_ms(RATES, batch=1) == 10.0
    assert tpot_ms(RATES, batch=4) == 13.0
    assert DEFAULT_RATES.plausible()
