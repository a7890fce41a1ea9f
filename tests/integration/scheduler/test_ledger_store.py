"""The ledger's tables on a real PostgreSQL, as the application's role."""

import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
from downstack.events.v1.events_pb2 import AuditRecorded
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant

from services.kit.accounts.store import AccountStore
from services.kit.clock import SystemClock
from services.kit.events.event import Event, MalformedEventError, audit_event
from services.kit.identity import Identity
from services.kit.pg.pool import Database
from services.scheduler.adapters.ledger_consumer import LedgerConsumer
from services.scheduler.adapters.ledger_gaps import PostgresGaps
from services.scheduler.adapters.ledger_store import PostgresLedger
from services.scheduler.adapters.meter import SilentMeter
from services.scheduler.domain.ledger import Grouping, UsageFilter
from tests.conftest import MakeDatabase
from tests.integration.scheduler.arrange import COST, DAY_S, NOON, decided, lost, received, usage

ALL = UsageFilter()
FOREIGN = decided("l", str(uuid.uuid4()), granted="another", model="m")


@pytest.fixture(scope="module")
async def db(make_database: MakeDatabase) -> AsyncIterator[Database]:
    address = await make_database("services.scheduler")
    async with Database.open(address.app_dsn) as database:
        yield database


@pytest.fixture
def tenant() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def store(db: Database) -> PostgresLedger:
    return PostgresLedger(db)


async def fold(store: PostgresLedger, *events: Event) -> None:
    await LedgerConsumer(store, meter=SilentMeter()).handle(received(*events))


async def test_a_batch_that_comes_again_changes_nothing(store: PostgresLedger, tenant: str) -> None:
    """Duplicates within a batch and across batches leave one row for each lease."""
    events = [usage(f"{tenant}-{n}", tenant) for n in (1, 2, 1)] + [decided("l", tenant)] * 2
    await fold(store, *events)
    await fold(store, *events)
    (total,) = await store.totals(tenant, ALL, by=Grouping.NOTHING)
    assert (total.rows, total.requests) == (2, 2)
    assert total.cost_nano == 2 * COST, "money is exact"
    assert len(await store.decisions(tenant, "req_1")) == 1


async def test_the_first_record_of_a_lease_stays(store: PostgresLedger, tenant: str) -> None:
    """Worker and scheduler may both record a lease; whichever comes second is dropped."""
    first, second = f"{tenant}-1", f"{tenant}-2"
    await fold(store, usage(first, tenant), lost(first, tenant), lost(second, tenant), usage(second, tenant))
    page = await store.usage(tenant, ALL, limit=10, after=None)
    assert {entry.lease_id: entry.source for entry in page.entries} == {first: "engine", second: "last_report"}


async def test_a_row_comes_back_as_it_went_in(store: PostgresLedger, tenant: str) -> None:
    """Nothing is lost or invented: what is unknown stays unknown."""
    await fold(store, usage(f"{tenant}-1", tenant))
    (entry,) = (await store.usage(tenant, ALL, limit=10, after=None)).entries
    assert (entry.usage.input_total, entry.usage.input_cached, entry.usage.output_total) == (100, 40, 10)
    assert entry.usage.reasoning is None
    assert entry.times.ttft_ms == 12.5
    assert entry.times.tpot_ms is None
    assert entry.gpu_seconds is None
    assert entry.started_at is None
    assert entry.finished_at == pytest.approx(NOON + 0.123456, abs=1e-6)
    assert (entry.finish, entry.engine, entry.labels) == ("stop", "sim 1", {"team": "a"})


async def test_another_tenant_sees_nothing(store: PostgresLedger, db: Database, tenant: str) -> None:
    """Neither the store's calls nor a bare query under another tenant's id reach the rows, and none without an id."""
    await fold(store, usage(f"{tenant}-1", tenant), decided("l", tenant))
    other = str(uuid.uuid4())
    assert await store.totals(other, ALL, by=Grouping.MODEL) == []
    assert (await store.usage(other, ALL, limit=10, after=None)).entries == []
    assert await store.decisions(other, "req_1") == []
    count = "SELECT (SELECT count(*) FROM ledger.usage) + (SELECT count(*) FROM ledger.decisions)"
    for identity, rows in ((None, 0), (_identity(other), 0), (_identity(""), 0), (_identity(tenant), 2)):
        async with db.transaction(identity) as connection:
            assert await connection.fetchval(count) == rows


async def test_nobody_writes_for_another_tenant_or_changes_a_row(
    store: PostgresLedger, db: Database, tenant: str
) -> None:
    """A row cannot be added under a foreign id, and what is in the ledger stays."""
    await fold(store, decided("l", tenant))
    statement = "INSERT INTO ledger.decisions VALUES ($1, 'r', 1, 'x', now(), '')"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.transaction(_identity(str(uuid.uuid4()))) as connection:
            await connection.execute(statement, tenant)
    for change in ("UPDATE ledger.decisions SET attempt = 9", "DELETE FROM ledger.usage"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with db.transaction(_identity(tenant)) as connection:
                await connection.execute(change)


async def test_totals_by_group(store: PostgresLedger, tenant: str) -> None:
    """Groups are sorted; a day is one in UTC, whatever the server's zone."""
    midnight = NOON - NOON % DAY_S + DAY_S
    await fold(
        store,
        usage(f"{tenant}-1", tenant, at=midnight - 1, model="b", worker_id="w2"),
        usage(f"{tenant}-2", tenant, at=midnight, model="a", key_id="key00002"),
        usage(f"{tenant}-3", tenant, at=midnight + 5, model="a", request_id=f"req_{tenant}-2"),
    )

    async def groups(by: Grouping) -> list[tuple[str, int, int]]:
        return [(each.group, each.rows, each.requests) for each in await store.totals(tenant, ALL, by=by)]

    assert await groups(Grouping.MODEL) == [("a", 2, 1), ("b", 1, 1)]
    assert await groups(Grouping.WORKER) == [("w1", 2, 1), ("w2", 1, 1)]
    assert await groups(Grouping.KEY) == [("key00001", 2, 2), ("key00002", 1, 1)]
    assert [each[1] for each in await groups(Grouping.DAY)] == [1, 2]
    assert (await groups(Grouping.DAY))[1][0] > (await groups(Grouping.DAY))[0][0]
    (one,) = await store.totals(tenant, UsageFilter(since=midnight, until=midnight + 5), by=Grouping.NOTHING)
    assert one.rows == 1


async def test_pages_lead_through_all_rows_once(store: PostgresLedger, tenant: str) -> None:
    """Rows of one moment are neither skipped nor repeated at the edge of a page."""
    await fold(store, *(usage(f"{tenant}-{n}", tenant, at=NOON + n // 3) for n in range(7)))
    seen: list[str] = []
    after = None
    while True:
        page = await store.usage(tenant, ALL, limit=2, after=after)
        seen += [entry.lease_id for entry in page.entries]
        if not page.more:
            break
        after = (page.entries[-1].finished_at, page.entries[-1].lease_id)
    assert seen == [f"{tenant}-{n}" for n in (6, 5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize(
    "event", [usage("l", "no uuid"), usage("", str(uuid.uuid4())), decided("l", "no uuid"), FOREIGN]
)
async def test_a_record_that_is_none_is_named(store: PostgresLedger, event: Event) -> None:
    """What cannot be a row is malformed, so that it is put aside and not tried for ever."""
    with pytest.raises(MalformedEventError):
        await fold(store, event)


async def test_decisions_without_rows_are_found_part_by_part(store: PostgresLedger, db: Database, tenant: str) -> None:
    """Parts are bounded by decisions, not by what is found; the grant comes back whole; other tenants' stay unseen."""
    names = [f"{tenant}-{n}" for n in range(5)]
    await fold(store, *(decided(name, tenant, request_id=name, model="m") for name in names))
    await fold(store, decided("without a grant", tenant), *(usage(name, tenant) for name in (names[0], names[3])))
    gaps = PostgresGaps(db, AccountStore(db, pepper=b"pepper", clock=SystemClock()))
    found, position, parts = [], (0.0, ""), 0
    while True:
        part = await gaps.compare(tenant, after=position, older_than_s=0.0, limit=2)
        found += part.unmatched
        position, parts = part.end, parts + 1
        if not part.more:
            break
    assert ([lease.lease_id for lease in found], parts) == ([names[1], names[2], names[4]], 3)
    assert {(lease.worker_id, LeaseGrant.FromString(lease.grant).model) for lease in found} == {("w1", "m")}
    assert all(0 <= lease.age_s < 60 for lease in found)
    assert not (await gaps.compare(tenant, after=(0.0, ""), older_than_s=60.0, limit=9)).unmatched, "too young"
    other = await gaps.compare(str(uuid.uuid4()), after=(0.0, ""), older_than_s=0.0, limit=9)
    assert (other.unmatched, other.more) == ([], False)


async def test_all_tenants_are_compared(make_database: MakeDatabase) -> None:
    """The tenants are those of the accounts, over the edges of pages too."""
    address = await make_database("services.kit.accounts")
    async with Database.open(address.app_dsn) as accounts_db:
        accounts = AccountStore(accounts_db, pepper=b"pepper", clock=SystemClock())
        made = {(await accounts.create_tenant(f"tenant-{n}")).tenant_id for n in range(3)}
        assert {tenant_id async for tenant_id in PostgresGaps(accounts_db, accounts).tenants()} == made


async def test_other_facts_are_passed_over(store: PostgresLedger, tenant: str) -> None:
    """The audit topic has more than decisions; the ledger leaves the rest alone."""
    record = AuditRecorded(tenant_id=tenant, request_id="req_9")
    await fold(store, audit_event(record, source="downstack/tests", kind="other", id_parts=["1"]))
    assert await store.decisions(tenant, "req_9") == []


def _identity(tenant_id: str) -> Identity:
    return Identity(tenant_id, "tests", (), frozenset(), "")
