"""The columns decide as the formulas say, worker by worker."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.domain.cost import DEFAULT_OBJECTIVES, charge
from services.scheduler.domain.instructions import Place
from services.scheduler.domain.kv import Delta, Stored
from services.scheduler.domain.lease import LeasePhase
from services.scheduler.domain.request import Offer, Request
from services.scheduler.domain.roster import tpot_ms
from services.scheduler.domain.stimuli import Leaving
from services.scheduler.domain.worker import Load, Rates, Worker
from tests.unit.scheduler.making import PRICE, Desk, offer

SLOW = Rates(
    prefill_base_ms=9.0,
    prefill_ms_per_token=3.0,
    decode_base_ms=30.0,
    decode_ms_per_request=4.0,
    prefill_ms_per_pair=0.01,
    decode_ms_per_context_token=0.02,
)
MODELS = ("m", "n")

machines = st.fixed_dictionaries(
    {
        "model": st.sampled_from(MODELS),
        "max_num_seqs": st.sampled_from([1, 2, 4]),
        "kv_blocks": st.sampled_from([8, 20, 1024]),
        "context_tokens": st.sampled_from([100, 4096]),
        "block_size": st.sampled_from([16, 16, 16, 32]),
        "price_per_hour_nano": st.sampled_from([0, 0, 2 * 10**9]),
    }
)
asks = st.fixed_dictionaries(
    {
        "prompt": st.integers(1, 200),
        "prefix": st.integers(0, 2),
        "both": st.booleans(),
        "excluded": st.sets(st.integers(0, 5), max_size=2),
        "value": st.sampled_from([None, 0.0, 0.01, 5.0]),
        "max_cost": st.sampled_from([None, None, 1e-5]),
        "min_quality": st.sampled_from([None, None, 0.8]),
        "phase": st.sampled_from([None, LeasePhase.STARTED, LeasePhase.DECODING, LeasePhase.FINISHED]),
    }
)


def refusal(desk: Desk, worker: Worker, one: Offer, request: Request, cached: int) -> str:
    """The filter that excludes a worker, in plain words."""
    spec, held = worker.spec, desk.brain.book.occupancy(worker.worker_id)
    bill = charge(PRICE, uncached=one.prompt_tokens - cached, cached=cached, output=one.output_tokens or 0)
    prefix = 2 * cached > one.prompt_tokens
    place = held.requests < spec.max_num_seqs + desk.limits.look_ahead + (desk.limits.prefix_ahead if prefix else 0)
    room = prefix or held.kv_tokens < spec.kv_tokens
    reasons = {
        "ready": not worker.ready,
        "not-tried": worker.worker_id in request.excluded_workers,
        "context": one.prompt_tokens >= min(spec.context_tokens, spec.kv_tokens),
        "bounds": (request.min_quality is not None and one.quality < request.min_quality)
        or (request.max_cost is not None and bill > request.max_cost * 1e9),
        "capacity": held.requests > 0 and not (place and room),
    }
    return next((name for name, holds in reasons.items() if holds), "")


def room_at_all(desk: Desk, request: Request) -> bool:
    """Whether some worker that the request may use is full neither in its batch nor in its cache."""
    models = {one.model for one in request.offers}
    for worker in desk.brain.fleet:
        held = desk.brain.book.occupancy(worker.worker_id)
        place = held.requests < worker.spec.max_num_seqs + desk.limits.look_ahead
        room = held.requests == 0 or (place and held.kv_tokens < worker.spec.kv_tokens)
        if room and worker.ready and worker.worker_id not in request.excluded_workers and worker.spec.model in models:
            return True
    return False


def waiting_prompts(desk: Desk, model: str) -> float:
    """The prompts that wait on a ready worker, on average."""
    ready = [worker.worker_id for worker in desk.brain.fleet.serving(model) if worker.ready]
    return sum(desk.brain.book.occupancy(worker_id).prefills for worker_id in ready) / max(1, len(ready))


def predicted(desk: Desk, worker: Worker, one: Offer, request: Request, cached: int) -> tuple[float, float, float]:
    """The time to the first token, the whole time and the score of a worker, by the cost model's formulas."""
    spec, rates, held = worker.spec, worker.rates, desk.brain.book.occupancy(worker.worker_id)
    output, seqs = one.output_tokens or 0, spec.max_num_seqs
    batch = min(held.requests + 1, seqs)
    prefill = rates.prefill_base_ms + (one.prompt_tokens - cached) * rates.prefill_ms_per_token
    prefill += rates.prefill_ms_per_pair * (one.prompt_tokens**2 - cached**2) / 2
    wait = held.prefills * rates.prefill_base_ms + held.prefill_tokens * rates.prefill_ms_per_token
    wait += held.prefill_pairs * rates.prefill_ms_per_pair
    read = held.context_tokens * min(1.0, seqs / max(1, held.requests))
    turn = output * tpot_ms(rates, batch=batch, context_tokens=read)
    missing = max(0, one.prompt_tokens - cached + output - (spec.kv_tokens - held.kv_tokens))
    wait += turn * max(max(0, held.requests + 1 - seqs) / seqs, missing / max(1, held.kv_tokens))
    wait += 1000 * max(0.0, desk.now - worker.reported_at - 2 * desk.limits.report_interval_s)
    own = one.prompt_tokens + output / 2
    decode = (output - 1) * tpot_ms(rates, batch=batch, context_tokens=read + own)
    ttft, total = wait + prefill, wait + prefill + decode
    cost = (prefill + decode / batch) * spec.price_per_hour_nano / 1e9 / 3_600_000
    if not spec.price_per_hour_nano:
        cost = charge(PRICE, uncached=one.prompt_tokens - cached, cached=cached, output=output) / 1e9
    wish, left = DEFAULT_OBJECTIVES[request.priority], 1000 * (request.deadline_at - desk.now)
    overdue = max(0.0, ttft - wish.ttft_ms) + max(0.0, total - left)
    late = wish.per_second * (ttft + wish.decode_share * (total - ttft)) + wish.per_second_late * overdue
    slope = wish.per_second + wish.per_second_late * ((ttft >= wish.ttft_ms) + (total >= left))
    others = 1.0 + 6.0 * waiting_prompts(desk, one.model)
    late += prefill * slope * others
    value = request.value
    if value is None:
        value = 1.0 if request.min_quality is None and request.max_cost is None else 0.0
        cost = 0.0 if request.max_cost is not None and request.min_quality is None else cost
    return ttft, total, value * one.quality - cost - late / 1000


def expected(desk: Desk, request: Request) -> dict[tuple[str, str], tuple[str, float, float, float]]:
    """What the record should say of each candidate."""
    found = {}
    for one in request.offers:
        prefixes = desk.brain.index.longest(one.block_hashes)
        for worker in desk.brain.fleet.serving(one.model):
            blocks = min(prefixes.get(worker.worker_id, 0), (one.prompt_tokens - 1) // 16)
            cached = 16 * blocks if worker.spec.block_size == 16 else 0
            times = predicted(desk, worker, one, request, cached)
            found[worker.worker_id, one.model] = (refusal(desk, worker, one, request, cached), *times)
    return found


def fleet_of(machines_here: Sequence[dict[str, Any]], faults: dict[int, str]) -> Desk:
    desk = Desk(look_ahead=1, prefix_ahead=1, prefill_ahead_ms=1e9)
    for number, machine in enumerate(machines_here):
        worker_id = f"w{number}"
        desk.hello(worker_id, **machine)
        desk.say(Delta(epoch="kv", sequence=1, changes=(Stored(tuple(range(1000, 1000 + 3 * number))),)), worker_id)
        match faults.get(number):
            case "gone":
                desk.gone(worker_id)
            case "leaving":
                desk.say(Leaving(), worker_id)
            case "unhealthy":
                desk.say(Load(serving=False), worker_id)
            case "slow":
                desk.say(Load(rates=SLOW), worker_id)
    return desk


def request_of(desk: Desk, number: int, ask: dict[str, Any]) -> Request:
    models = MODELS if ask["both"] else MODELS[:1]
    offers = tuple(
        offer(ask["prompt"], first_hash=1000 * (1 + ask["prefix"]), model=model, quality=quality)
        for model, quality in zip(models, (0.7, 0.9), strict=False)
    )
    bounds = {name: ask[name] for name in ("value", "max_cost", "min_quality")}
    excluded = frozenset(f"w{each}" for each in ask["excluded"])
    return desk.request(f"r{number}", offers=offers, excluded_workers=excluded, **bounds)


@settings(max_examples=150, deadline=None)
@given(
    fleet=st.lists(machines, min_size=1, max_size=6),
    faults=st.dictionaries(st.integers(0, 5), st.sampled_from(["gone", "leaving", "unhealthy", "slow"]), max_size=3),
    requests=st.lists(asks, min_size=1, max_size=8),
)
def test_a_decision_is_the_best_of_all_workers(
    fleet: list[dict[str, Any]], faults: dict[int, str], requests: list[dict[str, Any]]
) -> None:
    """The record states for each worker what the formulas give, and the chosen one has the highest score of those."""
    desk = fleet_of(fleet, faults)
    for number, ask in enumerate(requests):
        request = request_of(desk, number, ask)
        foreseen = expected(desk, request)
        scores = [score for refused, _, _, score in foreseen.values() if not refused]
        roomy = room_at_all(desk, request)
        call, found = desk.ask(
            request.request_id,
            **{
                name: getattr(request, name)
                for name in ("offers", "excluded_workers", "value", "max_cost", "min_quality")
            },
        )
        placed = next((each for each in found if isinstance(each, Place)), None)
        assert (placed is not None) == (bool(scores) and roomy)
        if placed is None:
            desk.abandon(call)
            continue
        assert {(each.worker_id, each.model) for each in placed.decision.candidates} == set(foreseen)
        for each in placed.decision.candidates:
            refused, ttft, total, score = foreseen[each.worker_id, each.model]
            assert each.filtered_by == refused
            assert (each.ttft_ms, each.total_ms) == pytest.approx((ttft, total))
            assert each.score == (None if refused else pytest.approx(score))
        assert placed.decision.candidates[0].score == pytest.approx(max(scores))
        desk.now += 0.7
        if ask["phase"] is not None:
            desk.run(placed, ask["phase"])
