"""What callers are being charged, as a rate: of the leases that ended lately, as their workers reported them."""

from collections.abc import Mapping

from services.scheduler.domain.cost import charge
from services.scheduler.domain.fading import FadingSum
from services.scheduler.domain.lease import Lease

_WINDOW_S = 60.0
_HOUR_S = 3600.0


class Spend:
    """One rate for each currency of the price list."""

    def __init__(self, *, now: float) -> None:
        self._started_at = now
        self._rates: dict[str, FadingSum] = {}

    def ended(self, lease: Lease, *, now: float) -> None:
        """Count a lease that ended with a usage."""
        usage, price = lease.usage, lease.grant.price
        if usage is None:
            return
        cached = usage.input_cached or 0
        uncached = max(0, (usage.input_total or 0) - cached)
        amount = charge(price, uncached=uncached, cached=cached, output=usage.output_total or 0)
        rate = self._rates.setdefault(price.currency, FadingSum(_WINDOW_S, now=self._started_at))
        rate.add(amount, now=now)

    def nano_per_hour(self, *, now: float) -> Mapping[str, int]:
        """By currency, in 1e-9 of its unit."""
        return {currency: round(rate.per_second(now) * _HOUR_S) for currency, rate in self._rates.items()}
