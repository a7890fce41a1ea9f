"""Keeps the brain's budgets and sums at what the ledger says, and changes budgets for an operator."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from services.kit.clock import Clock
from services.kit.errors import DownstackError
from services.scheduler.domain.budget import Budget, BudgetKey, BudgetStatus
from services.scheduler.domain.budgets import Budgets
from services.scheduler.domain.stimuli import BudgetsLoaded, BudgetStimulus, ClockRead, SpendRead
from services.scheduler.ports import BudgetStore, Journal

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLimits:
    """The keeper's own bounds."""

    refresh_s: float = 1.0
    """Time between two looks at the budgets and what is spent of them."""
    tenants_per_refresh: int = 100
    """Tenants whose sums are read at one look; those with leases that the ledger may have come first."""


class BudgetKeeper:
    """Reads for life. While the store is away, the brain goes on with what it knows and sees itself."""

    def __init__(
        self,
        store: BudgetStore,
        budgets: Budgets,
        *,
        apply: Callable[[BudgetStimulus], object],
        journal: Journal,
        clock: Clock,
        limits: BudgetLimits,
    ) -> None:
        self._store = store
        self._budgets = budgets
        self._apply = apply
        self._journal = journal
        self._clock = clock
        self._limits = limits
        self._revision = 0
        self._reading = asyncio.Lock()

    async def run(self) -> None:
        """Refresh again and again; what failed is tried at the next look."""
        while True:
            await asyncio.sleep(self._limits.refresh_s)
            try:
                await self.refresh()
            except DownstackError as error:
                _log.warning("budgets not refreshed", reason=error.reason.value)

    async def refresh(self) -> None:
        """Bring budgets and sums up to date. Raises DEPENDENCY_UNAVAILABLE."""
        async with self._reading:
            self._apply(ClockRead(self._clock.now() - self._clock.monotonic()))
            if await self._store.revision() != self._revision:
                self._revision, loaded = await self._store.load()
                self._apply(BudgetsLoaded(tuple(loaded)))
            for tenant_id in self._budgets.unsure(self._limits.tenants_per_refresh):
                await self._read(tenant_id)

    async def _read(self, tenant_id: str) -> None:
        day, budgets, leases = self._budgets.question(tenant_id)
        sums, rows = await self._store.spent(tenant_id, budgets, day=day, leases=leases)
        self._apply(SpendRead(tenant_id, day, sums, tuple(rows)))

    async def set(self, budget: Budget) -> BudgetStatus | None:
        """Set a budget, and return it in force. None: it was removed at the same time.

        Raises:
            DownstackError: TENANT_NOT_FOUND, KEY_NOT_FOUND, QUOTA_EXCEEDED, JOURNAL_FULL, DEPENDENCY_UNAVAILABLE.
        """
        self._journal.check_open()
        await self._store.put(budget)
        await self._journal.budget_changed(budget.key, action="budget.set")
        await self.refresh()
        chosen = (each for each in self._budgets.statuses(budget.key.tenant_id) if each.budget.key == budget.key)
        return next(chosen, None)

    async def remove(self, key: BudgetKey) -> bool:
        """Lift a budget. False: there is none. Raises DownstackError JOURNAL_FULL, DEPENDENCY_UNAVAILABLE."""
        self._journal.check_open()
        removed = await self._store.remove(key)
        if removed:
            await self._journal.budget_changed(key, action="budget.remove")
        await self.refresh()
        return removed
