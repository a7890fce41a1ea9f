"""Decisions without rows in memory, for tests."""

from collections.abc import AsyncIterator

from services.scheduler.domain.reconcile import Compared, Position, Unmatched


class FakeGaps:
    """Shows the leases in `open`, by tenant, and keeps the positions that were asked for in `asked`."""

    def __init__(self) -> None:
        self.open: dict[str, list[Unmatched]] = {}
        self.asked: list[Position] = []

    async def tenants(self) -> AsyncIterator[str]:
        for tenant_id in sorted(self.open):
            yield tenant_id

    async def compare(self, tenant_id: str, *, after: Position, older_than_s: float, limit: int) -> Compared:
        self.asked.append(after)
        left = [
            lease
            for lease in self.open[tenant_id]
            if (lease.recorded_at, lease.lease_id) > after and lease.age_s >= older_than_s
        ]
        part = sorted(left, key=lambda lease: (lease.recorded_at, lease.lease_id))[:limit]
        end = (part[-1].recorded_at, part[-1].lease_id) if part else after
        return Compared(unmatched=part, end=end, more=len(left) > limit)
