"""The budgets and the sums that they limit, on PostgreSQL."""

import datetime as dt
from collections.abc import Mapping, Sequence

from services.kit.errors import DownstackError, Reason
from services.kit.pg.pool import Connection, Database
from services.scheduler.adapters.ledger_store import acting_for
from services.scheduler.domain.budget import Budget, BudgetKey, Period

_REVISION = "SELECT revision FROM ledger.budget_changes"
_CHANGE = "UPDATE ledger.budget_changes SET revision = revision + 1"
_ALL = "SELECT tenant_id, key_id, model, period, soft, limit_nano, currency FROM ledger.budgets"
_OTHERS = """
SELECT count(*) FROM ledger.budgets WHERE (tenant_id, key_id, model, period, soft) <> ($1, $2, $3, $4, $5)
"""
_PUT = """
INSERT INTO ledger.budgets (tenant_id, key_id, model, period, soft, limit_nano, currency)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (tenant_id, key_id, model, period, soft)
DO UPDATE SET limit_nano = excluded.limit_nano, currency = excluded.currency, set_at = now()
"""
_REMOVE = """
DELETE FROM ledger.budgets
 WHERE (tenant_id, key_id, model, period, soft) = ($1, $2, $3, $4, $5) RETURNING 1
"""
_TENANT = "SELECT 1 FROM accounts.tenants WHERE tenant_id = $1"
_KEY = "SELECT 1 FROM accounts.api_keys WHERE tenant_id = $1 AND key_id = $2"
_SUMS = """
SELECT wanted.place, coalesce(sum(spend.cost_nano), 0) AS cost_nano
  FROM unnest($2::text[], $3::text[], $4::text[], $5::date[], $6::date[]) WITH ORDINALITY
       AS wanted (key_id, model, currency, first, following, place)
  LEFT JOIN ledger.spend ON spend.tenant_id = $1
   AND spend.day >= wanted.first AND spend.day < wanted.following AND spend.currency = wanted.currency
   AND wanted.key_id IN ('', spend.key_id) AND wanted.model IN ('', spend.model)
 GROUP BY 1
"""
_ROWS = "SELECT lease_id FROM ledger.usage WHERE lease_id = ANY($1::text[])"


class PostgresBudgets:
    """The budgets in the ledger's database. At most `max_budgets` of them, for every scheduler keeps all in memory."""

    def __init__(self, db: Database, *, max_budgets: int) -> None:
        self._db = db
        self._max_budgets = max_budgets

    async def revision(self) -> int:
        async with self._db.transaction(None) as connection:
            return int(await connection.fetchval(_REVISION))

    async def load(self) -> tuple[int, list[Budget]]:
        async with self._db.transaction(None, isolation="repeatable_read") as connection:
            revision = int(await connection.fetchval(_REVISION))
            rows = await connection.fetch(_ALL)
        found = [
            Budget(
                BudgetKey(str(row["tenant_id"]), row["key_id"], row["model"], Period(row["period"]), row["soft"]),
                row["limit_nano"],
                row["currency"],
            )
            for row in rows
        ]
        return revision, found

    async def put(self, budget: Budget) -> None:
        key = budget.key
        async with self._db.transaction(None) as connection:
            await _check_owner(connection, key)
            await connection.execute(_CHANGE)  # its lock makes the count below exact
            if await connection.fetchval(_OTHERS, *_columns(key)) >= self._max_budgets:
                message = f"there are {self._max_budgets} budgets already"
                raise DownstackError(Reason.QUOTA_EXCEEDED, message)
            await connection.execute(_PUT, *_columns(key), budget.limit_nano, budget.currency)

    async def remove(self, key: BudgetKey) -> bool:
        async with self._db.transaction(None) as connection:
            await connection.execute(_CHANGE)
            return await connection.fetchval(_REMOVE, *_columns(key)) is not None

    async def spent(
        self, tenant_id: str, budgets: Sequence[Budget], *, day: dt.date, leases: Sequence[str]
    ) -> tuple[Mapping[BudgetKey, int], list[str]]:
        firsts = [budget.key.period.first(day) for budget in budgets]
        columns = (
            [budget.key.key_id for budget in budgets],
            [budget.key.model for budget in budgets],
            [budget.currency for budget in budgets],
            firsts,
            [budget.key.period.following(first) for budget, first in zip(budgets, firsts, strict=True)],
        )
        # One snapshot for both: a lease has its row exactly if the sums include it.
        async with self._db.transaction(acting_for(tenant_id), isolation="repeatable_read") as connection:
            sums = await connection.fetch(_SUMS, tenant_id, *columns)
            rows = await connection.fetch(_ROWS, leases) if leases else []
        return {budgets[row["place"] - 1].key: int(row["cost_nano"]) for row in sums}, [row["lease_id"] for row in rows]


async def _check_owner(connection: Connection, key: BudgetKey) -> None:
    """Raise TENANT_NOT_FOUND or KEY_NOT_FOUND: a budget of nobody would limit nothing, and nobody would notice."""
    if await connection.fetchval(_TENANT, key.tenant_id) is None:
        raise DownstackError(Reason.TENANT_NOT_FOUND, "there is no such tenant", metadata={"tenant_id": key.tenant_id})
    if key.key_id and await connection.fetchval(_KEY, key.tenant_id, key.key_id) is None:
        raise DownstackError(Reason.KEY_NOT_FOUND, "the tenant has no such key", metadata={"key_id": key.key_id})


def _columns(key: BudgetKey) -> tuple[str, str, str, str, bool]:
    return (key.tenant_id, key.key_id, key.model, key.period.value, key.soft)
