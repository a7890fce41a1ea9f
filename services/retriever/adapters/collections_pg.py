"""Collections and grants in PostgreSQL."""

from collections.abc import Sequence
from typing import Any

import asyncpg

from services.kit.errors import DownstackError, Reason
from services.kit.identity import Identity
from services.kit.pg.pool import Connection, Database
from services.retriever.domain.access import AccessLevel, Grant, Grantee
from services.retriever.domain.entities import Collection

_COLUMNS = """
c.collection_id, c.name, c.private, c.embedding_model, c.dimensions, c.documents, c.chunks, c.lexemes, c.created_at
"""
_INSERT = f"""
INSERT INTO retrieval.collections AS c (tenant_id, name, owner, private, embedding_model, dimensions)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant_id, name) DO NOTHING RETURNING {_COLUMNS}
"""  # noqa: S608 - column names of our own, here and below
_COUNT = "SELECT count(*) FROM retrieval.collections WHERE tenant_id = $1 AND owner = $2"
_FIND = f"SELECT {_COLUMNS} FROM retrieval.collections AS c WHERE c.tenant_id = $1 AND c.name = ANY ($2)"  # noqa: S608
_PAGE = f"""
SELECT {_COLUMNS} FROM retrieval.collections AS c WHERE c.tenant_id = $1 AND c.name > $2 ORDER BY c.name LIMIT $3
"""  # noqa: S608
# The policies for changes decide which rows can be locked.
_LOCK = f"""
SELECT {_COLUMNS} FROM retrieval.collections AS c WHERE c.tenant_id = $1 AND c.name = $2 FOR NO KEY UPDATE
"""  # noqa: S608
_DELETE_CHUNKS = "DELETE FROM retrieval.chunks WHERE tenant_id = $1 AND collection_id = $2"
_DELETE = "DELETE FROM retrieval.collections WHERE tenant_id = $1 AND collection_id = $2"
_GRANT = """
INSERT INTO retrieval.grants (tenant_id, collection_id, grantee, level) VALUES ($1, $2, $3, $4)
ON CONFLICT (tenant_id, collection_id, grantee) DO UPDATE SET level = excluded.level
"""
_REVOKE = "DELETE FROM retrieval.grants WHERE tenant_id = $1 AND collection_id = $2 AND grantee = $3"
_GRANTS = """
SELECT grantee, level FROM retrieval.grants WHERE tenant_id = $1 AND collection_id = $2 ORDER BY grantee
"""


class PostgresCollections:
    """The CollectionStore."""

    def __init__(self, db: Database, *, owned_max: int) -> None:
        """owned_max: collections that one principal may own."""
        self._db = db
        self._owned_max = owned_max

    async def create(
        self, identity: Identity, *, name: str, private: bool, embedding_model: str, dimensions: int
    ) -> tuple[Collection, bool]:
        async with self._db.transaction(identity) as connection:
            # In a transaction of its own, because it holds a lock on the partitioned table to its end.
            await connection.execute("SELECT retrieval.ensure_partition()")
        async with self._db.transaction(identity) as connection:
            if existing := await _find(connection, identity, [name]):
                return existing[0], False
            owned = await connection.fetchval(_COUNT, identity.tenant_id, identity.principal)
            if owned >= self._owned_max:
                raise _quota(self._owned_max)
            values = (identity.tenant_id, name, identity.principal, private, embedding_model, dimensions)
            row = await connection.fetchrow(_INSERT, *values)
            if row is not None:
                return _collection(row), True
            # Somebody was faster, or has a private collection of that name.
            if existing := await _find(connection, identity, [name]):
                return existing[0], False
        raise DownstackError(
            Reason.ACTION_NOT_ALLOWED, "The name is taken in this tenant.", metadata={"collection": name}
        )

    async def find(self, identity: Identity, names: Sequence[str]) -> list[Collection]:
        async with self._db.transaction(identity) as connection:
            found = {collection.name: collection for collection in await _find(connection, identity, names)}
        for name in names:
            if name not in found:
                raise not_found(name)
        return [found[name] for name in names]

    async def writable(self, identity: Identity, name: str) -> Collection:
        async with self._db.transaction(identity) as connection:
            return await lock_collection(connection, identity, name)

    async def page(self, identity: Identity, *, after: str, size: int) -> list[Collection]:
        async with self._db.transaction(identity) as connection:
            return [_collection(row) for row in await connection.fetch(_PAGE, identity.tenant_id, after, size)]

    async def delete(self, identity: Identity, name: str) -> int:
        async with self._db.transaction(identity) as connection:
            collection = await lock_collection(connection, identity, name)
            await connection.execute(_DELETE_CHUNKS, identity.tenant_id, collection.collection_id)
            await connection.execute(_DELETE, identity.tenant_id, collection.collection_id)
            return collection.documents

    async def grant(self, identity: Identity, name: str, grant: Grant) -> None:
        async with self._db.transaction(identity) as connection:
            collection = await lock_collection(connection, identity, name)
            values = (identity.tenant_id, collection.collection_id, str(grant.grantee), int(grant.level))
            await connection.execute(_GRANT, *values)

    async def revoke(self, identity: Identity, name: str, grantee: Grantee) -> bool:
        async with self._db.transaction(identity) as connection:
            collection = await lock_collection(connection, identity, name)
            done = await connection.execute(_REVOKE, identity.tenant_id, collection.collection_id, str(grantee))
            return str(done) == "DELETE 1"

    async def grants(self, identity: Identity, name: str) -> list[Grant]:
        async with self._db.transaction(identity) as connection:
            collection = await lock_collection(connection, identity, name)
            rows = await connection.fetch(_GRANTS, identity.tenant_id, collection.collection_id)
        return [Grant(Grantee.parse(row["grantee"]), AccessLevel(row["level"])) for row in rows]


async def lock_collection(connection: Connection, identity: Identity, name: str) -> Collection:
    """The collection, locked against other changes until the transaction ends.

    Raises COLLECTION_NOT_FOUND for one that the caller may not read, ACTION_NOT_ALLOWED for one that it may only read.
    """
    row = await connection.fetchrow(_LOCK, identity.tenant_id, name)
    if row is not None:
        return _collection(row)
    if await _find(connection, identity, [name]):
        message = "This collection may be read, but not changed, by this principal."
        raise DownstackError(Reason.ACTION_NOT_ALLOWED, message, metadata={"collection": name})
    raise not_found(name)


def not_found(name: str) -> DownstackError:
    """The same words for a collection that is not there and for one that is not the caller's."""
    return DownstackError(Reason.COLLECTION_NOT_FOUND, f"There is no collection {name}.", metadata={"collection": name})


async def _find(connection: Connection, identity: Identity, names: Sequence[str]) -> list[Collection]:
    rows: list[asyncpg.Record] = await connection.fetch(_FIND, identity.tenant_id, list(names))
    return [_collection(row) for row in rows]


def _collection(row: Any) -> Collection:
    return Collection(**dict(row.items()))


def _quota(owned_max: int) -> DownstackError:
    return DownstackError(
        Reason.QUOTA_EXCEEDED,
        f"One principal may own {owned_max} collections.",
        metadata={"collections_max": str(owned_max)},
    )
