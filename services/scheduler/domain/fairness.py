"""Fair service between tenants, counted in tokens (virtual token counters with a deficit quantum).

Each tenant is charged for the tokens that it made the fleet compute: uncached prompt tokens, and output tokens at their
weight, all divided by the tenant's own weight. It is charged on placement from the prediction, and corrected when the
lease ends. Who is charged least is served next. Counters are kept for each contest: a class and a set of models. A
tenant that was away starts at the level of those being served, so that it brings no credit with it.

Sources: VTC (Sheng et al., OSDI 2024); the level is the start tag of start-time fair queueing (Goyal et al., 1996).
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from services.scheduler.domain.lease import Grant, Lease
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.request import Priority, Request

OUTPUT_WEIGHT = 2.0


class ContestKey(NamedTuple):
    """Who competes: requests of one class for one set of models."""

    priority: Priority
    models: tuple[str, ...]


def contest_of(request: Request) -> ContestKey:
    """The contest that a request takes part in."""
    return ContestKey(request.priority, offered_by(request))


def offered_by(request: Request) -> tuple[str, ...]:
    """The models that may answer a request, sorted."""
    return tuple(sorted({offer.model for offer in request.offers}))


def _contest_of(grant: Grant) -> ContestKey:
    return ContestKey(grant.priority, grant.offered or (grant.model,))


class _Charge(NamedTuple):
    account: tuple[ContestKey, str]
    tokens: float


class FairShare:
    """Charged tokens by contest and tenant. Bounded: who was served longest ago stands at the level again."""

    def __init__(self, limits: Limits) -> None:
        self._weights: Mapping[str, float] = limits.tenant_weights
        self._credit = limits.fair_credit_tokens
        self._max_accounts = limits.max_tenants
        self._charged: OrderedDict[tuple[ContestKey, str], float] = OrderedDict()
        self._levels: OrderedDict[ContestKey, float] = OrderedDict()
        self._charges: dict[str, _Charge] = {}

    def weight(self, tenant_id: str) -> float:
        """The tenant's share beside that of others."""
        return self._weights.get(tenant_id, 1.0)

    def level(self, contest: ContestKey) -> float:
        """Where the service of a contest has come to."""
        return self._levels.get(contest, 0.0)

    def standing(self, contest: ContestKey, tenant_id: str) -> float:
        """What the order between waiting tenants goes by; never more than the credit below the level."""
        level = self.level(contest)
        return max(self._charged.get((contest, tenant_id), level), level - self._credit)

    def arrive(self, contest: ContestKey, tenant_id: str) -> None:
        """A tenant that had nothing waiting asks for service."""
        self._enter((contest, tenant_id), max(self.level(contest), self.standing(contest, tenant_id)))

    def _enter(self, account: tuple[ContestKey, str], charged: float) -> None:
        self._charged[account] = charged
        self._charged.move_to_end(account)
        if len(self._charged) > self._max_accounts:
            self._charged.popitem(last=False)

    def charge(self, lease: Lease) -> None:
        """Charge a placement as predicted, and raise the level to where the tenant stood."""
        contest, tenant_id = _contest_of(lease.grant), lease.grant.tenant_id
        standing = self.standing(contest, tenant_id)
        tokens = (lease.uncached_tokens + OUTPUT_WEIGHT * lease.expected_output) / self.weight(tenant_id)
        self._levels[contest] = max(self.level(contest), standing)
        self._levels.move_to_end(contest)
        if len(self._levels) > self._max_accounts:
            self._levels.popitem(last=False)
        self._enter((contest, tenant_id), standing + tokens)
        self._charges[lease.grant.lease_id] = _Charge((contest, tenant_id), tokens)

    def settle(self, lease: Lease, *, used: bool = True) -> None:
        """A lease ended: charge what it used instead of what was predicted. What is unknown stays as predicted."""
        charge = self._charges.pop(lease.grant.lease_id, None)
        if charge is None or charge.account not in self._charged:
            return
        tokens = _used_tokens(lease) / self.weight(lease.grant.tenant_id) if used else 0.0
        contest, tenant_id = charge.account
        self._charged[charge.account] = max(0.0, self.standing(contest, tenant_id) + tokens - charge.tokens)

    def validate(self, live: set[str]) -> None:
        """Check the invariants: bounded, and every open charge is that of a live lease."""
        assert len(self._charged) <= self._max_accounts
        assert len(self._levels) <= self._max_accounts
        assert set(self._charges) <= live
        for contest, tenant_id in self._charged:
            assert self.standing(contest, tenant_id) >= self.level(contest) - self._credit


def _used_tokens(lease: Lease) -> float:
    usage, output, uncached = lease.usage, float(lease.expected_output), lease.uncached_tokens
    if usage is not None and usage.output_total is not None:
        output = usage.output_total
    if usage is not None and usage.input_cached is not None:
        uncached = lease.grant.prompt_tokens - usage.input_cached
    return uncached + OUTPUT_WEIGHT * output
