"""Tenants and keys in the real tables."""

import datetime as dt
from collections.abc import AsyncIterator, Awaitable

import asyncpg
import pytest
from downstack.local.postgres import DatabaseAddress

from services.kit.accounts.store import DEFAULT_SCOPES, AccountStore
from services.kit.clock import SystemClock
from services.kit.errors import DownstackError, Reason
from services.kit.pg.migrate import migrate
from services.kit.pg.pool import Database


@pytest.fixture(scope="module")
async def db(database: DatabaseAddress) -> AsyncIterator[Database]:
    await migrate(database.owner_dsn, "services.kit.accounts")
    async with Database.open(database.app_dsn) as opened:
        yield opened


@pytest.fixture
def store(db: Database) -> AccountStore:
    return AccountStore(db, pepper=b"p" * 16, clock=SystemClock())


async def _refused(call: Awaitable[object]) -> DownstackError:
    with pytest.raises(DownstackError) as caught:
        await call
    return caught.value


async def test_creating_a_tenant_twice_returns_the_same_one(store: AccountStore) -> None:
    first, second = await store.create_tenant("twice"), await store.create_tenant("twice")

    assert first == second
    assert first.tenant_id
    assert first.created_at.tzinfo is not None


@pytest.mark.parametrize("name", ["", "A", "a b", "ä", "a" * 65, "a_b", "a\n", "a\0"])
async def test_a_bad_tenant_name_is_refused(store: AccountStore, name: str) -> None:
    error = await _refused(store.create_tenant(name))

    assert error.reason is Reason.PARAM_OUT_OF_RANGE
    assert [violation.field for violation in error.violations] == ["name"]


async def test_tenants_come_in_pages_by_name(store: AccountStore) -> None:
    names = sorted(f"page-{n}" for n in range(7))
    for name in reversed(names):
        await store.create_tenant(name)

    seen, token = [], ""
    while True:
        page = await store.list_tenants(page_size=3, page_token=token)
        seen += [tenant.name for tenant in page.items]
        assert len(page.items) <= 3
        token = page.next_page_token
        if not token:
            break

    assert seen == sorted(seen)
    assert [name for name in seen if name.startswith("page-")] == names


async def test_keys_come_in_pages_newest_first(store: AccountStore) -> None:
    await store.create_tenant("keys")
    made = [(await store.create_key("keys", name=f"k{n}")).key for n in range(5)]

    first = await store.list_keys("keys", page_size=2)
    second = await store.list_keys("keys", page_size=2, page_token=first.next_page_token)
    third = await store.list_keys("keys", page_size=2, page_token=second.next_page_token)

    assert [*first.items, *second.items, *third.items] == list(reversed(made))
    assert third.next_page_token == ""


async def test_a_key_has_defaults(store: AccountStore) -> None:
    await store.create_tenant("defaults")
    key = (await store.create_key("defaults")).key

    assert key.scopes == DEFAULT_SCOPES
    assert key.principal == f"key:{key.key_id}"
    assert (key.tenant, key.name, key.groups, key.expires_at, key.revoked_at) == ("defaults", "", (), None, None)


async def test_all_that_is_wrong_with_a_key_is_said_at_once(store: AccountStore) -> None:
    await store.create_tenant("wrong")
    error = await _refused(
        store.create_key(
            "wrong",
            name="n" * 129,
            principal="a\0b",
            groups=["g"] * 65,
            scopes=["root"],
            expires_at=dt.datetime(2001, 1, 1, tzinfo=dt.UTC),
        )
    )

    assert error.reason is Reason.PARAM_OUT_OF_RANGE
    assert [violation.field for violation in error.violations] == [
        "name",
        "principal",
        "groups",
        "scopes",
        "expires_at",
    ]
    assert (await store.list_keys("wrong")).items == ()


async def test_revoking_is_final_and_may_be_repeated(store: AccountStore) -> None:
    await store.create_tenant("revoking")
    key_id = (await store.create_key("revoking")).key.key_id

    first, second = await store.revoke_key(key_id), await store.revoke_key(key_id)

    assert first == second
    assert first.revoked_at is not None
    assert first.tenant == "revoking"


@pytest.mark.parametrize("tenant", ["absent", "", "'; DROP TABLE accounts.tenants; --", "a\0"])
async def test_an_unknown_tenant_is_not_found(store: AccountStore, tenant: str) -> None:
    assert (await _refused(store.create_key(tenant))).reason is Reason.TENANT_NOT_FOUND
    assert (await _refused(store.list_keys(tenant))).reason is Reason.TENANT_NOT_FOUND


@pytest.mark.parametrize("key_id", ["absent00", "", "a\0", "ü"])
async def test_an_unknown_key_is_not_found(store: AccountStore, key_id: str) -> None:
    assert (await _refused(store.revoke_key(key_id))).reason is Reason.KEY_NOT_FOUND


@pytest.mark.parametrize("token", ["nonsense", "WyJhIiwiYiJd", "WyIyMDI2LTAxLTAxIiwiYSJd"])
async def test_a_token_of_another_list_is_refused(store: AccountStore, token: str) -> None:
    await store.create_tenant("tokens")

    assert (await _refused(store.list_keys("tokens", page_token=token))).reason is Reason.PARAM_OUT_OF_RANGE


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM accounts.api_keys",
        "UPDATE accounts.api_keys SET digest = digest",
        "UPDATE accounts.tenants SET name = name",
        "DELETE FROM accounts.tenants",
        "DROP TABLE accounts.api_keys",
        "CREATE TABLE accounts.mine (id int)",
    ],
)
async def test_the_application_may_add_and_revoke_and_nothing_else(db: Database, sql: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.transaction(None) as connection:
            await connection.execute(sql)
