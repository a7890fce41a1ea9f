"""Take in a stream of documents: cut, embed and store them, each as a whole."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np

from services.kit.errors import DownstackError, Reason
from services.kit.identity import Identity
from services.retriever.app import check_embedding_model
from services.retriever.domain.chunking import Chunk, ChunkingPolicy, chunk_document
from services.retriever.domain.content_hash import content_hash
from services.retriever.domain.entities import Collection, DocumentInput, StoredDocument
from services.retriever.ports import (
    AuditLog,
    CollectionStore,
    DocumentStore,
    Embedder,
    Embeddings,
    PreparedDocument,
)


@dataclass(frozen=True, slots=True)
class IngestBounds:
    """What one ingest may hold.

    documents_max: documents in one call.
    batch_documents, batch_chars: a batch is stored when it has so many documents or characters.
    chunks_max: passages of one document.
    """

    documents_max: int = 10_000
    batch_documents: int = 64
    batch_chars: int = 256 * 1024
    chunks_max: int = 10_000


class Ingestor:
    """Stores documents batch by batch.

    Each document is stored in one transaction with its passages. When one is refused, the ones before it may be stored
    and the ones after it are not; `stored_documents` in the error's metadata says how many. Sending them all again is
    cheap: what is stored already is found by its hash.
    """

    def __init__(
        self,
        *,
        collections: CollectionStore,
        documents: DocumentStore,
        embedder: Embedder,
        audit: AuditLog,
        policy: ChunkingPolicy,
        bounds: IngestBounds,
    ) -> None:
        self._collections = collections
        self._documents = documents
        self._embedder = embedder
        self._audit = audit
        self._policy = policy
        self._bounds = bounds

    async def ingest(
        self, identity: Identity, name: str, documents: AsyncIterator[DocumentInput]
    ) -> list[StoredDocument]:
        """What became of each document, in their order; all of it is searchable."""
        self._audit.check_open()
        collection = await self._collections.writable(identity, name)
        check_embedding_model(collection, self._embedder)
        stored: list[StoredDocument] = []
        try:
            async for batch in self._batches(documents):
                await self._store_batch(identity, collection, batch, stored)
        except DownstackError as error:
            raise _with_progress(error, len(stored)) from error
        finally:
            if any(not document.unchanged for document in stored):
                await self._audit.administered(identity, action="documents.ingest", resource=f"collections/{name}")
        return stored

    async def _batches(self, documents: AsyncIterator[DocumentInput]) -> AsyncIterator[list[DocumentInput]]:
        seen: set[str] = set()
        batch: list[DocumentInput] = []
        chars = 0
        async for document in documents:
            self._check_new(document, seen)
            batch.append(document)
            chars += len(document.content)
            if len(batch) >= self._bounds.batch_documents or chars >= self._bounds.batch_chars:
                yield batch
                batch, chars = [], 0
        if batch:
            yield batch

    def _check_new(self, document: DocumentInput, seen: set[str]) -> None:
        if document.document_id in seen:
            message = "A document id occurs twice in one ingest."
            raise DownstackError(Reason.PARAM_CONFLICT, message, metadata={"document_id": document.document_id})
        if len(seen) >= self._bounds.documents_max:
            message = f"One ingest takes {self._bounds.documents_max} documents."
            raise DownstackError(Reason.STREAM_LIMIT, message)
        seen.add(document.document_id)

    async def _store_batch(
        self,
        identity: Identity,
        collection: Collection,
        batch: Sequence[DocumentInput],
        stored: list[StoredDocument],
    ) -> None:
        """Store the documents of one batch in order, adding each to `stored`."""
        hashes = {self._hash(document): document for document in batch}
        unchanged = await self._documents.refresh_unchanged(identity, collection, hashes)
        changed = {key: document for key, document in hashes.items() if document.document_id not in unchanged}
        cut = [await self._cut(document) for document in changed.values()]
        texts = [chunk.embedded_text for chunks in cut for chunk in chunks]
        embeddings = check_embeddings(await self._embedder.embed_documents(texts), (len(texts), collection.dimensions))
        prepared: dict[str, PreparedDocument] = {}
        for (key, document), chunks in zip(changed.items(), cut, strict=True):
            rows, embeddings = embeddings[: len(chunks)], embeddings[len(chunks) :]
            prepared[document.document_id] = PreparedDocument(document, key, chunks, rows)
        for document in batch:
            known = unchanged.get(document.document_id)
            fresh = prepared.get(document.document_id)
            if known is None and fresh is not None:
                known = await self._documents.store(identity, collection, fresh)
            if known is not None:
                stored.append(known)

    def _hash(self, document: DocumentInput) -> bytes:
        return content_hash(document, policy=self._policy, embedding_model=self._embedder.model)

    async def _cut(self, document: DocumentInput) -> list[Chunk]:
        chunks = await asyncio.to_thread(
            chunk_document,
            document.content,
            title=document.title,
            media_type=document.media_type,
            policy=self._policy,
            measure=self._embedder.measure,
        )
        if len(chunks) > self._bounds.chunks_max:
            message = f"The document has {len(chunks)} passages; {self._bounds.chunks_max} are the most."
            raise DownstackError(Reason.PARAM_OUT_OF_RANGE, message, metadata={"document_id": document.document_id})
        return chunks


def check_embeddings(rows: Embeddings, shape: tuple[int, int]) -> Embeddings:
    """The rows; EMBEDDING_DIM_MISMATCH where their number, length or values cannot be stored."""
    sound = rows.shape == shape and bool(np.isfinite(rows).all()) and bool((np.linalg.norm(rows, axis=1) > 0).all())
    if not sound:
        message = f"The embedding model did not return {shape[0]} finite vectors of {shape[1]} dimensions."
        raise DownstackError(Reason.EMBEDDING_DIM_MISMATCH, message)
    return rows


def _with_progress(error: DownstackError, stored: int) -> DownstackError:
    return DownstackError(
        error.reason,
        error.message,
        metadata={**error.metadata, "stored_documents": str(stored)},
        violations=error.violations,
        retry_after_s=error.retry_after_s,
    )
