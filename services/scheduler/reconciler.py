"""Sees to it that every lease ends in a row: compares the ledger with itself, and closes what a crash left open."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from services.kit.clock import Clock
from services.kit.errors import DownstackError
from services.scheduler.domain.reconcile import Patience, Position, Standing, Unmatched, missing, overdue
from services.scheduler.ports import Journal, LedgerGaps, Meter

_log = structlog.get_logger(__name__)
# A row is stamped when its transaction begins and seen when it ends; none lasts as long as this.
_SETTLE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileLimits:
    """The reconciler's own bounds."""

    patience: Patience
    interval_s: float = 60.0
    """Time between two comparisons."""
    blind_s: float = 150.0
    """A record that waits this long for its way to the ledger means that workers' records may wait too."""
    lookback_s: float = 604_800.0
    """How far back the first comparison looks."""
    max_pending: int = 1000
    """Closed leases whose rows are awaited; no more are closed beyond it."""
    part_size: int = 1000
    """Decisions in one query."""


class Reconciler:
    """Compares decisions with rows for life. Several may do so at once: they write the same records."""

    def __init__(
        self,
        gaps: LedgerGaps,
        *,
        journal: Journal,
        meter: Meter,
        standing: Callable[[Unmatched], Standing],
        clock: Clock,
        limits: ReconcileLimits,
    ) -> None:
        self._gaps = gaps
        self._journal = journal
        self._meter = meter
        self._standing = standing
        self._clock = clock
        self._limits = limits
        self._watching_since = clock.monotonic()
        # By tenant: all decisions before this have their rows.
        self._matched_until: dict[str, float] = {}
        self._pending: set[str] = set()

    async def run(self) -> None:
        """Compare at once, and then again and again; what failed is tried in the next comparison."""
        while True:
            try:
                await self.compare()
            except DownstackError as error:
                _log.warning("ledger not compared", reason=error.reason.value)
            await asyncio.sleep(self._limits.interval_s)

    async def compare(self) -> int:
        """Compare all tenants' decisions with their rows. Returns how many should have one and have none.

        Raises:
            DownstackError: DEPENDENCY_UNAVAILABLE, or JOURNAL_FULL; the comparison is not complete.
        """
        now = self._clock.monotonic()
        if self._journal.backlog_s() >= self._limits.blind_s:
            self._watching_since = now
        watched_s = now - self._watching_since
        unmatched: set[str] = set()
        async for tenant_id in self._gaps.tenants():
            unmatched |= await self._compare_tenant(tenant_id, watched_s=watched_s)
        self._pending &= unmatched
        self._meter.unmatched(len(unmatched))
        return len(unmatched)

    async def _compare_tenant(self, tenant_id: str, *, watched_s: float) -> set[str]:
        start = self._clock.now() - self._limits.lookback_s
        position: Position = (self._matched_until.get(tenant_id, start), "")
        first: float | None = None
        unmatched: set[str] = set()
        while True:
            part = await self._gaps.compare(
                tenant_id,
                after=position,
                older_than_s=self._limits.patience.idle_s,
                limit=self._limits.part_size,
            )
            if first is None and part.unmatched:
                first = part.unmatched[0].recorded_at
            open_leases = missing(part.unmatched, self._standing)
            unmatched.update(lease.lease_id for lease, _ in open_leases)
            await self._close(tenant_id, overdue(open_leases, patience=self._limits.patience, watched_s=watched_s))
            position = part.end
            if not part.more:
                break
        self._matched_until[tenant_id] = max(start, (position[0] if first is None else first) - _SETTLE_S)
        return unmatched

    async def _close(self, tenant_id: str, leases: list[Unmatched]) -> None:
        """Write the records of leases, each once: its row follows through Kafka, like every other."""
        closed = []
        for lease in leases:
            if lease.lease_id in self._pending:
                continue
            if len(self._pending) >= self._limits.max_pending:
                break
            await self._journal.reconciled(lease)
            self._pending.add(lease.lease_id)
            self._meter.reconciled()
            closed.append(lease.lease_id)
        if closed:
            _log.warning("leases without a row closed as unused", tenant=tenant_id, count=len(closed), first=closed[0])
