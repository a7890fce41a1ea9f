"""Compares decisions and rows on PostgreSQL, one tenant at a time: row-level security holds here too."""

import datetime as dt
from collections.abc import AsyncIterator

from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant

from services.kit.accounts.store import AccountStore
from services.kit.pg.pool import Database
from services.scheduler.adapters.ledger_store import acting_for
from services.scheduler.domain.reconcile import Compared, Position, Unmatched

_TENANTS_PAGE = 1000
# A part by its number of decisions, not of those unmatched: so a statement's work is bounded, however long the history.
_COMPARE = """
WITH part AS (
  SELECT lease_id, recorded_at, lease_grant FROM ledger.decisions
   WHERE tenant_id = $1 AND lease_grant IS NOT NULL AND (recorded_at, lease_id) > ($2, $3)
     AND recorded_at <= now() - make_interval(secs => $4)
   ORDER BY recorded_at, lease_id LIMIT $5
), compared AS (
  SELECT part.*, NOT EXISTS (SELECT FROM ledger.usage WHERE usage.lease_id = part.lease_id) AS unmatched FROM part
)
SELECT lease_id, recorded_at, unmatched, extract(epoch FROM now() - recorded_at)::float8 AS age_s,
       CASE WHEN unmatched THEN lease_grant END AS lease_grant
  FROM compared ORDER BY recorded_at, lease_id
"""


class PostgresGaps:
    """The ledger's own tables; the tenants are those of the accounts."""

    def __init__(self, db: Database, accounts: AccountStore) -> None:
        self._db = db
        self._accounts = accounts

    async def tenants(self) -> AsyncIterator[str]:
        token = ""
        while True:
            page = await self._accounts.list_tenants(page_size=_TENANTS_PAGE, page_token=token)
            for tenant in page.items:
                yield tenant.tenant_id
            token = page.next_page_token
            if not token:
                return

    async def compare(self, tenant_id: str, *, after: Position, older_than_s: float, limit: int) -> Compared:
        since = dt.datetime.fromtimestamp(after[0], dt.UTC)
        async with self._db.transaction(acting_for(tenant_id)) as connection:
            rows = await connection.fetch(_COMPARE, tenant_id, since, after[1], older_than_s, limit)
        unmatched = [
            Unmatched(
                lease_id=row["lease_id"],
                worker_id=LeaseGrant.FromString(row["lease_grant"]).worker_id,
                recorded_at=row["recorded_at"].timestamp(),
                age_s=row["age_s"],
                grant=row["lease_grant"],
            )
            for row in rows
            if row["unmatched"]
        ]
        end = (rows[-1]["recorded_at"].timestamp(), rows[-1]["lease_id"]) if rows else after
        return Compared(unmatched=unmatched, end=end, more=len(rows) == limit)
