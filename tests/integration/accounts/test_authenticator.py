"""API keys against the real tables."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from downstack.local.postgres import DatabaseAddress

from services.kit.accounts.authenticator import ApiKeyAuthenticator
from services.kit.accounts.cache import KeyCache
from services.kit.accounts.keys import generate_key
from services.kit.accounts.store import SCOPES, AccountStore, NewKey
from services.kit.clock import ManualClock, SystemClock
from services.kit.errors import DownstackError, Reason
from services.kit.pg.migrate import migrate
from services.kit.pg.pool import Database

PEPPER = b"a pepper of tests"
BOOTSTRAP = "an operator's key, of any form"
CACHE_S = 10.0


@pytest.fixture(scope="module")
async def db(database: DatabaseAddress) -> AsyncIterator[Database]:
    await migrate(database.owner_dsn, "services.kit.accounts")
    async with Database.open(database.app_dsn, pool_max=2) as opened:
        yield opened


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=SystemClock().now())


@pytest.fixture
async def store(db: Database, clock: ManualClock) -> AccountStore:
    store = AccountStore(db, pepper=PEPPER, clock=clock)
    await store.create_tenant("acme")
    return store


@pytest.fixture
def authenticator(db: Database, clock: ManualClock) -> ApiKeyAuthenticator:
    return _authenticator(db, clock)


def _authenticator(db: Database, clock: ManualClock, *, pepper: bytes = PEPPER) -> ApiKeyAuthenticator:
    cache = KeyCache(life_s=CACHE_S, clock=clock)
    return ApiKeyAuthenticator(db, pepper=pepper, cache=cache, clock=clock, bootstrap_admin_key=BOOTSTRAP)


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def _reason(call: Awaitable[object]) -> Reason:
    with pytest.raises(DownstackError) as caught:
        await call
    return caught.value.reason


async def test_a_key_stands_for_its_tenant_principal_and_groups(
    store: AccountStore, authenticator: ApiKeyAuthenticator
) -> None:
    tenant = await store.create_tenant("acme")
    made = await store.create_key("acme", principal="ann", groups=["staff", "legal"], scopes=["generate"])

    identity = await authenticator.authenticate(_bearer(made.secret))

    assert (identity.tenant_id, identity.principal) == (tenant.tenant_id, "ann")
    assert identity.groups == ("staff", "legal")
    assert identity.scopes == {"generate"}
    assert identity.key_id == made.key.key_id
    assert identity.service == ""


async def test_both_headers_are_understood(store: AccountStore, authenticator: ApiKeyAuthenticator) -> None:
    secret = (await store.create_key("acme")).secret

    by_bearer = await authenticator.authenticate({"authorization": f"bearer  {secret}"})
    by_header = await authenticator.authenticate({"x-api-key": secret})

    assert by_bearer == by_header
    assert "admin" not in by_bearer.scopes


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, Reason.AUTH_MISSING),
        ({"authorization": ""}, Reason.AUTH_MISSING),
        ({"authorization": "Bearer "}, Reason.AUTH_MISSING),
        ({"authorization": "Basic abc"}, Reason.AUTH_MISSING),
        ({"authorization": "Bearer nonsense"}, Reason.AUTH_INVALID),
        ({"x-api-key": "' OR 1=1 --"}, Reason.AUTH_INVALID),
        ({"x-api-key": "ds_live_abcdefgh_" + "a" * 43}, Reason.AUTH_INVALID),
        ({"x-api-key": "k" * 100_000}, Reason.AUTH_INVALID),
    ],
)
async def test_a_call_without_a_good_key_is_refused(
    authenticator: ApiKeyAuthenticator, metadata: dict[str, str], reason: Reason
) -> None:
    assert await _reason(authenticator.authenticate(metadata)) is reason


async def test_the_public_part_alone_opens_nothing(store: AccountStore, authenticator: ApiKeyAuthenticator) -> None:
    made = await store.create_key("acme")
    forged = f"ds_live_{made.key.key_id}_{generate_key().whole[-43:]}"

    assert await _reason(authenticator.authenticate(_bearer(forged))) is Reason.AUTH_INVALID
    assert await authenticator.authenticate(_bearer(made.secret))


async def test_another_pepper_opens_nothing(store: AccountStore, db: Database, clock: ManualClock) -> None:
    secret = (await store.create_key("acme")).secret

    assert (
        await _reason(_authenticator(db, clock, pepper=b"other").authenticate(_bearer(secret))) is Reason.AUTH_INVALID
    )


async def test_a_revoked_key_stops_within_the_caches_life(
    store: AccountStore, authenticator: ApiKeyAuthenticator, db: Database, clock: ManualClock
) -> None:
    made = await store.create_key("acme")
    await authenticator.authenticate(_bearer(made.secret))
    await store.revoke_key(made.key.key_id)

    assert await _reason(_authenticator(db, clock).authenticate(_bearer(made.secret))) is Reason.AUTH_REVOKED
    assert await authenticator.authenticate(_bearer(made.secret))
    clock.advance(CACHE_S)
    assert await _reason(authenticator.authenticate(_bearer(made.secret))) is Reason.AUTH_REVOKED


async def test_a_key_stops_when_it_expires_cached_or_not(
    store: AccountStore, authenticator: ApiKeyAuthenticator, clock: ManualClock
) -> None:
    soon = dt.datetime.fromtimestamp(clock.now() + CACHE_S / 2, dt.UTC)
    made = await store.create_key("acme", expires_at=soon)
    assert await authenticator.authenticate(_bearer(made.secret))

    # A moment more: the expiry was rounded to a microsecond.
    clock.advance(CACHE_S / 2 + 0.001)

    assert await _reason(authenticator.authenticate(_bearer(made.secret))) is Reason.AUTH_EXPIRED


async def test_the_operators_key_needs_no_tenant_and_no_database(clock: ManualClock, short_tmp: object) -> None:
    async with Database.open(f"postgresql://app@/none?host={short_tmp}/absent") as nowhere:
        operator = await _authenticator(nowhere, clock).authenticate(_bearer(BOOTSTRAP))
        refused = await _reason(_authenticator(nowhere, clock).authenticate(_bearer(generate_key().whole)))

    assert operator.scopes == SCOPES
    assert (operator.tenant_id, operator.key_id) == ("", "bootstrap")
    assert refused is Reason.DEPENDENCY_UNAVAILABLE


async def test_a_burst_with_one_key_is_one_query(
    store: AccountStore, authenticator: ApiKeyAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool of two connections serves a thousand callers whose key has just left the cache."""
    secret = (await store.create_key("acme")).secret
    queries = _count_lookups(authenticator, monkeypatch)

    identities = await asyncio.gather(*(authenticator.authenticate(_bearer(secret)) for _ in range(1000)))

    assert len(set(identities)) == 1
    assert len(queries) == 1


async def test_a_caller_that_leaves_does_not_fail_the_others(
    store: AccountStore, authenticator: ApiKeyAuthenticator
) -> None:
    secret = (await store.create_key("acme")).secret
    first = asyncio.create_task(authenticator.authenticate(_bearer(secret)))
    second = asyncio.create_task(authenticator.authenticate(_bearer(secret)))
    await asyncio.sleep(0)
    first.cancel()

    assert (await second).tenant_id
    assert first.cancelled() or first.cancelling()


def _count_lookups(authenticator: ApiKeyAuthenticator, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    seen: list[object] = []
    look_up: Callable[..., Awaitable[object]] = authenticator._look_up

    async def counted(*arguments: object) -> object:
        seen.append(arguments)
        return await look_up(*arguments)

    monkeypatch.setattr(authenticator, "_look_up", counted)
    return seen


async def test_secrets_show_in_no_repr_and_in_no_row(
    store: AccountStore, database: DatabaseAddress, db: Database
) -> None:
    made: NewKey = await store.create_key("acme", name="shown")
    async with db.transaction(None) as connection:
        row = await connection.fetchrow("SELECT * FROM accounts.api_keys WHERE key_id = $1", made.key.key_id)

    assert made.secret not in repr(made)
    assert made.secret[-43:] not in str(dict(row))
    assert len(row["digest"]) == 32
