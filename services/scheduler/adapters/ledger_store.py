"""The ledger's tables on PostgreSQL. Every transaction is one tenant's: row-level security sees to the rest."""

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.kit.identity import Identity
from services.kit.pg.pool import Database
from services.scheduler.domain.lease import Usage
from services.scheduler.domain.ledger import (
    DecisionEntry,
    Grouping,
    Page,
    Times,
    UsageEntry,
    UsageFilter,
    UsageTotal,
)

# The columns of a row in their order: their types, and how they are filled.
_COLUMNS: Mapping[str, tuple[str, Callable[[UsageEntry], Any]]] = {
    "lease_id": ("text", lambda e: e.lease_id),
    "request_id": ("text", lambda e: e.request_id),
    "attempt": ("bigint", lambda e: e.attempt),
    "key_id": ("text", lambda e: e.key_id),
    "model": ("text", lambda e: e.model),
    "requested_model": ("text", lambda e: e.requested_model),
    "worker_id": ("text", lambda e: e.worker_id),
    "worker_epoch": ("text", lambda e: e.worker_epoch),
    "engine": ("text", lambda e: e.engine),
    "input_tokens": ("bigint", lambda e: e.usage.input_total),
    "cached_tokens": ("bigint", lambda e: e.usage.input_cached),
    "output_tokens": ("bigint", lambda e: e.usage.output_total),
    "reasoning_tokens": ("bigint", lambda e: e.usage.reasoning),
    "retrieved_tokens": ("bigint", lambda e: e.usage.retrieved_context),
    "delivered_tokens": ("bigint", lambda e: e.usage.output_delivered),
    "predicted_cached_tokens": ("bigint", lambda e: e.predicted_cached_tokens),
    "cost_nano": ("bigint", lambda e: e.cost_nano),
    "currency": ("text", lambda e: e.currency),
    "price_version": ("text", lambda e: e.price_version),
    "finish": ("text", lambda e: e.finish),
    "source": ("text", lambda e: e.source),
    "queue_ms": ("float8", lambda e: e.times.queue_ms),
    "engine_queue_ms": ("float8", lambda e: e.times.engine_queue_ms),
    "prefill_ms": ("float8", lambda e: e.times.prefill_ms),
    "ttft_ms": ("float8", lambda e: e.times.ttft_ms),
    "tpot_ms": ("float8", lambda e: e.times.tpot_ms),
    "total_ms": ("float8", lambda e: e.times.total_ms),
    "prepare_ms": ("float8", lambda e: e.times.prepare_ms),
    "gpu_seconds": ("float8", lambda e: e.gpu_seconds),
    "granted_at": ("timestamptz", lambda e: moment_of(e.granted_at)),
    "started_at": ("timestamptz", lambda e: moment_of(e.started_at)),
    "finished_at": ("timestamptz", lambda e: moment_of(e.finished_at)),
    "labels": ("jsonb", lambda e: json.dumps(dict(e.labels))),
}
_NAMES = ", ".join(_COLUMNS)
# The first record of a lease stays; see the migration for corrections. All rows go into one statement: they are counted
# as spent together, and locks on leases are all taken before those on sums.
_ADD_USAGE = f"""
INSERT INTO ledger.usage (tenant_id, {_NAMES})
SELECT $1, row.* FROM unnest({", ".join(f"${place}::{kind}[]" for place, (kind, _) in enumerate(_COLUMNS.values(), 2))})
    AS row ({_NAMES})
ON CONFLICT (lease_id) DO NOTHING RETURNING lease_id
"""  # noqa: S608  names of columns
_STATED = "SELECT lease_id, finish, source, cost_nano FROM ledger.usage WHERE lease_id = ANY($1::text[])"
_ADD_DECISION = """
INSERT INTO ledger.decisions (tenant_id, request_id, attempt, lease_id, decided_at, decision, lease_grant)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING 1
"""
_DECISIONS = """
SELECT request_id, attempt, lease_id, decided_at, decision FROM ledger.decisions
 WHERE tenant_id = $1 AND request_id = $2 ORDER BY attempt, decided_at LIMIT 1000
"""
_WHERE = """
 WHERE tenant_id = $1
   AND ($2::timestamptz IS NULL OR finished_at >= $2) AND ($3::timestamptz IS NULL OR finished_at < $3)
   AND ($4::text IS NULL OR model = $4) AND ($5::text IS NULL OR key_id = $5)
   AND ($6::text IS NULL OR request_id = $6)
"""
_PAGE = f"""
SELECT {_NAMES} FROM ledger.usage {_WHERE}
   AND ($7::timestamptz IS NULL OR (finished_at, lease_id) < ($7, $8))
 ORDER BY finished_at DESC, lease_id DESC LIMIT $9
"""  # noqa: S608  names of columns
_GROUPS = {
    Grouping.NOTHING: "''",
    Grouping.MODEL: "model",
    Grouping.KEY: "key_id",
    Grouping.DAY: "to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    Grouping.WORKER: "worker_id",
}
_TOTALS = {
    grouping: f"""
SELECT {group} AS name, currency, count(DISTINCT request_id) AS requests, count(*) AS rows,
       coalesce(sum(input_tokens), 0) AS input_tokens, coalesce(sum(cached_tokens), 0) AS cached_tokens,
       coalesce(sum(output_tokens), 0) AS output_tokens, sum(cost_nano) AS cost_nano
  FROM ledger.usage {_WHERE} GROUP BY 1, 2
"""  # noqa: S608  expressions from above
    for grouping, group in _GROUPS.items()
}


class PostgresLedger:
    """The ledger in the database that the service's role reaches."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add_usage(self, tenant_id: str, entries: Sequence[UsageEntry]) -> list[UsageEntry]:
        columns = [[value(entry) for entry in entries] for _, value in _COLUMNS.values()]
        async with self._db.transaction(acting_for(tenant_id)) as connection:
            added = {row["lease_id"] for row in await connection.fetch(_ADD_USAGE, tenant_id, *columns)}
            if len(added) == len(entries):
                return []
            there = await connection.fetch(_STATED, [entry.lease_id for entry in entries])
        stated = {row["lease_id"]: (row["finish"], row["source"], row["cost_nano"]) for row in there}
        return [
            entry for entry in entries if stated.get(entry.lease_id) != (entry.finish, entry.source, entry.cost_nano)
        ]

    async def add_decisions(self, tenant_id: str, entries: Sequence[DecisionEntry]) -> int:
        rows = [
            (tenant_id, e.request_id, e.attempt, e.lease_id, moment_of(e.decided_at), e.payload, e.grant or None)
            for e in entries
        ]
        async with self._db.transaction(acting_for(tenant_id)) as connection:
            return len(await connection.fetchmany(_ADD_DECISION, rows))

    async def totals(self, tenant_id: str, chosen: UsageFilter, *, by: Grouping) -> list[UsageTotal]:
        async with self._db.transaction(acting_for(tenant_id)) as connection:
            rows = await connection.fetch(_TOTALS[by], *_conditions(tenant_id, chosen))
        totals = [
            UsageTotal(
                group=row["name"],
                requests=row["requests"],
                rows=row["rows"],
                input_tokens=int(row["input_tokens"]),
                cached_tokens=int(row["cached_tokens"]),
                output_tokens=int(row["output_tokens"]),
                cost_nano=int(row["cost_nano"]),
                currency=row["currency"],
            )
            for row in rows
        ]
        return sorted(totals, key=lambda total: (total.group, total.currency))

    async def usage(self, tenant_id: str, chosen: UsageFilter, *, limit: int, after: tuple[float, str] | None) -> Page:
        position = (moment_of(after[0]), after[1]) if after is not None else (None, None)
        async with self._db.transaction(acting_for(tenant_id)) as connection:
            rows = await connection.fetch(_PAGE, *_conditions(tenant_id, chosen), *position, limit + 1)
        return Page([_entry_of(row) for row in rows[:limit]], more=len(rows) > limit)

    async def decisions(self, tenant_id: str, request_id: str) -> list[DecisionEntry]:
        async with self._db.transaction(acting_for(tenant_id)) as connection:
            rows = await connection.fetch(_DECISIONS, tenant_id, request_id)
        return [
            DecisionEntry(
                request_id=row["request_id"],
                attempt=row["attempt"],
                lease_id=row["lease_id"],
                decided_at=row["decided_at"].timestamp(),
                payload=row["decision"],
            )
            for row in rows
        ]


def acting_for(tenant_id: str) -> Identity:
    """The scheduler acts for the tenant whose rows it adds, as a reader acts for its own: nobody sees two tenants."""
    return Identity(tenant_id=tenant_id, principal="service:scheduler", groups=(), scopes=frozenset(), key_id="")


def _conditions(tenant_id: str, chosen: UsageFilter) -> tuple[Any, ...]:
    return (
        tenant_id,
        moment_of(chosen.since),
        moment_of(chosen.until),
        chosen.model,
        chosen.key_id,
        chosen.request_id,
    )


def moment_of(seconds: float | None) -> dt.datetime | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)


def _entry_of(row: Mapping[str, Any]) -> UsageEntry:
    started_at = row["started_at"]
    return UsageEntry(
        lease_id=row["lease_id"],
        request_id=row["request_id"],
        attempt=row["attempt"],
        key_id=row["key_id"],
        model=row["model"],
        requested_model=row["requested_model"],
        worker_id=row["worker_id"],
        worker_epoch=row["worker_epoch"],
        engine=row["engine"],
        usage=Usage(
            input_total=row["input_tokens"],
            input_cached=row["cached_tokens"],
            output_total=row["output_tokens"],
            reasoning=row["reasoning_tokens"],
            retrieved_context=row["retrieved_tokens"],
            output_delivered=row["delivered_tokens"],
        ),
        cost_nano=row["cost_nano"],
        currency=row["currency"],
        price_version=row["price_version"],
        finish=row["finish"],
        source=row["source"],
        times=Times(**{name: row[name] for name in Times.__dataclass_fields__}),
        gpu_seconds=row["gpu_seconds"],
        predicted_cached_tokens=row["predicted_cached_tokens"],
        granted_at=row["granted_at"].timestamp(),
        started_at=None if started_at is None else started_at.timestamp(),
        finished_at=row["finished_at"].timestamp(),
        labels=json.loads(row["labels"]),
    )
