"""The policies taken from other systems: the numbers are worked out by hand from their formulas."""

from collections.abc import Mapping

import pytest

from services.scheduler.domain.cost import DEFAULT_OBJECTIVES
from services.scheduler.domain.instructions import Place
from services.scheduler.domain.kv import Delta, Stored
from services.scheduler.domain.lease import LeasePhase
from services.scheduler.domain.policies.preble import PrefixTree
from services.scheduler.domain.policies.registry import UnknownWeightError, policies
from services.scheduler.domain.policies.smg import SentBlocks
from services.scheduler.domain.worker import Load, Rates
from tests.unit.scheduler.making import Desk, offer

BIG = {"context_tokens": 1 << 20, "kv_blocks": 1 << 20, "max_num_seqs": 100}


def fleet(policy: str, *, workers: int = 2) -> Desk:
    desk = Desk(policy=policy)
    for number in range(1, workers + 1):
        desk.hello(f"w{number}", **BIG)
    return desk


def hold(desk: Desk, worker_id: str, *hashes: int) -> None:
    desk.say(Delta(epoch="kv", sequence=1, changes=(Stored(hashes),)), worker_id)


def busy(desk: Desk, worker_id: str, *, prompt_tokens: int) -> Place:
    """Give a worker a prompt that it still has to compute."""
    others = frozenset(worker.worker_id for worker in desk.brain.fleet) - {worker_id}
    one = offer(prompt_tokens, first_hash=1 << 40)
    return desk.place(f"busy-{worker_id}-{prompt_tokens}", offers=(one,), excluded_workers=others)


def scores(placed: Place) -> Mapping[str, float | None]:
    return {each.worker_id: each.score for each in placed.decision.candidates}


def finish(desk: Desk, placed: Place) -> None:
    desk.run(placed, LeasePhase.FINISHED)


def test_a_policy_of_another_system_binds_at_once() -> None:
    """What a worker cannot run yet waits in its engine, as with the system that the policy is from."""
    desk = Desk(policy="mooncake", look_ahead=0)
    desk.hello(max_num_seqs=1)
    placed = [desk.place(f"r{n}") for n in range(5)]
    assert {each.grant.worker_id for each in placed} == {"w1"}
    assert len(desk.brain.queue) == 0


def test_a_conversation_keeps_its_worker() -> None:
    """It moves only when its own worker goes, and conversations spread over all workers."""
    desk = fleet("session-hash", workers=4)

    def chosen(conversation: str, excluded: frozenset[str] = frozenset()) -> str:
        name = f"{conversation}-{len(desk.brain.book)}"
        return desk.place(name, conversation_id=conversation, excluded_workers=excluded).grant.worker_id

    first = {name: chosen(name) for name in map(str, range(60))}
    assert set(first.values()) == {"w1", "w2", "w3", "w4"}
    desk.gone("w4")
    second = {name: chosen(name) for name in first}
    moved = {name for name in first if first[name] != second[name]}
    assert moved == {name for name in first if first[name] == "w4"}


def test_a_prompt_without_a_conversation_goes_by_its_beginning() -> None:
    """What follows the first 1024 tokens does not matter."""
    desk = fleet("session-hash", workers=4)
    blocks = offer(1024).block_hashes
    chosen = {
        desk.place(f"r{n}", offers=(offer(1040, block_hashes=(*blocks, n)),)).grant.worker_id for n in range(2000, 2020)
    }
    assert len(chosen) == 1


def test_smg_follows_what_it_sent() -> None:
    """More than half of the prompt sent somewhere: there again. Half or less: the fewest requests."""
    desk = fleet("smg-cache-aware")
    assert desk.place("r1", offers=(offer(640),)).grant.worker_id == "w1", "of equals the first"
    more = offer(1264, block_hashes=(*offer(640).block_hashes, *range(5000, 5039)))
    half = offer(1280, block_hashes=(*offer(640).block_hashes, *range(6000, 6040)))
    assert desk.place("r2", offers=(more,)).grant.worker_id == "w1"
    placed = desk.place("r3", offers=(half,))
    assert placed.grant.worker_id == "w2"
    assert scores(placed) == {"w1": -2.0, "w2": 0.0}


def test_smg_goes_by_load_when_loads_differ_much() -> None:
    """From a difference of more than 32 requests on, and of more than a tenth, the match is ignored."""
    desk = fleet("smg-cache-aware")
    for number in range(32):
        desk.place(f"r{number}", offers=(offer(640),))
    assert scores(desk.place("r32", offers=(offer(640),))) == {"w1": 1.0, "w2": 0.0}
    placed = desk.place("r33", offers=(offer(640),))
    assert scores(placed) == {"w1": -33.0, "w2": 0.0}
    assert placed.grant.worker_id == "w2"


def test_smg_forgets_what_was_sent_least_recently() -> None:
    """The tail of a prompt goes before its head; the latest worker of a prefix is the one named."""
    tree = SentBlocks(max_blocks=4)
    tree.insert((1, 2, 3), "w1")
    tree.insert((1, 2), "w2")
    assert tree.longest((1, 2, 3)) == ("w1", 3)
    assert tree.longest((1, 2, 9)) == ("w2", 2)
    tree.insert((7, 8), "w1")
    assert tree.longest((1, 2, 3)) == ("w2", 2)
    assert len(tree) == 4
    assert tree.longest((9,)) == ("", 0)


def test_llm_d_weighs_prefix_queue_and_kv() -> None:
    """3 * 5/10 + 2 * (4-0)/(4-0) + 2 * (1-0.5) against 3 * 0 + 2 * (4-4)/(4-0) + 2 * (1-0.1)."""
    desk = fleet("llm-d")
    hold(desk, "w1", *offer(160).block_hashes[:5])
    desk.say(Load(waiting_requests=0, kv_usage=0.5), "w1")
    desk.say(Load(waiting_requests=4, kv_usage=0.1), "w2")
    assert scores(desk.place(offers=(offer(160),))) == pytest.approx({"w1": 4.5, "w2": 1.8})


def test_llm_d_with_equal_queues_scores_them_one() -> None:
    desk = fleet("llm-d")
    assert scores(desk.place()) == pytest.approx({"w1": 4.0, "w2": 4.0})


def test_llm_d_affinity_stays_with_four_fifths_of_the_prefix() -> None:
    """8 of 10 blocks are enough, 7 are not."""
    desk = fleet("llm-d-affinity")
    hold(desk, "w1", *offer(160).block_hashes[:8])
    busy(desk, "w1", prompt_tokens=1600)
    placed = desk.place("r1", offers=(offer(160),))
    assert placed.grant.worker_id == "w1"
    assert [each.filtered_by for each in placed.decision.candidates] == ["", "affinity"]
    seven = offer(160, block_hashes=(*offer(160).block_hashes[:7], 1, 2, 3))
    assert desk.place("r2", offers=(seven,)).grant.worker_id == "w2"


def test_llm_d_affinity_ends_where_the_sticky_one_is_far_slower() -> None:
    """286,720 tokens at 15,928 a second are 18,001 ms, more than 18,000; the score is 1 - 286,720 / 4,194,304."""
    desk = fleet("llm-d-affinity")
    hold(desk, "w1", *offer(160).block_hashes[:8])
    busy(desk, "w1", prompt_tokens=286_704)
    assert desk.place("r1", offers=(offer(160),)).grant.worker_id == "w1", "18,000 ms are not more than 18,000"
    desk = fleet("llm-d-affinity")
    hold(desk, "w1", *offer(160).block_hashes[:8])
    busy(desk, "w1", prompt_tokens=286_720)
    placed = desk.place("r1", offers=(offer(160),))
    assert placed.grant.worker_id == "w2"
    assert scores(placed) == pytest.approx({"w1": 0.931640625, "w2": 1.0})


def test_dynamo_counts_blocks() -> None:
    """w1: (320 + 160 - 128) / 16 + (320 + 16 + 160 - 128) / 16 = 22 + 23; w2: 160 / 16 + 160 / 16 = 10 + 10."""
    desk = fleet("dynamo")
    hold(desk, "w1", *offer(160).block_hashes[:8])
    busy(desk, "w1", prompt_tokens=320)
    placed = desk.place("r1", offers=(offer(160),))
    assert scores(placed) == pytest.approx({"w1": -45.0, "w2": -20.0})
    assert placed.grant.worker_id == "w2"


def test_mooncake_compares_times_to_the_first_token() -> None:
    """w1: 5 + 320 queued, 5 + 32 to compute; w2: 5 + 160."""
    desk = fleet("mooncake")
    hold(desk, "w1", *offer(160).block_hashes[:8])
    busy(desk, "w1", prompt_tokens=320)
    placed = desk.place("r1", offers=(offer(160),))
    assert scores(placed) == pytest.approx({"w1": -362.0, "w2": -165.0})
    assert placed.grant.worker_id == "w2"


def test_preble_exploits_a_prefix_longer_than_the_rest() -> None:
    """The known 640 of 800 tokens are followed; an unknown prompt goes where the window's nodes cost least.

    After the third request the first node has counted two requests with 640 of 1440 tokens known: its cost is
    (1 - 640/1440) * 2 * (5 + 640) ms, which is 716.7 ms.
    """
    desk = fleet("preble")
    first = desk.place("r1", offers=(offer(640),))
    finish(desk, first)
    holder, other = first.grant.worker_id, {"w1": "w2", "w2": "w1"}[first.grant.worker_id]
    second = desk.place("r2", offers=(offer(640, first_hash=50_000),))
    finish(desk, second)
    assert scores(second) == pytest.approx({holder: -645.0, other: 0.0})
    longer = offer(800, block_hashes=(*offer(640).block_hashes, *range(7000, 7010)))
    third = desk.place("r3", offers=(longer,))
    finish(desk, third)
    assert third.grant.worker_id == holder
    assert scores(third) == pytest.approx({holder: -645.0, other: -(645.0 + 1.0 + 645.0)})
    fourth = desk.place("r4", offers=(offer(640, first_hash=60_000),))
    assert scores(fourth) == pytest.approx({holder: -(1 - 640 / 1440) * 2 * 645, other: -645.0})
    assert fourth.grant.worker_id == other


def test_preble_forgets_after_three_minutes() -> None:
    """A node that has left the window is allotted to nobody, and costs nobody anything."""
    desk = fleet("preble")
    finish(desk, desk.place("r1", offers=(offer(640),)))
    desk.now += 181
    for worker_id in ("w1", "w2"):
        desk.say(Load(), worker_id)
    finish(desk, desk.place("r2", offers=(offer(640, first_hash=50_000),)))
    known = desk.place("r3", offers=(offer(640),))
    assert sorted(scores(known).values(), key=str) == pytest.approx([-645.0, 0.0])


def test_a_prefix_tree_splits_where_prompts_part() -> None:
    """The shared part becomes a node of its own, allotted as the whole was."""
    tree = PrefixTree(max_blocks=100)
    whole = tree.insert((1, 2, 3, 4), block_size=16)
    whole.workers = {"w1"}
    branch = tree.insert((1, 2, 9), block_size=16)
    shared = branch.parent
    assert shared is not None
    assert (shared.tokens, shared.context, shared.workers) == (32, 32, {"w1"})
    assert (whole.parent, whole.tokens, whole.context) == (shared, 32, 64)
    assert (branch.tokens, branch.context) == (16, 48)
    assert tree.insert((1, 2, 9), block_size=16) is branch
    assert tree.deepest((1, 2, 3, 8)) == (whole, 3)


def test_weights_are_set_by_policy_and_name() -> None:
    """What is not set keeps its default; what there is not is refused by name."""
    known = policies(DEFAULT_OBJECTIVES, value=1.0, weights={"llm-d": {"prefix": 5.0}})
    assert [part.weight for part in known["llm-d"]().scorers] == [5.0, 2.0, 2.0]
    with pytest.raises(UnknownWeightError, match=r"'llm-d' has no weights prefixes; there are kv, prefix, queue"):
        policies(DEFAULT_OBJECTIVES, value=1.0, weights={"llm-d": {"prefixes": 5.0}})
    with pytest.raises(UnknownWeightError, match="'llmd'"):
        policies(DEFAULT_OBJECTIVES, value=1.0, weights={"llmd": {}})


@pytest.mark.parametrize("name", sorted(policies(DEFAULT_OBJECTIVES, value=1.0)))
def test_every_policy_places(name: str) -> None:
    """Each copes with prompts without a block, with several models, and names itself in the record."""
    desk = fleet(name, workers=3)
    desk.hello("w9", model="n", **BIG)
    desk.place("r1", offers=(offer(3, block_hashes=()),))
    placed = desk.place("r2", offers=(offer(640), offer(640, model="n")))
    assert placed.decision.policy.startswith(name)
    assert desk.place("r3", offers=(offer(640), offer(640, model="n"))).grant.model in {"m", "n"}


def test_a_hot_prefix_is_copied_when_its_holder_is_far_behind() -> None:
    """Siblings stay with the holder while it is at most somewhat slower; then another computes the prefix, and shares.

    To compute 64 of 1024 tokens there takes 69 ms, all of them elsewhere 1029 ms. With n prompts of 69 ms waiting there
    and none elsewhere, n/2 wait on average: 69 n + 69 (2 + 6 n/2) against 1029 (2 + 6 n/2) ms is always less. So it
    takes a long prompt: 30,005 ms and one of two workers waiting, 30,005 + 69 * 5 against 1029 * 5.
    """
    desk = Desk(prefill_ahead_ms=1e9)
    for worker_id in ("w1", "w2"):
        desk.hello(worker_id, **BIG)
    hold(desk, "w1", *offer(960).block_hashes)
    one = offer(1024)
    siblings = [desk.place(f"s{n}", offers=(one,)).grant.worker_id for n in range(6)]
    assert siblings == ["w1"] * 6
    for lease in list(desk.brain.book):
        desk.release(Place(0, lease.grant, "", desk.brain.decisions_of(tenant_id="t1", request_id="s0")[0]))
    busy(desk, "w1", prompt_tokens=30_000)
    assert desk.place("copy", offers=(one,)).grant.worker_id == "w2"
    assert desk.place("after", offers=(one,)).grant.worker_id == "w2", "which holds it now as well"


def test_a_large_model_that_holds_the_conversation_beats_a_cold_small_one() -> None:
    """By money and time alone: 16 tokens at 3 ms against 1600 at 1 ms."""
    desk = Desk()
    desk.hello("small", model="small", **BIG)
    slow = Rates(prefill_base_ms=5.0, prefill_ms_per_token=3.0, decode_base_ms=20.0, decode_ms_per_request=1.0)
    desk.hello("large", model="large", rates=slow, **BIG)
    offers = (offer(1600, model="small", quality=0.5), offer(1600, model="large", quality=0.9))
    assert desk.place("cold", offers=offers, value=0.0).grant.model == "small"
    hold(desk, "large", *offers[1].block_hashes[:99])
    assert desk.place("warm", offers=offers, value=0.0).grant.model == "large"


def test_bounds_say_what_counts() -> None:
    """`min_quality`: the cheapest that is good enough. `max_cost`: the fastest that is affordable. Else: the worth."""
    dear = {"price_per_hour_nano": 1_000 * 10**9, **BIG}
    cheap = {"price_per_hour_nano": 10**9, **BIG}
    slow = Rates(prefill_base_ms=5.0, prefill_ms_per_token=1.0, decode_base_ms=12.0, decode_ms_per_request=1.0)

    def chosen(**bounds: float) -> str:
        desk = Desk()
        desk.hello("w1", model="poor", **cheap)
        desk.hello("w2", model="fair", rates=slow, **cheap)
        desk.hello("w3", model="best", **dear)
        offers = tuple(
            offer(model=name, quality=each) for name, each in {"poor": 0.3, "fair": 0.7, "best": 0.8}.items()
        )
        return desk.place(offers=offers, **bounds).grant.model

    assert chosen() == "best"
    assert chosen(value=0.0) == "poor"
    assert chosen(min_quality=0.6) == "fair"
    assert chosen(min_quality=0.6, value=1_000.0) == "best"
    assert chosen(max_cost=1.0) in {"poor", "best"}, "as fast as each other"
