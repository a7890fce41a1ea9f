"""RetrievalService over gRPC."""

from collections.abc import AsyncIterator
from typing import Any

from downstack.retrieval.v1 import retrieval_pb2 as pb
from downstack.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceServicer

from services.kit.errors import DownstackError, Reason
from services.kit.identity import Access, Identity, current_identity
from services.kit.pg.paging import page_limit, read_cursor, write_cursor
from services.retriever.adapters import messages
from services.retriever.adapters.metrics import SEARCH
from services.retriever.app import Retriever
from services.retriever.domain.access import Grantee
from services.retriever.domain.entities import DocumentInput
from services.retriever.domain.validation import (
    LIMITS,
    check_document_id,
    check_document_ids,
    check_name,
    check_query,
    check_text,
)
from services.retriever.ingest import Ingestor

SERVICE = "downstack.retrieval.v1.RetrievalService"
_READ, _WRITE = Access.scope("retrieve"), Access.scope("ingest")
ACCESS = {
    f"/{SERVICE}/Prepare": Access.service("router"),
    f"/{SERVICE}/Search": _READ,
    f"/{SERVICE}/GetDocument": _READ,
    f"/{SERVICE}/ListCollections": Access.scope("retrieve", "ingest"),
    f"/{SERVICE}/Ingest": _WRITE,
    f"/{SERVICE}/DeleteDocuments": _WRITE,
    f"/{SERVICE}/CreateCollection": _WRITE,
    f"/{SERVICE}/DeleteCollection": _WRITE,
    f"/{SERVICE}/GrantAccess": _WRITE,
    f"/{SERVICE}/RevokeAccess": _WRITE,
    f"/{SERVICE}/ListGrants": _WRITE,
}
_SEARCH_TOP_K = 10
_PREPARE_TOP_K = 4


class RetrievalServicer(RetrievalServiceServicer):
    """Checks messages and turns them into calls of the retriever; decides nothing."""

    def __init__(self, retriever: Retriever, ingestor: Ingestor) -> None:
        self._retriever = retriever
        self._ingestor = ingestor

    async def Prepare(self, request: pb.PrepareRequest, _context: Any) -> pb.PrepareResponse:  # noqa: N802
        identity = _caller()
        text, query = check_text(request.query), None
        if request.collections:
            _READ.check(identity)  # a key that may not search may not have the router search for it
            top_k = request.top_k if request.HasField("top_k") else _PREPARE_TOP_K
            query = check_query(text, collections=request.collections, top_k=top_k, top_k_max=LIMITS.prepare_top_k)
        with SEARCH.labels("prepare").time():
            embedding, hits = await self._retriever.prepare(identity, text, query)
        citations = [messages.citation_to(hit, mark) for mark, hit in enumerate(hits, start=1)]
        return pb.PrepareResponse(
            citations=citations, embedding=embedding.tolist(), embedding_model=self._retriever.embedding_model
        )

    async def Search(self, request: pb.SearchRequest, _context: Any) -> pb.SearchResponse:  # noqa: N802
        query = check_query(
            request.query,
            collections=request.collections,
            top_k=request.top_k if request.HasField("top_k") else _SEARCH_TOP_K,
            mode=messages.mode_of(request.mode),
            metadata=request.metadata,
        )
        with SEARCH.labels(query.mode.value).time():
            hits = await self._retriever.search(_caller(), query)
        return pb.SearchResponse(hits=[messages.hit_to(hit, mark) for mark, hit in enumerate(hits, start=1)])

    async def Ingest(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.IngestRequest], _context: Any
    ) -> pb.IngestResponse:
        identity = _caller()
        name = await _named_collection(request_iterator)
        stored = await self._ingestor.ingest(identity, name, _documents(request_iterator))
        return messages.ingest_response(stored)

    async def GetDocument(self, request: pb.GetDocumentRequest, _context: Any) -> pb.GetDocumentResponse:  # noqa: N802
        name = check_name(request.collection, field="collection")
        document_id = check_document_id(request.document_id, field="document_id")
        document = await self._retriever.get_document(_caller(), name, document_id)
        return pb.GetDocumentResponse(document=messages.document_to(document))

    async def DeleteDocuments(  # noqa: N802
        self, request: pb.DeleteDocumentsRequest, _context: Any
    ) -> pb.DeleteDocumentsResponse:
        name = check_name(request.collection, field="collection")
        document_ids = check_document_ids(request.document_ids)
        return pb.DeleteDocumentsResponse(deleted=await self._retriever.delete_documents(_caller(), name, document_ids))

    async def CreateCollection(  # noqa: N802
        self, request: pb.CreateCollectionRequest, _context: Any
    ) -> pb.CreateCollectionResponse:
        collection = await self._retriever.create_collection(
            _caller(), check_name(request.name), private=request.private
        )
        return pb.CreateCollectionResponse(collection=messages.collection_to(collection))

    async def ListCollections(  # noqa: N802
        self, request: pb.ListCollectionsRequest, _context: Any
    ) -> pb.ListCollectionsResponse:
        size = page_limit(request.page_size)
        [after] = read_cursor(request.page_token, parts=1) or [""]
        found = await self._retriever.list_collections(_caller(), after=after, size=size + 1)
        token = write_cursor(found[size - 1].name) if len(found) > size else ""
        page = [messages.collection_to(collection) for collection in found[:size]]
        return pb.ListCollectionsResponse(collections=page, next_page_token=token)

    async def DeleteCollection(  # noqa: N802
        self, request: pb.DeleteCollectionRequest, _context: Any
    ) -> pb.DeleteCollectionResponse:
        documents = await self._retriever.delete_collection(_caller(), check_name(request.name))
        return pb.DeleteCollectionResponse(documents=documents)

    async def GrantAccess(self, request: pb.GrantAccessRequest, _context: Any) -> pb.GrantAccessResponse:  # noqa: N802
        name = check_name(request.collection, field="collection")
        await self._retriever.grant(_caller(), name, messages.grant_of(request.grant))
        return pb.GrantAccessResponse()

    async def RevokeAccess(  # noqa: N802
        self, request: pb.RevokeAccessRequest, _context: Any
    ) -> pb.RevokeAccessResponse:
        name = check_name(request.collection, field="collection")
        revoked = await self._retriever.revoke(_caller(), name, Grantee.parse(request.grantee))
        return pb.RevokeAccessResponse(revoked=revoked)

    async def ListGrants(self, request: pb.ListGrantsRequest, _context: Any) -> pb.ListGrantsResponse:  # noqa: N802
        grants = await self._retriever.grants(_caller(), check_name(request.collection, field="collection"))
        return pb.ListGrantsResponse(grants=[messages.grant_to(grant) for grant in grants])


def _caller() -> Identity:
    """The caller; an operator's key has no tenant, and so no documents."""
    identity = current_identity()
    if not identity.tenant_id or not identity.principal:
        raise DownstackError(Reason.ACTION_NOT_ALLOWED, "This key belongs to no tenant: use a tenant's key.")
    return identity


async def _named_collection(requests: AsyncIterator[pb.IngestRequest]) -> str:
    async for request in requests:
        if request.WhichOneof("part") == "collection":
            return check_name(request.collection, field="collection")
        break
    raise DownstackError(Reason.PARAM_CONFLICT, "The first message of an ingest names the collection.")


async def _documents(requests: AsyncIterator[pb.IngestRequest]) -> AsyncIterator[DocumentInput]:
    async for request in requests:
        if request.WhichOneof("part") != "document":
            raise DownstackError(Reason.PARAM_CONFLICT, "Each message of an ingest after the first is a document.")
        yield messages.document_of(request.document)
