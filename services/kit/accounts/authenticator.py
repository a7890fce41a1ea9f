"""From the API key in a call's metadata to the identity it stands for."""

import asyncio
import hmac
from collections.abc import Mapping

import asyncpg

from services.kit.accounts.cache import KeyCache, Verdict
from services.kit.accounts.keys import KeyParts, digest_of, parse_key
from services.kit.accounts.store import SCOPES
from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason
from services.kit.identity import Identity
from services.kit.pg.pool import Database

_FIND = """
SELECT tenant_id, principal, groups, scopes, digest, expires_at, revoked_at
  FROM accounts.api_keys WHERE key_id = $1
"""
_SENTENCES = {
    Reason.AUTH_MISSING: "The call carries no API key: send `authorization: Bearer <key>`.",
    Reason.AUTH_INVALID: "The API key is not valid.",
    Reason.AUTH_EXPIRED: "The API key has expired.",
    Reason.AUTH_REVOKED: "The API key was revoked.",
}
# Compared with where no such key exists, so that both cases take the same steps.
_NOBODY = bytes(32)
_OPERATOR = Identity(tenant_id="", principal="operator", groups=(), scopes=SCOPES, key_id="bootstrap")


class ApiKeyAuthenticator:
    """Accepts `authorization: Bearer <key>` or `x-api-key: <key>`.

    A verdict is remembered by the cache for its short life; without the database no other key is accepted. The
    bootstrap key is the operator's, with every scope and no tenant. Raises DownstackError AUTH_* for a bad key,
    DEPENDENCY_UNAVAILABLE where nobody can say.
    """

    def __init__(
        self,
        db: Database,
        *,
        pepper: bytes,
        cache: KeyCache,
        clock: Clock,
        bootstrap_admin_key: str | None = None,
    ) -> None:
        self._db = db
        self._pepper = pepper
        self._cache = cache
        self._clock = clock
        self._bootstrap = digest_of(bootstrap_admin_key, pepper=pepper) if bootstrap_admin_key else None
        self._lookups: dict[bytes, asyncio.Task[Verdict]] = {}

    async def authenticate(self, metadata: Mapping[str, str]) -> Identity:
        sent = _key_in(metadata)
        if sent is None:
            raise _refusal(Reason.AUTH_MISSING)
        digest = digest_of(sent, pepper=self._pepper)
        if self._bootstrap is not None and hmac.compare_digest(digest, self._bootstrap):
            return _OPERATOR
        key = parse_key(sent)
        if key is None:
            raise _refusal(Reason.AUTH_INVALID)
        verdict = self._cache.get(digest)
        if verdict is None:
            verdict = await self._look_up_once(key, digest)
        if isinstance(verdict, Reason):
            raise _refusal(verdict)
        return verdict

    async def _look_up_once(self, key: KeyParts, digest: bytes) -> Verdict:
        """One query for all the calls that wait for the same key: a busy key must not empty the pool."""
        task = self._lookups.get(digest)
        if task is None:
            task = asyncio.create_task(self._look_up(key, digest))
            self._lookups[digest] = task
            task.add_done_callback(lambda done: self._forget(digest, done))
        return await asyncio.shield(task)

    def _forget(self, digest: bytes, done: asyncio.Task[Verdict]) -> None:
        del self._lookups[digest]
        if not done.cancelled():
            done.exception()  # every waiter may have left; the failure is theirs, and is no news to the loop

    async def _look_up(self, key: KeyParts, digest: bytes) -> Verdict:
        async with self._db.transaction(None) as connection:
            row = await connection.fetchrow(_FIND, key.key_id)
        now = self._clock.now()
        verdict = _judge(row, key, digest=digest, now=now)
        left_s = row["expires_at"].timestamp() - now if row is not None and row["expires_at"] else float("inf")
        self._cache.put(digest, verdict, life_s=float("inf") if isinstance(verdict, Reason) else left_s)
        return verdict


def _judge(row: asyncpg.Record | None, key: KeyParts, *, digest: bytes, now: float) -> Verdict:
    same = hmac.compare_digest(digest, row["digest"] if row is not None else _NOBODY)
    if row is None or not same:
        return Reason.AUTH_INVALID
    if row["revoked_at"] is not None:
        return Reason.AUTH_REVOKED
    if row["expires_at"] is not None and row["expires_at"].timestamp() <= now:
        return Reason.AUTH_EXPIRED
    return Identity(
        tenant_id=str(row["tenant_id"]),
        principal=row["principal"],
        groups=tuple(row["groups"]),
        scopes=frozenset(row["scopes"]),
        key_id=key.key_id,
    )


def _key_in(metadata: Mapping[str, str]) -> str | None:
    scheme, _, credential = metadata.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential.strip():
        return credential.strip()
    return metadata.get("x-api-key") or None


def _refusal(reason: Reason) -> DownstackError:
    return DownstackError(reason, _SENTENCES[reason])
