"""Tenants get equal service, counted in tokens, whatever they ask for; and the bounds of it."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.domain.fairness import OUTPUT_WEIGHT
from services.scheduler.domain.request import Priority
from tests.unit.scheduler.making import RATES
from tests.unit.scheduler.toy import SEATS, Arrival, Fate, Toy

# What one request of 64 prompt and 16 output tokens takes of a busy worker.
REQUEST_S = 0.001 * (RATES.prefill_base_ms + 64 * RATES.prefill_ms_per_token + 15 * 13 / SEATS)


def every(tenant: str, gap_s: float, *, until: float, prompt: int = 64, output: int = 16) -> list[Arrival]:
    return [
        Arrival(at=number * gap_s, tenant=tenant, prompt=prompt, output=output) for number in range(int(until / gap_s))
    ]


def in_order(*lists: list[Arrival]) -> list[Arrival]:
    return sorted((arrival for each in lists for arrival in each), key=lambda each: each.at)


def service(fates: list[Fate], *, since: float, until: float) -> Counter[str]:
    """Tokens of the requests that finished in a window, by tenant."""
    found: Counter[str] = Counter()
    for fate in fates:
        if fate.finished_at is not None and since <= fate.finished_at < until:
            found[fate.arrival.tenant] += fate.arrival.prompt + int(OUTPUT_WEIGHT) * fate.arrival.output
    return found


def jain(values: list[float]) -> float:
    """Jain's index: 1 when all are equal."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def p99(fates: list[Fate], tenant: str) -> float:
    waits = sorted(fate.ttft_s for fate in fates if fate.arrival.tenant == tenant and fate.first_at is not None)
    return waits[int(0.99 * len(waits))]


def test_a_flood_of_one_tenant_costs_the_others_no_more_than_the_engines_places() -> None:
    """One of five sends 50 times its share: the others lose nothing, and wait longer by what is bound already."""
    workers, look_ahead, until = 2, 1, 60.0
    gap_s = 5 * REQUEST_S / workers / 0.6
    others = [every(f"t{number}", gap_s, until=until) for number in range(4)]
    alone = Toy(workers=workers, look_ahead=look_ahead).run(in_order(*others), until=until + 5)
    flood = every("flood", gap_s / 50, until=until)
    beside = Toy(workers=workers, look_ahead=look_ahead).run(in_order(*others, flood), until=until + 5)
    for number in range(4):
        tenant = f"t{number}"
        assert service(beside, since=0, until=until + 5)[tenant] == service(alone, since=0, until=until + 5)[tenant]
        # A place in a batch comes free, then the look-ahead has its turn, then a step that runs comes to its end.
        assert p99(beside, tenant) <= p99(alone, tenant) + (look_ahead + 2) * REQUEST_S
    flooded = service(beside, since=10, until=until)
    assert flooded["flood"] > flooded["t0"], "what the others leave is the flood's"


def test_backlogged_equals_get_equal_service() -> None:
    """Five tenants with requests of all sizes, always more than the fleet can do."""
    shapes = [(32, 4), (64, 16), (400, 8), (16, 60), (1000, 1)]
    floods = [
        every(f"t{number}", 0.2, until=120, prompt=prompt, output=output)
        for number, (prompt, output) in enumerate(shapes)
    ]
    fates = Toy(workers=2).run(in_order(*floods), until=120)
    served = service(fates, since=20, until=110)
    assert jain([float(served[f"t{number}"]) for number in range(5)]) >= 0.95
    assert len(served) == 5


def test_weights_divide_the_service() -> None:
    """A tenant of weight 3 gets three times the tokens of one of weight 1."""
    floods = in_order(every("gold", 0.05, until=60), every("plain", 0.05, until=60))
    served = service(Toy(tenant_weights={"gold": 3.0}).run(floods, until=60), since=10, until=55)
    assert 2.7 <= served["gold"] / served["plain"] <= 3.3
    assert served["plain"] > 0


def test_goodput_holds_under_overload() -> None:
    """At twice and ten times what the fleet can do, nearly all that it does is in time, and refusals come at once."""
    workers, until = 2, 30.0
    capacity = workers / REQUEST_S
    for load, share in ((2, 0.95), (10, 0.90)):
        gap_s = 2 / (capacity * load)
        floods = in_order(every("a", gap_s, until=until), every("b", gap_s, until=until))
        toy = Toy(workers=workers, admit_ttft_ms_standard=900.0)
        fates = toy.run(floods, until=until)
        good = [fate for fate in fates if fate.finished_at is not None and fate.ttft_s <= 1.0]
        assert len(good) / until >= share * capacity
        assert all(fate.refused == "OVERLOADED" for fate in fates if fate.refused)
        assert sum(bool(fate.refused) for fate in fates) > 0.4 * len(fates)


def test_batch_work_takes_what_is_left() -> None:
    """Interactive work is served as if there were no batch work, which still moves."""
    urgent = [Arrival(at=0.3 * number, tenant="a", priority=Priority.INTERACTIVE) for number in range(100)]
    bulk = [Arrival(at=0.05 * number, tenant="b", priority=Priority.BATCH) for number in range(600)]
    fates = Toy(workers=2, look_ahead=0).run(in_order(urgent, bulk), until=60)
    assert all(fate.finished_at is not None for fate in fates if fate.arrival.tenant == "a")
    assert p99(fates, "a") <= 4 * REQUEST_S
    assert sum(fate.finished_at is not None for fate in fates if fate.arrival.tenant == "b") > 300


@given(
    sizes=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 600), st.integers(1, 40)), min_size=1, max_size=60),
    quantum=st.sampled_from([0.0, 500.0]),
)
@settings(max_examples=40, deadline=None)
def test_nobody_gets_far_ahead(sizes: list[tuple[str, int, int]], quantum: float) -> None:
    """Tenants that wait side by side differ by a quantum and one request at most; in the end all are served."""
    toy = Toy(fair_quantum_tokens=quantum)
    arrivals = [
        Arrival(at=0.0, tenant=tenant, prompt=prompt, output=output, patience_s=250) for tenant, prompt, output in sizes
    ]
    most = max(arrival.prompt + OUTPUT_WEIGHT * arrival.output for arrival in arrivals)
    brain = toy.desk.brain
    for until in range(0, 200, 2):
        fates = toy.run(arrivals if not until else [], until=until / 10)
        standings = [brain.fair.standing(lane.contest, lane.tenant_id) for lane in brain.queue.lanes()]
        if standings:
            assert max(standings) - min(standings) <= quantum + most
    fates = toy.run([], until=250)
    assert len(brain.queue) == 0
    assert all(fate.finished_at is not None or fate.refused for fate in fates)
