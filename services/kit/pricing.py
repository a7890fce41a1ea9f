"""What tokens cost, in exact integers."""

from downstack.types.v1.usage_pb2 import Cost, Price, TokenUsage


def cost_of(price: Price, usage: TokenUsage) -> Cost:
    """The cost of a usage: uncached input, cached input and output, each at its own price.

    A count that is absent is not charged; where only the cached part is absent, the whole input counts as uncached.
    """
    cached = min(usage.input_cached, usage.input_total)
    nano_units = (
        (usage.input_total - cached) * price.input_nano
        + cached * price.cached_nano
        + usage.output_total * price.output_nano
    )
    return Cost(nano_units=nano_units, currency=price.currency, price_version=price.version)
