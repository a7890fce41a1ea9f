"""What the retriever does: search, prepare, and keep collections, grants and documents."""

from collections.abc import Sequence

from services.kit.errors import DownstackError, Reason
from services.kit.identity import Identity
from services.retriever.domain.access import Grant, Grantee
from services.retriever.domain.entities import Collection, Document, Hit, Passage, Query, Ranked
from services.retriever.domain.fusion import reciprocal_rank_fusion
from services.retriever.ports import (
    AuditLog,
    CollectionStore,
    DocumentStore,
    Embedder,
    Embeddings,
    Legs,
    PassageIndex,
    PassageView,
)


class Retriever:
    """The service without its transport. Every method acts for an identity of one tenant."""

    def __init__(
        self,
        *,
        collections: CollectionStore,
        documents: DocumentStore,
        index: PassageIndex,
        embedder: Embedder,
        audit: AuditLog,
        leg_depth: int,
    ) -> None:
        """leg_depth: passages that each leg contributes to a fusion, at least."""
        self._collections = collections
        self._documents = documents
        self._index = index
        self._embedder = embedder
        self._audit = audit
        self._leg_depth = leg_depth

    @property
    def embedding_model(self) -> str:
        """The name of the model that makes the embeddings."""
        return self._embedder.model

    async def search(self, identity: Identity, query: Query, *, method: str = "Search") -> list[Hit]:
        """Up to `query.top_k` passages that the caller may read, best first."""
        self._audit.check_open()
        collections = await self._searched(identity, query)
        embedding = await self._embedder.embed_query(query.text) if query.mode.uses_vector else None
        return await self._search(identity, collections, query, embedding=embedding, method=method)

    async def prepare(self, identity: Identity, text: str, query: Query | None) -> tuple[Embeddings, list[Hit]]:
        """One embedding of `text`, and what a query for the same text finds."""
        if query is None:
            return await self._embedder.embed_query(text), []
        self._audit.check_open()
        collections = await self._searched(identity, query)
        embedding = await self._embedder.embed_query(text)
        return embedding, await self._search(identity, collections, query, embedding=embedding, method="Prepare")

    async def _searched(self, identity: Identity, query: Query) -> list[Collection]:
        collections = await self._collections.find(identity, query.collections)
        if query.mode.uses_vector:
            for collection in collections:
                check_embedding_model(collection, self._embedder)
        return collections

    async def _search(
        self,
        identity: Identity,
        collections: Sequence[Collection],
        query: Query,
        *,
        embedding: Embeddings | None,
        method: str,
    ) -> list[Hit]:
        async with self._index.view(identity) as view:
            depth = max(query.top_k, self._leg_depth)
            legs = await view.search(collections, query, embedding=embedding, depth=depth)
            hits = await _best(view, legs, query.top_k)
        await self._read(identity, [_reading(hit.passage) for hit in hits], method=method)
        return hits

    async def create_collection(self, identity: Identity, name: str, *, private: bool) -> Collection:
        """The new collection, or the existing one of that name."""
        self._audit.check_open()
        collection, created = await self._collections.create(
            identity,
            name=name,
            private=private,
            embedding_model=self._embedder.model,
            dimensions=self._embedder.dimensions,
        )
        if created:
            await self._changed(identity, "collection.create", name)
        return collection

    async def list_collections(self, identity: Identity, *, after: str, size: int) -> list[Collection]:
        return await self._collections.page(identity, after=after, size=size)

    async def delete_collection(self, identity: Identity, name: str) -> int:
        self._audit.check_open()
        documents = await self._collections.delete(identity, name)
        await self._changed(identity, "collection.delete", name)
        return documents

    async def grant(self, identity: Identity, name: str, grant: Grant) -> None:
        self._audit.check_open()
        await self._collections.grant(identity, name, grant)
        action = f"access.grant.{grant.level.name.lower()}"
        await self._audit.administered(identity, action=action, resource=f"collections/{name}/{grant.grantee}")

    async def revoke(self, identity: Identity, name: str, grantee: Grantee) -> bool:
        self._audit.check_open()
        revoked = await self._collections.revoke(identity, name, grantee)
        if revoked:
            resource = f"collections/{name}/{grantee}"
            await self._audit.administered(identity, action="access.revoke", resource=resource)
        return revoked

    async def grants(self, identity: Identity, name: str) -> list[Grant]:
        return await self._collections.grants(identity, name)

    async def get_document(self, identity: Identity, collection: str, document_id: str) -> Document:
        self._audit.check_open()
        [found] = await self._collections.find(identity, [collection])
        document = await self._documents.get(identity, found, document_id)
        await self._read(identity, [(collection, document_id, document.version)], method="GetDocument")
        return document

    async def delete_documents(self, identity: Identity, collection: str, document_ids: Sequence[str]) -> int:
        self._audit.check_open()
        deleted = await self._documents.delete(identity, collection, document_ids)
        if deleted:
            await self._changed(identity, "documents.delete", collection)
        return deleted

    async def _changed(self, identity: Identity, action: str, collection: str) -> None:
        await self._audit.administered(identity, action=action, resource=f"collections/{collection}")

    async def _read(self, identity: Identity, readings: Sequence[tuple[str, str, int]], *, method: str) -> None:
        if readings:
            await self._audit.documents_read(identity, list(dict.fromkeys(readings)), method=method)


def check_embedding_model(collection: Collection, embedder: Embedder) -> None:
    """Raises EMBEDDING_DIM_MISMATCH where vectors of the collection and the embedder cannot be compared."""
    if (collection.embedding_model, collection.dimensions) == (embedder.model, embedder.dimensions):
        return
    raise DownstackError(
        Reason.EMBEDDING_DIM_MISMATCH,
        f"The collection {collection.name} has embeddings of {collection.embedding_model} with "
        f"{collection.dimensions} dimensions; this service makes those of {embedder.model} with {embedder.dimensions}.",
        metadata={"collection": collection.name, "embedding_model": embedder.model},
    )


async def _best(view: PassageView, legs: Legs, top_k: int) -> list[Hit]:
    """The best passages after fusion."""
    rankings = [[ranked.chunk_id for ranked in leg] for leg in (legs.vector, legs.text)]
    fused = reciprocal_rank_fusion(rankings)[:top_k]
    found = await view.passages([chunk_id for chunk_id, _ in fused])
    return [_hit(found[chunk_id], score, legs) for chunk_id, score in fused if chunk_id in found]


def _hit(passage: Passage, score: float, legs: Legs) -> Hit:
    vector_rank, similarity = _place(legs.vector, passage.chunk_id)
    text_rank, text_score = _place(legs.text, passage.chunk_id)
    return Hit(passage, score, vector_rank, similarity, text_rank, text_score)


def _place(leg: Sequence[Ranked], chunk_id: int) -> tuple[int | None, float | None]:
    for rank, ranked in enumerate(leg, start=1):
        if ranked.chunk_id == chunk_id:
            return rank, ranked.score
    return None, None


def _reading(passage: Passage) -> tuple[str, str, int]:
    return passage.collection, passage.document_id, passage.version
