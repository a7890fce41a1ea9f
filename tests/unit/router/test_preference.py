"""A model's requests go to one scheduler, and models are spread over all of them."""

from collections import Counter

from services.router.domain.preference import preferred

ADDRESSES = [f"scheduler-{number}:50051" for number in range(4)]


def test_every_router_says_the_same() -> None:
    """Whatever the order in its settings."""
    assert preferred(ADDRESSES, model="m") == preferred(reversed(ADDRESSES), model="m")


def test_a_scheduler_that_is_taken_out_changes_nothing_else() -> None:
    for model in ("a", "b", "c"):
        order = preferred(ADDRESSES, model=model)
        for gone in ADDRESSES:
            left = [address for address in ADDRESSES if address != gone]
            assert preferred(left, model=model) == [address for address in order if address != gone]


def test_models_are_spread() -> None:
    first = Counter(preferred(ADDRESSES, model=f"model-{number}")[0] for number in range(1000))
    assert set(first) == set(ADDRESSES)
    assert max(first.values()) < 1.3 * min(first.values())
