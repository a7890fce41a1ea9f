"""Fair service between tenants, counted in tokens (virtual token counters, with start-time tags).

Each tenant is charged for the tokens that it made the fleet compute: uncached prompt tokens, and output tokens at their
weight. The tenant charged least is served next. A tenant that was away starts at the level of those being served, so
that it brings no credit with it. Source: VTC (OSDI 2024); the level is the start tag of start-time fair queueing.
"""

from collections import OrderedDict

OUTPUT_WEIGHT = 2.0


class FairShare:
    """Charged tokens by tenant. Bounded: who arrived longest ago is forgotten, and stands at the level again."""

    def __init__(self, *, max_tenants: int) -> None:
        self._max_tenants = max_tenants
        self._charged: OrderedDict[str, float] = OrderedDict()
        self._level = 0.0

    def arrive(self, tenant_id: str) -> None:
        """A tenant that had nothing waiting or running asks for service."""
        self._charged[tenant_id] = max(self._level, self.standing(tenant_id))
        self._charged.move_to_end(tenant_id)
        self._trim()

    def standing(self, tenant_id: str) -> float:
        """What the order between waiting tenants goes by."""
        return self._charged.get(tenant_id, self._level)

    def serve(self, tenant_id: str, tokens: float) -> None:
        """Charge a placement, and raise the level to where the tenant stood."""
        standing = self.standing(tenant_id)
        self._level = max(self._level, standing)
        self._charged[tenant_id] = standing + tokens

    def correct(self, tenant_id: str, tokens: float) -> None:
        """Charge or give back the difference between what was predicted and what was used."""
        if tenant_id in self._charged:
            self._charged[tenant_id] = max(0.0, self._charged[tenant_id] + tokens)

    def _trim(self) -> None:
        while len(self._charged) > self._max_tenants:
            self._charged.popitem(last=False)
