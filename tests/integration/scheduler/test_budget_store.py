"""Budgets and their sums on a real PostgreSQL, as the application's role."""

import asyncio
import datetime as dt
import random
from collections.abc import AsyncIterator

import asyncpg
import pytest
from downstack.local.postgres import DatabaseAddress

from services.kit.errors import DownstackError, Reason
from services.kit.pg.migrate import migrate
from services.kit.pg.pool import Database
from services.scheduler.adapters.budget_store import PostgresBudgets
from services.scheduler.adapters.ledger_consumer import LedgerConsumer
from services.scheduler.adapters.ledger_store import PostgresLedger, acting_for
from services.scheduler.adapters.meter import SilentMeter
from services.scheduler.domain.budget import Budget, BudgetKey, Period
from services.scheduler.domain.ledger import Grouping, UsageFilter
from tests.conftest import MakeDatabase
from tests.integration.scheduler.arrange import COST, DAY_S, NOON, received, usage
from tests.integration.scheduler.system import accounts

TODAY = dt.datetime.fromtimestamp(NOON, dt.UTC).date()


@pytest.fixture(scope="module")
async def address(make_database: MakeDatabase) -> DatabaseAddress:
    return await make_database("services.kit.accounts", "services.scheduler")


@pytest.fixture(scope="module")
async def db(address: DatabaseAddress) -> AsyncIterator[Database]:
    async with Database.open(address.app_dsn) as database:
        yield database


@pytest.fixture(scope="module")
async def tenants(address: DatabaseAddress) -> tuple[str, str]:
    return (await accounts(address))[0]


@pytest.fixture
def store(db: Database) -> PostgresBudgets:
    return PostgresBudgets(db, max_budgets=3)


def budget(
    tenant_id: str, limit_nano: int = 100, *, period: Period = Period.DAY, key_id: str = "", model: str = ""
) -> Budget:
    return Budget(BudgetKey(tenant_id, key_id, model, period, soft=False), limit_nano, "USD")


async def fold(db: Database, tenant_id: str, *leases: str, **changed: object) -> None:
    events = [usage(f"{tenant_id}-{lease}", tenant_id, **changed) for lease in leases]  # type: ignore[arg-type]
    await LedgerConsumer(PostgresLedger(db), meter=SilentMeter()).handle(received(*events))


async def test_budgets_are_set_changed_and_removed(store: PostgresBudgets, tenants: tuple[str, str]) -> None:
    """Each change has a number, and there is a bound to how many there are."""
    one, two = tenants
    revision, found = await store.load()
    assert found == []
    await store.put(budget(one, 100))
    await store.put(budget(one, 200))
    await store.put(budget(two, 300, period=Period.MONTH))
    assert await store.revision() == revision + 3
    assert sorted((await store.load())[1], key=lambda each: each.limit_nano) == [
        budget(one, 200),
        budget(two, 300, period=Period.MONTH),
    ]
    await store.put(budget(one, 1, model="m"))
    with pytest.raises(DownstackError) as caught:
        await store.put(budget(one, 1, model="n"))
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    await store.put(budget(one, 2, model="m"))
    for key in (budget(one).key, budget(one, model="m").key, budget(two, period=Period.MONTH).key):
        assert await store.remove(key)
        assert not await store.remove(key)
    assert (await store.load())[1] == []


async def test_a_budget_of_nobody_is_refused(store: PostgresBudgets, tenants: tuple[str, str]) -> None:
    """A mistyped tenant or key would limit nothing, and nobody would notice."""
    for wrong, reason in (
        (budget("00000000-0000-0000-0000-000000000000"), Reason.TENANT_NOT_FOUND),
        (budget(tenants[0], key_id="nokey000"), Reason.KEY_NOT_FOUND),
    ):
        with pytest.raises(DownstackError) as caught:
            await store.put(wrong)
        assert caught.value.reason is reason
    assert (await store.load())[1] == []


async def test_sums_are_those_of_the_rows(db: Database, store: PostgresBudgets, tenants: tuple[str, str]) -> None:
    """A record that comes again, late, or from two sides counts once; a sum knows which leases are in it."""
    tenant = tenants[0]
    midnight = NOON - NOON % DAY_S + DAY_S
    await fold(db, tenant, "a", "b", "a", model="m")
    await fold(db, tenant, "a", "c", model="n", key_id="key00002")
    await fold(db, tenant, "d", at=midnight, model="m")
    await fold(db, tenants[1], "x")
    wanted = [
        budget(tenant),
        budget(tenant, period=Period.MONTH),
        budget(tenant, model="m"),
        budget(tenant, key_id="key00002"),
        budget(tenant, key_id="key00002", model="m"),
    ]
    asked = [f"{tenant}-{lease}" for lease in ("a", "none")] + [f"{tenants[1]}-x"]
    sums, rows = await store.spent(tenant, wanted, day=TODAY, leases=asked)
    assert [sums[each.key] for each in wanted] == [3 * COST, 4 * COST, 2 * COST, COST, 0]
    assert rows == [f"{tenant}-a"]
    tomorrow, _ = await store.spent(tenant, wanted, day=TODAY + dt.timedelta(days=1), leases=[])
    assert tomorrow[wanted[0].key] == COST
    assert await store.spent(tenant, [], day=TODAY, leases=[]) == ({}, [])
    euros = Budget(wanted[0].key, 1, "EUR")
    assert (await store.spent(tenant, [euros], day=TODAY, leases=[]))[0] == {euros.key: 0}


async def test_writers_that_overlap_count_each_lease_once(
    db: Database, store: PostgresBudgets, tenants: tuple[str, str]
) -> None:
    """During a rebalance two consumers may add the same rows, in batches of other cuts: nothing is lost or doubled."""
    tenant, chance = tenants[1], random.Random(7)
    leases = [f"o{number:03}" for number in range(60)]

    async def consume() -> None:
        for _ in range(12):
            batch = chance.sample(leases, 20)
            while True:
                try:
                    await fold(db, tenant, *batch, at=NOON + 40 * DAY_S)
                    break
                except DownstackError as error:
                    if error.reason is not Reason.CONFLICTING_UPDATE:
                        raise

    await asyncio.gather(*(consume() for _ in range(4)))
    await fold(db, tenant, *leases, at=NOON + 40 * DAY_S)
    wanted, day = budget(tenant), TODAY + dt.timedelta(days=40)
    assert (await store.spent(tenant, [wanted], day=day, leases=[]))[0][wanted.key] == 60 * COST
    since = UsageFilter(since=NOON + 39 * DAY_S)
    (total,) = await PostgresLedger(db).totals(tenant, since, by=Grouping.NOTHING)
    assert (total.rows, total.cost_nano) == (60, 60 * COST)


async def test_sums_are_the_tenants_own_and_nobodys_to_write(db: Database, tenants: tuple[str, str]) -> None:
    """Row-level security holds for them as for the rows; only the trigger adds to them."""
    await fold(db, tenants[0], "s")
    for tenant_id, seen in ((tenants[0], True), (tenants[1], False)):
        async with db.transaction(acting_for(tenant_id)) as connection:
            count = await connection.fetchval("SELECT count(*) FROM ledger.spend WHERE tenant_id = $1", tenants[0])
        assert (count > 0) is seen
    async with db.transaction(None) as connection:
        assert await connection.fetchval("SELECT count(*) FROM ledger.spend") == 0
    for change in ("UPDATE ledger.spend SET cost_nano = 0", "DELETE FROM ledger.spend", "TRUNCATE ledger.spend"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with db.transaction(acting_for(tenants[0])) as connection:
                await connection.execute(change)


async def test_rows_from_before_are_counted(make_database: MakeDatabase) -> None:
    """The migration sums up what a ledger has that is older than the sums, of every tenant."""
    address = await make_database("services.kit.accounts", "services.scheduler")
    tenants, _ = await accounts(address)
    undo = """
        DROP TABLE ledger.budget_changes, ledger.budgets;
        DROP TRIGGER count_spend ON ledger.usage;
        DROP FUNCTION ledger.count_spend;
        DROP TABLE ledger.spend;
        DELETE FROM migrations.applied WHERE package = 'services.scheduler' AND version >= '0003';
    """
    owner = await asyncpg.connect(address.owner_dsn)
    try:
        await owner.execute(undo)
        async with Database.open(address.app_dsn) as db:
            for tenant_id in tenants:
                await fold(db, tenant_id, "a", "b")
            assert "0003_budgets.sql" in await migrate(address.owner_dsn, "services.scheduler")
            await fold(db, tenants[0], "b", "c")
            for tenant_id, rows in zip(tenants, (3, 2), strict=True):
                wanted = budget(tenant_id)
                store = PostgresBudgets(db, max_budgets=1)
                sums, _ = await store.spent(tenant_id, [wanted], day=TODAY, leases=[])
                assert sums[wanted.key] == rows * COST
        assert await owner.fetchval("SELECT relforcerowsecurity FROM pg_class WHERE oid = 'ledger.usage'::regclass")
    finally:
        await owner.close()
