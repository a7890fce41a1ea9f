"""What the retriever asks of the world."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.kit.identity import Identity
from services.retriever.domain.access import Grant, Grantee
from services.retriever.domain.chunking import Chunk
from services.retriever.domain.entities import (
    Collection,
    Document,
    DocumentInput,
    Passage,
    Query,
    Ranked,
    StoredDocument,
)
from services.retriever.domain.scan import ScanPlan

Embeddings = NDArray[np.float32]


class Embedder(Protocol):
    """Turns texts into vectors of length one."""

    @property
    def model(self) -> str:
        """The name that collections keep; vectors of different names cannot be compared."""
        ...

    @property
    def dimensions(self) -> int: ...

    def measure(self, texts: Sequence[str]) -> list[int]:
        """The texts' lengths in the model's tokens. Blocks: call it from a thread."""
        ...

    async def embed_query(self, text: str) -> Embeddings:
        """One vector, ahead of any documents that wait. Raises OVERLOADED if too many queries wait already."""
        ...

    async def embed_documents(self, texts: Sequence[str]) -> Embeddings:
        """One row per text, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class PreparedDocument:
    """A document with its passages and their embeddings, ready to be stored in one transaction."""

    document: DocumentInput
    content_hash: bytes
    chunks: Sequence[Chunk]
    embeddings: Embeddings


class CollectionStore(Protocol):
    """Collections and who may use them. What the caller may not read does not exist: COLLECTION_NOT_FOUND."""

    async def create(
        self, identity: Identity, *, name: str, private: bool, embedding_model: str, dimensions: int
    ) -> tuple[Collection, bool]:
        """The new collection and True, or the existing one of that name and False."""
        ...

    async def find(self, identity: Identity, names: Sequence[str]) -> list[Collection]:
        """The collections in the order of their names; COLLECTION_NOT_FOUND names the first that is missing."""
        ...

    async def writable(self, identity: Identity, name: str) -> Collection:
        """The collection; ACTION_NOT_ALLOWED if the caller may only read it."""
        ...

    async def page(self, identity: Identity, *, after: str, size: int) -> list[Collection]:
        """Up to `size` readable collections whose names sort after `after`."""
        ...

    async def delete(self, identity: Identity, name: str) -> int:
        """Delete it with all that is in it; the number of its documents."""
        ...

    async def grant(self, identity: Identity, name: str, grant: Grant) -> None: ...

    async def revoke(self, identity: Identity, name: str, grantee: Grantee) -> bool:
        """False if there was no such grant."""
        ...

    async def grants(self, identity: Identity, name: str) -> list[Grant]:
        """Sorted by grantee; for those who may write."""
        ...


class DocumentStore(Protocol):
    """Documents and their passages."""

    async def refresh_unchanged(
        self, identity: Identity, collection: Collection, documents: Mapping[bytes, DocumentInput]
    ) -> dict[str, StoredDocument]:
        """Those of `documents` (by content hash) whose content is live already, by id.

        What may change without a new version (uri, metadata) is brought up to date.
        """
        ...

    async def store(self, identity: Identity, collection: Collection, prepared: PreparedDocument) -> StoredDocument:
        """Store one document as its new live version, in one transaction."""
        ...

    async def get(self, identity: Identity, collection: Collection, document_id: str) -> Document:
        """The live version; DOCUMENT_NOT_FOUND if there is none."""
        ...

    async def delete(self, identity: Identity, collection: str, document_ids: Sequence[str]) -> int:
        """The number of documents that existed."""
        ...


@dataclass(frozen=True, slots=True)
class Legs:
    """What each leg found, best first. Empty for a leg that was not asked for."""

    vector: Sequence[Ranked] = ()
    text: Sequence[Ranked] = ()
    plan: ScanPlan | None = None


class PassageView(Protocol):
    """The passages that the caller may read, at one moment: all calls see the same state of the store."""

    async def search(
        self, collections: Sequence[Collection], query: Query, *, embedding: Embeddings | None, depth: int
    ) -> Legs:
        """Up to `depth` passages from each leg: the vector one with an embedding, the text one as the mode says."""
        ...

    async def passages(self, chunk_ids: Sequence[int]) -> dict[int, Passage]:
        """Those of the passages that exist and may be read."""
        ...


class PassageIndex(Protocol):
    """Search over passages."""

    def view(self, identity: Identity) -> AbstractAsyncContextManager[PassageView]: ...


class AuditLog(Protocol):
    """The record of who read and changed what. Durable when a call returns."""

    def check_open(self) -> None:
        """Raises JOURNAL_FULL if nothing more can be recorded; asked before work begins."""
        ...

    async def documents_read(
        self, identity: Identity, documents: Sequence[tuple[str, str, int]], *, method: str
    ) -> None:
        """Record (collection, document id, version) of what was read."""
        ...

    async def administered(self, identity: Identity, *, action: str, resource: str) -> None:
        """Record a change, such as `collection.create` of `collections/handbook`."""
        ...
