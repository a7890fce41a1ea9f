"""A ledger in memory, for tests."""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Sequence

from services.scheduler.domain.ledger import DecisionEntry, Grouping, Page, UsageEntry, UsageFilter, UsageTotal

_GROUPS: dict[Grouping, Callable[[UsageEntry], str]] = {
    Grouping.NOTHING: lambda _: "",
    Grouping.MODEL: lambda entry: entry.model,
    Grouping.KEY: lambda entry: entry.key_id,
    Grouping.DAY: lambda entry: dt.datetime.fromtimestamp(entry.finished_at, dt.UTC).date().isoformat(),
    Grouping.WORKER: lambda entry: entry.worker_id,
}


class FakeLedger:
    """Keeps rows by lease, like the tables."""

    def __init__(self) -> None:
        self._usage: dict[str, tuple[str, UsageEntry]] = {}
        self._decisions: dict[tuple[str, str], dict[str, DecisionEntry]] = defaultdict(dict)

    async def add_usage(self, tenant_id: str, entries: Sequence[UsageEntry]) -> list[UsageEntry]:
        return [
            entry
            for entry in entries
            if self._usage.setdefault(entry.lease_id, (tenant_id, entry)) != (tenant_id, entry)
        ]

    async def add_decisions(self, tenant_id: str, entries: Sequence[DecisionEntry]) -> int:
        added = 0
        for entry in entries:
            kept = self._decisions[(tenant_id, entry.request_id)]
            added += entry.lease_id not in kept
            kept.setdefault(entry.lease_id, entry)
        return added

    async def totals(self, tenant_id: str, chosen: UsageFilter, *, by: Grouping) -> list[UsageTotal]:
        groups: dict[tuple[str, str], list[UsageEntry]] = defaultdict(list)
        for entry in self._chosen(tenant_id, chosen):
            groups[(_GROUPS[by](entry), entry.currency)].append(entry)
        return [_total(group, currency, entries) for (group, currency), entries in sorted(groups.items())]

    async def usage(self, tenant_id: str, chosen: UsageFilter, *, limit: int, after: tuple[float, str] | None) -> Page:
        rows = sorted(self._chosen(tenant_id, chosen), key=lambda entry: (entry.finished_at, entry.lease_id))
        left = [entry for entry in reversed(rows) if after is None or (entry.finished_at, entry.lease_id) < after]
        return Page(left[:limit], more=len(left) > limit)

    async def decisions(self, tenant_id: str, request_id: str) -> list[DecisionEntry]:
        found = self._decisions[(tenant_id, request_id)].values()
        return sorted(found, key=lambda entry: (entry.attempt, entry.decided_at))

    def _chosen(self, tenant_id: str, chosen: UsageFilter) -> list[UsageEntry]:
        return [
            entry
            for owner, entry in self._usage.values()
            if owner == tenant_id
            and (chosen.since is None or entry.finished_at >= chosen.since)
            and (chosen.until is None or entry.finished_at < chosen.until)
            and chosen.model in {None, entry.model}
            and chosen.key_id in {None, entry.key_id}
            and chosen.request_id in {None, entry.request_id}
        ]


def _total(group: str, currency: str, entries: Sequence[UsageEntry]) -> UsageTotal:
    return UsageTotal(
        group=group,
        requests=len({entry.request_id for entry in entries}),
        rows=len(entries),
        input_tokens=sum(entry.usage.input_total or 0 for entry in entries),
        cached_tokens=sum(entry.usage.input_cached or 0 for entry in entries),
        output_tokens=sum(entry.usage.output_total or 0 for entry in entries),
        cost_nano=sum(entry.cost_nano for entry in entries),
        currency=currency,
    )
