"""The lines that hold tenants and callers apart, each tested without the others."""

import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from downstack.local.postgres import DatabaseAddress

from services.kit.identity import Identity
from services.kit.pg.pool import Connection, Database
from services.retriever.domain.access import AccessLevel, AccessRule, Grant, Grantee
from tests.conftest import MakeDatabase

ACME, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
PRINCIPALS, GROUPS = ("ann", "bob", "carl"), ("red", "blue", "gre,en", 'qu"ote')
VECTOR = str([1.0] + [0.0] * 383)


def person(principal: str = "ann", *, tenant: str = ACME, groups: tuple[str, ...] = ()) -> Identity:
    return Identity(tenant, principal, groups, frozenset(), "key")


@pytest.fixture(scope="module")
async def address(make_database: MakeDatabase) -> DatabaseAddress:
    return await make_database("services.retriever")


@pytest.fixture
async def db(address: DatabaseAddress) -> AsyncIterator[Database]:
    """The application's role on empty tables, with a partition for each of two tenants."""
    async with Database.open(address.app_dsn) as opened:
        for tenant in (ACME, OTHER):
            async with opened.transaction(person(tenant=tenant)) as connection:
                await connection.execute("SELECT retrieval.ensure_partition()")
        async with owner(address) as connection:
            await connection.execute(
                "TRUNCATE retrieval.collections, retrieval.grants, retrieval.documents, retrieval.chunks"
            )
        yield opened


@asynccontextmanager
async def owner(address: DatabaseAddress) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(address.owner_dsn)
    yield connection
    await connection.close()


async def add_collection(db: Database, name: str, *, who: Identity, private: bool = True) -> int:
    async with db.transaction(who) as connection:
        collection: int = await connection.fetchval(
            "INSERT INTO retrieval.collections (tenant_id, name, owner, private, embedding_model, dimensions)"
            " VALUES ($1, $2, $3, $4, 'm', 384) RETURNING collection_id",
            who.tenant_id,
            name,
            who.principal,
            private,
        )
        document = await connection.fetchval(
            "INSERT INTO retrieval.documents (tenant_id, collection_id, document_id, version, content_hash, title, uri,"
            " media_type, content, metadata, chunks)"
            " VALUES ($1, $2, $3, 1, sha256('x'), 't', '', 'text/plain', 'honey', '{}', 1) RETURNING document_key",
            who.tenant_id,
            collection,
            name,
        )
        await add_chunk(connection, who.tenant_id, collection, document)
        await connection.execute(
            "UPDATE retrieval.collections SET chunks = 1, lexemes = 2 WHERE collection_id = $1", collection
        )
    return collection


async def add_chunk(connection: Connection, tenant: str, collection: int, document: int) -> None:
    await connection.execute(
        "INSERT INTO retrieval.chunks (tenant_id, collection_id, document_key, version, ordinal, start_char, end_char,"
        " heading, body, embedding) VALUES ($1, $2, $3, 1, 0, 0, 5, 't', 'honey', $4::text::halfvec)",
        tenant,
        collection,
        document,
        VECTOR,
    )


async def words(connection: Connection, tenant: str, collections: list[int]) -> list[int]:
    rows = await connection.fetch(
        "SELECT chunk_id FROM retrieval.search_text($1, $2, NULL, 'honey', 100, 1000, 100)", tenant, collections
    )
    return [row["chunk_id"] for row in rows]


async def test_every_table_is_under_forced_row_level_security(db: Database, address: DatabaseAddress) -> None:
    """Partitions too: ENABLE alone would not hold the owner, and a table added later must not be forgotten."""
    async with owner(address) as connection:
        tables = await connection.fetch(
            "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class"
            " WHERE relnamespace = 'retrieval'::regnamespace AND relkind IN ('r', 'p', 'f', 'm')"
        )
    assert {table["relname"] for table in tables} >= {"collections", "grants", "documents", "chunks"}
    assert len([table for table in tables if table["relname"].startswith("chunks_")]) == 2
    assert [
        table["relname"] for table in tables if not (table["relrowsecurity"] and table["relforcerowsecurity"])
    ] == []


async def test_the_applications_role_has_no_way_around(address: DatabaseAddress, db: Database) -> None:
    """It owns nothing, bypasses nothing, reaches no partition directly, and views and functions are accounted for."""
    async with db.transaction(None) as connection:
        role = await connection.fetchrow("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user")
        owned = await connection.fetchval("SELECT count(*) FROM pg_class WHERE relowner = current_user::regrole")
        definers = await connection.fetch(
            "SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'retrieval'::regnamespace AND prosecdef"
        )
        partitions = await connection.fetch(
            "SELECT has_table_privilege(current_user, inhrelid, 'SELECT, INSERT, UPDATE, DELETE') AS may"
            "  FROM pg_inherits WHERE inhparent = 'retrieval.chunks'::regclass"
        )
        views = await connection.fetchval(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'retrieval'::regnamespace AND relkind = 'v'"
        )
    assert dict(role) == {"rolsuper": False, "rolbypassrls": False}
    assert (owned, views) == (0, 0)
    assert {row["proname"] for row in definers} == {"ensure_partition", "search_text"}
    assert all("search_path=pg_catalog, pg_temp" in row["proconfig"] for row in definers)
    assert [row["may"] for row in partitions] == [False, False]


async def test_without_a_caller_there_is_nothing(db: Database) -> None:
    """A transaction that carries nobody, or an internal caller, sees and adds nothing."""
    collection = await add_collection(db, "open", who=person(), private=False)
    for nobody in (None, person("router", tenant="")):
        async with db.transaction(nobody) as connection:
            for table in ("collections", "grants", "documents", "chunks"):
                assert await connection.fetchval(f"SELECT count(*) FROM retrieval.{table}") == 0
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with db.transaction(nobody) as connection:
                await words(connection, ACME, [collection])
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with db.transaction(nobody) as connection:
                await connection.execute("SELECT retrieval.ensure_partition()")


async def test_another_tenants_name_in_a_statement_is_useless(db: Database) -> None:
    """Row-level security holds where the statement's own tenant condition is wrong, for reading and for writing."""
    collection = await add_collection(db, "open", who=person(), private=False)
    thief = person(tenant=OTHER)
    async with db.transaction(thief) as connection:
        for table in ("collections", "documents", "chunks"):
            found = await connection.fetchval(f"SELECT count(*) FROM retrieval.{table} WHERE tenant_id = $1", ACME)
            assert found == 0
            gone = await connection.execute(f"DELETE FROM retrieval.{table} WHERE tenant_id = $1", ACME)
            assert gone == "DELETE 0"
        assert await words(connection, OTHER, [collection]) == []
    for tenant in (ACME, OTHER):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with db.transaction(thief) as connection:
                await add_chunk(connection, tenant, collection, 1)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.transaction(thief) as connection:
            await words(connection, ACME, [collection])


async def test_nobody_gives_a_collection_to_himself(db: Database) -> None:
    """Grants, owners and privacy cannot be changed by those who may not write, nor by statements at all."""
    collection = await add_collection(db, "closed", who=person("ann"))
    bob = person("bob")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.transaction(bob) as connection:
            await connection.execute(
                "INSERT INTO retrieval.grants VALUES ($1, $2, 'principal:bob', 2)", ACME, collection
            )
    for who, change in ((bob, "owner = 'bob'"), (person("ann"), "private = false"), (bob, "tenant_id = tenant_id")):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with db.transaction(who) as connection:
                await connection.execute(f"UPDATE retrieval.collections SET {change}")


async def test_policies_and_rule_say_the_same(db: Database) -> None:
    """Random owners, grants and callers: all tables, both legs and the plain rule agree on who reads and writes."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    rules = [await make_rule(db, chance, f"c{n}") for n in range(30)]
    for _ in range(60):
        groups = tuple(chance.sample(GROUPS, chance.randint(0, 2)))
        who = person(chance.choice(PRINCIPALS), tenant=chance.choice((ACME, OTHER)), groups=groups)
        levels = {
            collection: rule.level(tenant_id=who.tenant_id, principal=who.principal, groups=who.groups)
            for collection, rule in rules
        }
        readable = sorted(collection for collection, level in levels.items() if level >= AccessLevel.READ)
        writable = sorted(collection for collection, level in levels.items() if level == AccessLevel.WRITE)
        async with db.transaction(who) as connection:
            for table in ("collections", "documents", "chunks"):
                rows = await connection.fetch(f"SELECT collection_id FROM retrieval.{table} ORDER BY 1")
                assert [row[0] for row in rows] == readable, (seed, who, table)
            found = await words(connection, who.tenant_id, sorted(levels))
            rows = await connection.fetch("SELECT chunk_id FROM retrieval.chunks")
            assert sorted(found) == sorted(row[0] for row in rows), (seed, who)
            locked = await connection.fetch("SELECT collection_id FROM retrieval.collections FOR NO KEY UPDATE")
            assert sorted(row[0] for row in locked) == writable, (seed, who)


async def make_rule(db: Database, chance: random.Random, name: str) -> tuple[int, AccessRule]:
    owner_of_it = person(chance.choice(PRINCIPALS), tenant=chance.choice((ACME, OTHER)))
    private = chance.random() < 0.7
    collection = await add_collection(db, name, who=owner_of_it, private=private)
    everybody = [Grantee("principal", one) for one in PRINCIPALS] + [Grantee("group", one) for one in GROUPS]
    grants = tuple(
        Grant(grantee, chance.choice((AccessLevel.READ, AccessLevel.WRITE)))
        for grantee in chance.sample(everybody, chance.randint(0, 3))
    )
    async with db.transaction(owner_of_it) as connection:
        for grant in grants:
            await connection.execute(
                "INSERT INTO retrieval.grants VALUES ($1, $2, $3, $4)",
                owner_of_it.tenant_id,
                collection,
                str(grant.grantee),
                int(grant.level),
            )
    return collection, AccessRule(owner_of_it.tenant_id, owner_of_it.principal, private, grants)
