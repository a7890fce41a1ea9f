"""Connections and transactions against a real server."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
from downstack.local.postgres import DatabaseAddress

from services.kit.errors import DownstackError, Reason
from services.kit.identity import Identity
from services.kit.pg.pool import Database

SCHEMA = """
CREATE SCHEMA notes;
CREATE TABLE notes.notes (tenant_id uuid NOT NULL, body text NOT NULL UNIQUE);
ALTER TABLE notes.notes ENABLE ROW LEVEL SECURITY;
ALTER TABLE notes.notes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON notes.notes USING (tenant_id = NULLIF(current_setting('app.tenant_id', true), '')::uuid);
GRANT USAGE ON SCHEMA notes TO downstack_app;
GRANT SELECT, INSERT ON notes.notes TO downstack_app;
"""
TENANTS = [str(uuid.UUID(int=n)) for n in (1, 2)]


def _identity(tenant_id: str, *groups: str) -> Identity:
    return Identity(tenant_id=tenant_id, principal="ann", groups=groups, scopes=frozenset(), key_id="k")


@pytest.fixture(scope="module")
async def notes(database: DatabaseAddress) -> DatabaseAddress:
    owner = await asyncpg.connect(database.owner_dsn)
    await owner.execute(SCHEMA)
    await owner.close()
    return database


@pytest.fixture
async def db(notes: DatabaseAddress) -> AsyncIterator[Database]:
    async with Database.open(notes.app_dsn, pool_max=2, acquire_timeout_s=0.3, statement_timeout_s=1.0) as opened:
        yield opened


async def _refusal(db: Database, sql: str) -> DownstackError:
    with pytest.raises(DownstackError) as caught:
        async with db.transaction(None) as connection:
            await connection.execute(sql)
    return caught.value


async def test_the_applications_role_is_held_by_row_level_security(db: Database) -> None:
    async with db.transaction(None) as connection:
        row = await connection.fetchrow("SELECT * FROM pg_roles WHERE rolname = current_user")
        member = await connection.fetchval("SELECT count(*) FROM pg_auth_members WHERE member = current_user::regrole")

    assert row["rolname"] == "downstack_app"
    assert {row[right] for right in ("rolsuper", "rolbypassrls", "rolcreaterole", "rolcreatedb")} == {False}
    assert member == 0


async def test_a_transaction_sees_its_own_tenants_rows_only(db: Database) -> None:
    for tenant in TENANTS:
        async with db.transaction(_identity(tenant)) as connection:
            await connection.execute("INSERT INTO notes.notes VALUES ($1, $2)", tenant, f"of {tenant}")

    for tenant in TENANTS:
        async with db.transaction(_identity(tenant)) as connection:
            assert [row["body"] for row in await connection.fetch("SELECT * FROM notes.notes")] == [f"of {tenant}"]
    async with db.transaction(None) as connection:
        assert await connection.fetch("SELECT * FROM notes.notes") == []
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.transaction(_identity(TENANTS[0])) as connection:
            await connection.execute("INSERT INTO notes.notes VALUES ($1, 'stolen')", TENANTS[1])


async def test_the_identity_does_not_outlive_its_transaction(notes: DatabaseAddress) -> None:
    async with Database.open(notes.app_dsn, pool_max=1) as db:
        async with db.transaction(_identity(TENANTS[0])):
            pass
        async with db.transaction(None) as connection:
            assert not await connection.fetchval("SELECT current_setting('app.tenant_id', true)")
            assert await connection.fetch("SELECT * FROM notes.notes") == []


async def test_groups_arrive_as_they_are(db: Database) -> None:
    groups = ("plain", "with,comma", '"quoted"', "{brace}", "back\\slash", "it's", "ünï", "NULL")

    async with db.transaction(_identity(TENANTS[0], *groups)) as connection:
        seen = await connection.fetchval("SELECT NULLIF(current_setting('app.groups', true), '')::text[]")
    assert tuple(seen) == groups

    async with db.transaction(_identity(TENANTS[0])) as connection:
        assert await connection.fetchval("SELECT NULLIF(current_setting('app.groups', true), '')::text[]") == []


async def test_a_statement_that_takes_too_long_is_ended(db: Database) -> None:
    error = await _refusal(db, "SELECT pg_sleep(30)")

    assert error.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert error.metadata["fault"] == "QueryCanceledError"
    await db.ping()


async def test_an_exhausted_pool_refuses_in_time(db: Database) -> None:
    async with db.transaction(None), db.transaction(None):
        with pytest.raises(DownstackError) as caught:
            await asyncio.wait_for(db.ping(), 2)

    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    await db.ping()


async def test_a_broken_rule_passes_unchanged_and_rolls_back(db: Database) -> None:
    with pytest.raises(asyncpg.UniqueViolationError):
        async with db.transaction(_identity(TENANTS[0])) as connection:
            await connection.execute("INSERT INTO notes.notes VALUES ($1, 'twice'), ($1, 'twice')", TENANTS[0])

    async with db.transaction(_identity(TENANTS[0])) as connection:
        assert await connection.fetchval("SELECT count(*) FROM notes.notes WHERE body = 'twice'") == 0


async def test_a_killed_session_is_unavailable_once_and_replaced(db: Database, notes: DatabaseAddress) -> None:
    with pytest.raises(DownstackError) as caught:
        async with db.transaction(None) as connection:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    await db.ping()


async def test_a_read_only_server_makes_the_pool_connect_anew(db: Database) -> None:
    """After a fail-over the old primary refuses writes; a pool that kept its connections would never recover."""
    async with db.transaction(None) as connection:
        before = await connection.fetchval("SELECT pg_backend_pid()")

    error = await _refusal(db, "SET TRANSACTION READ ONLY; CREATE SCHEMA late")

    async with db.transaction(None) as connection:
        after = await connection.fetchval("SELECT pg_backend_pid()")
    assert error.metadata["fault"] == "ReadOnlySQLTransactionError"
    assert before != after


async def test_a_lost_race_is_a_conflict(db: Database) -> None:
    error = await _refusal(db, "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'serialization_failure'; END $$")

    assert error.reason is Reason.CONFLICTING_UPDATE


async def test_a_cancelled_caller_gives_its_connection_back(db: Database) -> None:
    started = asyncio.Event()

    async def slow() -> None:
        async with db.transaction(None) as connection:
            started.set()
            await connection.execute("SELECT pg_sleep(0.9)")

    tasks = [asyncio.create_task(slow()) for _ in range(2)]
    await started.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    await asyncio.gather(db.ping(), db.ping())
    assert all(task.cancelled() for task in tasks)


async def test_a_pool_opens_before_the_server_is_there(short_tmp: object) -> None:
    async with Database.open(f"postgresql://app@/none?host={short_tmp}/absent", acquire_timeout_s=0.5) as db:
        with pytest.raises(DownstackError) as caught:
            await db.ping()

    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert "PostgreSQL" in caught.value.message


async def test_a_wrong_password_is_ours_and_shows_nothing(notes: DatabaseAddress, postgres: object) -> None:
    scheme, _, rest = notes.app_dsn.partition("://")
    wrong = f"{scheme}://downstack_app:wrong@{rest.partition('@')[2]}"

    async with Database.open(wrong) as db:
        with pytest.raises(DownstackError) as caught:
            await db.ping()

    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert "wrong" not in f"{caught.value} {caught.value.metadata}"
