"""Documents and their passages in PostgreSQL: written in one transaction each."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pgvector import HalfVector

from services.kit.errors import DownstackError, Reason
from services.kit.identity import Identity
from services.kit.pg.pool import Connection, Database
from services.retriever.adapters.collections_pg import lock_collection
from services.retriever.adapters.metrics import CHUNKS, DOCUMENTS
from services.retriever.domain.entities import Collection, Document, DocumentInput, StoredDocument
from services.retriever.ports import PreparedDocument

_REFRESH = """
UPDATE retrieval.documents AS d SET uri = n.uri, metadata = n.metadata::jsonb
  FROM unnest($3::bytea[], $4::text[], $5::text[], $6::text[]) AS n (content_hash, document_id, uri, metadata)
 WHERE d.tenant_id = $1 AND d.collection_id = $2
   AND d.document_id = n.document_id AND d.content_hash = n.content_hash
RETURNING d.document_id, d.version, d.chunks
"""
_CURRENT = """
SELECT document_key, version, content_hash, chunks FROM retrieval.documents
 WHERE tenant_id = $1 AND collection_id = $2 AND document_id = $3
"""
_UPSERT = """
INSERT INTO retrieval.documents AS d (tenant_id, collection_id, document_id, version, content_hash, title, uri,
                                      media_type, content, metadata, chunks)
VALUES ($1, $2, $3, 1, $4, $5, $6, $7, $8, $9::jsonb, $10)
ON CONFLICT (tenant_id, collection_id, document_id) DO UPDATE
  SET version = d.version + 1, content_hash = excluded.content_hash, title = excluded.title, uri = excluded.uri,
      media_type = excluded.media_type, content = excluded.content, metadata = excluded.metadata,
      chunks = excluded.chunks, created_at = now()
RETURNING document_key, version
"""
_DELETE_CHUNKS = """
WITH gone AS (DELETE FROM retrieval.chunks
               WHERE tenant_id = $1 AND document_key = ANY ($2) RETURNING length(lexemes) AS n)
SELECT count(*) AS chunks, coalesce(sum(n), 0) AS lexemes FROM gone
"""
_INSERT_CHUNKS = """
WITH added AS (
  INSERT INTO retrieval.chunks (tenant_id, collection_id, document_key, version, ordinal, start_char, end_char,
                                heading, body, embedding)
  SELECT $1, $2, $3, $4, n.ordinal, n.start_char, n.end_char, n.heading, n.body, n.embedding
    FROM unnest($5::int[], $6::int[], $7::int[], $8::text[], $9::text[], $10::halfvec[])
      AS n (ordinal, start_char, end_char, heading, body, embedding)
  RETURNING length(lexemes) AS n)
SELECT count(*) AS chunks, coalesce(sum(n), 0) AS lexemes FROM added
"""
_COUNT = """
UPDATE retrieval.collections
   SET documents = documents + $3, chunks = chunks + $4, lexemes = lexemes + $5
 WHERE tenant_id = $1 AND collection_id = $2
"""
_GET = """
SELECT document_id, title, uri, media_type, content, metadata::text AS metadata, version, chunks, created_at
  FROM retrieval.documents WHERE tenant_id = $1 AND collection_id = $2 AND document_id = $3
"""
_DELETE = """
DELETE FROM retrieval.documents WHERE tenant_id = $1 AND collection_id = $2 AND document_id = ANY ($3)
RETURNING document_key
"""


class PostgresDocuments:
    """The DocumentStore.

    Every change locks its collection first, so that two ingests of one document cannot pass each other.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def refresh_unchanged(
        self, identity: Identity, collection: Collection, documents: Mapping[bytes, DocumentInput]
    ) -> dict[str, StoredDocument]:
        columns = [
            [*documents],
            [document.document_id for document in documents.values()],
            [document.uri for document in documents.values()],
            [json.dumps(dict(document.metadata)) for document in documents.values()],
        ]
        async with self._db.transaction(identity) as connection:
            await lock_collection(connection, identity, collection.name)
            rows = await connection.fetch(_REFRESH, identity.tenant_id, collection.collection_id, *columns)
        DOCUMENTS.labels("unchanged").inc(len(rows))
        return {
            row["document_id"]: StoredDocument(row["document_id"], row["version"], row["chunks"], unchanged=True)
            for row in rows
        }

    async def store(self, identity: Identity, collection: Collection, prepared: PreparedDocument) -> StoredDocument:
        document = prepared.document
        async with self._db.transaction(identity) as connection:
            locked = await lock_collection(connection, identity, collection.name)
            if locked.collection_id != collection.collection_id:
                raise _replaced(collection.name)
            place = (identity.tenant_id, collection.collection_id)
            current = await connection.fetchrow(_CURRENT, *place, document.document_id)
            if current is not None and bytes(current["content_hash"]) == prepared.content_hash:
                return StoredDocument(document.document_id, current["version"], current["chunks"], unchanged=True)
            stored = await connection.fetchrow(_UPSERT, *place, *_document_values(prepared))
            gone = await connection.fetchrow(_DELETE_CHUNKS, identity.tenant_id, [stored["document_key"]])
            key, version = stored["document_key"], stored["version"]
            added = await connection.fetchrow(_INSERT_CHUNKS, *place, key, version, *_chunk_columns(prepared))
            await _count(connection, place, documents=int(current is None), added=added, gone=gone)
        CHUNKS.inc(len(prepared.chunks))
        DOCUMENTS.labels("stored").inc()
        return StoredDocument(document.document_id, version, len(prepared.chunks), unchanged=False)

    async def get(self, identity: Identity, collection: Collection, document_id: str) -> Document:
        async with self._db.transaction(identity) as connection:
            row = await connection.fetchrow(_GET, identity.tenant_id, collection.collection_id, document_id)
        if row is None:
            message = f"There is no such document in {collection.name}."
            raise DownstackError(Reason.DOCUMENT_NOT_FOUND, message, metadata={"document_id": document_id})
        values = {**dict(row.items()), "metadata": json.loads(row["metadata"])}
        return Document(collection=collection.name, **values)

    async def delete(self, identity: Identity, collection: str, document_ids: Sequence[str]) -> int:
        async with self._db.transaction(identity) as connection:
            locked = await lock_collection(connection, identity, collection)
            place = (identity.tenant_id, locked.collection_id)
            rows = await connection.fetch(_DELETE, *place, list(document_ids))
            gone = await connection.fetchrow(_DELETE_CHUNKS, identity.tenant_id, [row["document_key"] for row in rows])
            await _count(connection, place, documents=-len(rows), added=None, gone=gone)
        return len(rows)


def _document_values(prepared: PreparedDocument) -> tuple[Any, ...]:
    document = prepared.document
    return (
        document.document_id,
        prepared.content_hash,
        document.title,
        document.uri,
        document.media_type,
        document.content,
        json.dumps(dict(document.metadata)),
        len(prepared.chunks),
    )


def _chunk_columns(prepared: PreparedDocument) -> tuple[list[Any], ...]:
    chunks = prepared.chunks
    return (
        [chunk.ordinal for chunk in chunks],
        [chunk.start for chunk in chunks],
        [chunk.end for chunk in chunks],
        [chunk.heading for chunk in chunks],
        [chunk.text for chunk in chunks],
        [HalfVector(row) for row in prepared.embeddings],
    )


async def _count(
    connection: Connection, place: tuple[str, int], *, documents: int, added: Any | None, gone: Any
) -> None:
    chunks = (added["chunks"] if added else 0) - gone["chunks"]
    lexemes = (added["lexemes"] if added else 0) - gone["lexemes"]
    await connection.execute(_COUNT, *place, documents, chunks, lexemes)


def _replaced(name: str) -> DownstackError:
    return DownstackError(
        Reason.CONFLICTING_UPDATE, f"The collection {name} was deleted and made anew.", metadata={"collection": name}
    )
