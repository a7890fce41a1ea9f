"""Tenants and keys in PostgreSQL: create, list, revoke."""

import dataclasses
import datetime as dt
import re
from collections.abc import Sequence
from typing import Generic, TypeVar

import asyncpg

from services.kit.accounts.keys import digest_of, generate_key
from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason, Violations
from services.kit.pg.paging import page_limit, read_cursor, refuse_cursor, write_cursor
from services.kit.pg.pool import Connection, Database

SCOPES = frozenset({"generate", "retrieve", "ingest", "usage", "admin"})
DEFAULT_SCOPES = SCOPES - {"admin"}
MAX_NAME_BYTES = 128
MAX_GROUPS = 64
_TENANT_NAME = re.compile(r"[a-z0-9-]{1,64}")
# Two of 36**8 public parts being equal is a rare accident; three times in a row is a fault.
_KEY_ATTEMPTS = 3

_INSERT_TENANT = """
INSERT INTO accounts.tenants (name) VALUES ($1) ON CONFLICT (name) DO NOTHING RETURNING tenant_id, name, created_at
"""
_FIND_TENANT = "SELECT tenant_id, name, created_at FROM accounts.tenants WHERE name = $1"
_LIST_TENANTS = "SELECT tenant_id, name, created_at FROM accounts.tenants WHERE name > $1 ORDER BY name LIMIT $2"
_KEY_COLUMNS = "key_id, name, principal, groups, scopes, created_at, expires_at, revoked_at"
_INSERT_KEY = f"""
INSERT INTO accounts.api_keys (key_id, tenant_id, name, principal, groups, scopes, digest, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (key_id) DO NOTHING RETURNING {_KEY_COLUMNS}
"""  # noqa: S608 - column names of our own
_LIST_KEYS = f"""
SELECT {_KEY_COLUMNS} FROM accounts.api_keys
 WHERE tenant_id = $1 AND (created_at, key_id) < ($2, $3) ORDER BY created_at DESC, key_id DESC LIMIT $4
"""  # noqa: S608 - column names of our own
_REVOKE_KEY = f"""
WITH revoked AS (
  UPDATE accounts.api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE key_id = $1 RETURNING *
)
SELECT {", ".join(f"revoked.{column}" for column in _KEY_COLUMNS.split(", "))}, tenants.name AS tenant
  FROM revoked JOIN accounts.tenants USING (tenant_id)
"""  # noqa: S608 - column names of our own
_AFTER_ALL = (dt.datetime.max.replace(tzinfo=dt.UTC), "")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Tenant:
    """The unit of isolation, fairness and billing."""

    tenant_id: str
    name: str
    created_at: dt.datetime


@dataclasses.dataclass(frozen=True)
class ApiKey:
    """A key without its secret. `tenant` is the tenant's name."""

    key_id: str
    tenant: str
    name: str
    principal: str
    groups: tuple[str, ...]
    scopes: frozenset[str]
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None


@dataclasses.dataclass(frozen=True)
class NewKey:
    """A key with its secret, which is shown once and stored nowhere."""

    key: ApiKey
    secret: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list; `next_page_token` is empty on the last one."""

    items: tuple[T, ...]
    next_page_token: str


class AccountStore:
    """What AdminService does to tenants and keys. Raises DownstackError for bad input and for what is not there."""

    def __init__(self, db: Database, *, pepper: bytes, clock: Clock) -> None:
        self._db = db
        self._pepper = pepper
        self._clock = clock

    async def create_tenant(self, name: str) -> Tenant:
        """Create a tenant, or return the one that has this name."""
        violations = Violations()
        if not _TENANT_NAME.fullmatch(name):
            violations.add("name", "must be 1 to 64 characters of a-z, 0-9 and hyphen")
        violations.check()
        async with self._db.transaction(None) as connection:
            row = await connection.fetchrow(_INSERT_TENANT, name) or await connection.fetchrow(_FIND_TENANT, name)
        return _tenant(row)

    async def list_tenants(self, *, page_size: int = 0, page_token: str = "") -> Page[Tenant]:
        """Tenants by name."""
        limit, position = page_limit(page_size), read_cursor(page_token, parts=1)
        async with self._db.transaction(None) as connection:
            rows = await connection.fetch(_LIST_TENANTS, position[0] if position else "", limit + 1)
        tenants = tuple(_tenant(row) for row in rows[:limit])
        return Page(tenants, write_cursor(tenants[-1].name) if len(rows) > limit else "")

    async def create_key(
        self,
        tenant: str,
        *,
        name: str = "",
        principal: str = "",
        groups: Sequence[str] = (),
        scopes: Sequence[str] = (),
        expires_at: dt.datetime | None = None,
    ) -> NewKey:
        """Create a key. No principal: the key itself. No scopes: all but `admin`."""
        self._check_key(name, principal, groups, scopes, expires_at)
        async with self._db.transaction(None) as connection:
            owner = await _find_tenant(connection, tenant)
            for _ in range(_KEY_ATTEMPTS):
                made = generate_key()
                row = await connection.fetchrow(
                    _INSERT_KEY,
                    made.key_id,
                    owner.tenant_id,
                    name,
                    principal or f"key:{made.key_id}",
                    list(dict.fromkeys(groups)),
                    sorted(set(scopes) or DEFAULT_SCOPES),
                    digest_of(made.whole, pepper=self._pepper),
                    expires_at,
                )
                if row is not None:
                    return NewKey(_key(row, tenant), made.whole)
        raise DownstackError(Reason.CONFLICTING_UPDATE, "No free key id was found; try again.")

    async def list_keys(self, tenant: str, *, page_size: int = 0, page_token: str = "") -> Page[ApiKey]:
        """The keys of a tenant, newest first."""
        limit, position = page_limit(page_size), _key_position(page_token)
        async with self._db.transaction(None) as connection:
            owner = await _find_tenant(connection, tenant)
            rows = await connection.fetch(_LIST_KEYS, owner.tenant_id, *position, limit + 1)
        keys = tuple(_key(row, tenant) for row in rows[:limit])
        more = len(rows) > limit
        return Page(keys, write_cursor(keys[-1].created_at.isoformat(), keys[-1].key_id) if more else "")

    async def revoke_key(self, key_id: str) -> ApiKey:
        """Make a key useless, from the moment that the caches forget it. Repeating it changes nothing."""
        async with self._db.transaction(None) as connection:
            row = await connection.fetchrow(_REVOKE_KEY, key_id) if key_id.isascii() and key_id.isalnum() else None
        if row is None:
            raise DownstackError(Reason.KEY_NOT_FOUND, "There is no such key.")
        return _key(row, row["tenant"])

    def _check_key(
        self,
        name: str,
        principal: str,
        groups: Sequence[str],
        scopes: Sequence[str],
        expires_at: dt.datetime | None,
    ) -> None:
        violations = Violations()
        if not _is_label(name):
            violations.add("name", f"must be printable and at most {MAX_NAME_BYTES} bytes")
        if not _is_label(principal):
            violations.add("principal", f"must be printable and at most {MAX_NAME_BYTES} bytes")
        if len(groups) > MAX_GROUPS or not all(group and _is_label(group) for group in groups):
            violations.add("groups", f"must be at most {MAX_GROUPS} printable names of at most {MAX_NAME_BYTES} bytes")
        if not SCOPES.issuperset(scopes):
            violations.add("scopes", f"must be some of {', '.join(sorted(SCOPES))}")
        if expires_at is not None and expires_at.timestamp() <= self._clock.now():
            violations.add("expires_at", "must be in the future")
        violations.check()


async def _find_tenant(connection: Connection, name: str) -> Tenant:
    row = await connection.fetchrow(_FIND_TENANT, name) if _TENANT_NAME.fullmatch(name) else None
    if row is None:
        raise DownstackError(Reason.TENANT_NOT_FOUND, "There is no tenant of that name.")
    return _tenant(row)


def _key_position(token: str) -> tuple[dt.datetime, str]:
    position = read_cursor(token, parts=2)
    if position is None:
        return _AFTER_ALL
    try:
        created_at = dt.datetime.fromisoformat(position[0])
    except ValueError:
        raise refuse_cursor() from None
    if created_at.tzinfo is None:
        raise refuse_cursor()
    return created_at, position[1]


def _is_label(text: str) -> bool:
    return len(text.encode()) <= MAX_NAME_BYTES and (text.isprintable() or not text)


def _tenant(row: asyncpg.Record) -> Tenant:
    return Tenant(tenant_id=str(row["tenant_id"]), name=row["name"], created_at=row["created_at"])


def _key(row: asyncpg.Record, tenant: str) -> ApiKey:
    return ApiKey(
        key_id=row["key_id"],
        tenant=tenant,
        name=row["name"],
        principal=row["principal"],
        groups=tuple(row["groups"]),
        scopes=frozenset(row["scopes"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
