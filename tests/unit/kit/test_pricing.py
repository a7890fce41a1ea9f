"""Costs in exact integers."""

from downstack.types.v1.usage_pb2 import Price, TokenUsage
from hypothesis import given
from hypothesis import strategies as st

from services.kit.pricing import cost_of

PRICE = Price(version="2026-11", currency="EUR", input_nano=150, cached_nano=15, output_nano=600)


def test_each_class_of_token_has_its_price() -> None:
    cost = cost_of(PRICE, TokenUsage(input_total=100, input_cached=40, output_total=7, reasoning=3))
    assert cost.nano_units == 60 * 150 + 40 * 15 + 7 * 600
    assert (cost.currency, cost.price_version) == ("EUR", "2026-11")


def test_unknown_counts_are_not_charged() -> None:
    """A lost worker's usage may lack counts; only the cached part is assumed, to be none."""
    assert cost_of(PRICE, TokenUsage()).nano_units == 0
    assert cost_of(PRICE, TokenUsage(input_total=10)).nano_units == 1500


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**20))
def test_a_cost_is_never_negative(total: int, cached: int, output: int) -> None:
    """Not even where a worker reports more cached tokens than there were."""
    cost = cost_of(PRICE, TokenUsage(input_total=total, input_cached=cached, output_total=output))
    assert cost.nano_units >= min(cached, total) * 15 + output * 600
    assert cost.nano_units <= total * 150 + output * 600
