"""Budgets in memory, over the ledger in memory, for tests."""

import datetime as dt
from collections.abc import Mapping, Sequence

from services.kit.errors import DownstackError, Reason
from services.scheduler.adapters.fake_ledger import FakeLedger
from services.scheduler.domain.budget import Budget, BudgetKey
from services.scheduler.domain.ledger import UsageFilter


class FakeBudgets:
    """Keeps budgets by key, like the table; fails while `away`."""

    def __init__(self, ledger: FakeLedger) -> None:
        self.away = False
        self._ledger = ledger
        self._revision = 1
        self._budgets: dict[BudgetKey, Budget] = {}

    async def revision(self) -> int:
        self._check()
        return self._revision

    async def load(self) -> tuple[int, list[Budget]]:
        self._check()
        return self._revision, list(self._budgets.values())

    async def put(self, budget: Budget) -> None:
        self._check()
        self._revision += 1
        self._budgets[budget.key] = budget

    async def remove(self, key: BudgetKey) -> bool:
        self._check()
        self._revision += 1
        return self._budgets.pop(key, None) is not None

    async def spent(
        self, tenant_id: str, budgets: Sequence[Budget], *, day: dt.date, leases: Sequence[str]
    ) -> tuple[Mapping[BudgetKey, int], list[str]]:
        self._check()
        page = await self._ledger.usage(tenant_id, UsageFilter(), limit=1_000_000, after=None)
        sums = {}
        for budget in budgets:
            key, first = budget.key, budget.key.period.first(day)
            sums[key] = sum(
                entry.cost_nano
                for entry in page.entries
                if key.key_id in {"", entry.key_id}
                and key.model in {"", entry.model}
                and budget.currency == entry.currency
                and first <= dt.datetime.fromtimestamp(entry.finished_at, dt.UTC).date() < key.period.following(first)
            )
        recorded = {entry.lease_id for entry in page.entries}
        return sums, [lease_id for lease_id in leases if lease_id in recorded]

    def _check(self) -> None:
        if self.away:
            raise DownstackError(Reason.DEPENDENCY_UNAVAILABLE, "the store is away")
