"""Between protobuf messages and the retriever's own values."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from downstack.retrieval.v1 import retrieval_pb2 as pb
from downstack.types.v1.stream_pb2 import Citation
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import DownstackError, FieldViolation, Reason
from services.retriever.domain.access import AccessLevel, Grant, Grantee
from services.retriever.domain.entities import Collection, Document, DocumentInput, Hit, SearchMode, StoredDocument
from services.retriever.domain.validation import check_document

_MODES: Mapping[int, SearchMode] = {
    pb.SEARCH_MODE_UNSPECIFIED: SearchMode.HYBRID,
    pb.SEARCH_MODE_VECTOR: SearchMode.VECTOR,
    pb.SEARCH_MODE_TEXT: SearchMode.TEXT,
    pb.SEARCH_MODE_HYBRID: SearchMode.HYBRID,
}
_LEVELS: Mapping[int, AccessLevel] = {pb.ACCESS_LEVEL_READ: AccessLevel.READ, pb.ACCESS_LEVEL_WRITE: AccessLevel.WRITE}
_LEVELS_OUT = {AccessLevel.READ: pb.ACCESS_LEVEL_READ, AccessLevel.WRITE: pb.ACCESS_LEVEL_WRITE}


def mode_of(number: int) -> SearchMode:
    """A number that is no mode is PARAM_OUT_OF_RANGE."""
    if number not in _MODES:
        raise _out_of_range("mode", "a search mode")
    return _MODES[number]


def grant_of(message: pb.Grant) -> Grant:
    if message.level not in _LEVELS:
        raise _out_of_range("grant.level", "read or write")
    return Grant(Grantee.parse(message.grantee), _LEVELS[message.level])


def document_of(message: pb.DocumentInput) -> DocumentInput:
    return check_document(
        document_id=message.document_id,
        title=message.title,
        uri=message.uri,
        media_type=message.media_type,
        content=message.content,
        metadata=message.metadata,
    )


def grant_to(grant: Grant) -> pb.Grant:
    return pb.Grant(grantee=str(grant.grantee), level=_LEVELS_OUT[grant.level])


def collection_to(collection: Collection) -> pb.Collection:
    return pb.Collection(
        name=collection.name,
        embedding_model=collection.embedding_model,
        dimensions=collection.dimensions,
        documents=collection.documents,
        created_at=_timestamp(collection.created_at),
        public_in_tenant=not collection.private,
    )


def document_to(document: Document) -> pb.Document:
    return pb.Document(
        document_id=document.document_id,
        collection=document.collection,
        title=document.title,
        uri=document.uri,
        media_type=document.media_type,
        content=document.content.encode(),
        metadata=dict(document.metadata),
        version=document.version,
        chunks=document.chunks,
        created_at=_timestamp(document.created_at),
    )


def hit_to(hit: Hit, mark: int) -> pb.Hit:
    return pb.Hit(
        citation=citation_to(hit, mark),
        vector_rank=hit.vector_rank,
        text_rank=hit.text_rank,
        vector_similarity=hit.vector_similarity,
        text_score=hit.text_score,
        metadata=dict(hit.passage.metadata),
    )


def citation_to(hit: Hit, mark: int) -> Citation:
    passage = hit.passage
    return Citation(
        mark=mark,
        collection=passage.collection,
        document_id=passage.document_id,
        version=passage.version,
        title=passage.title,
        uri=passage.uri,
        start=passage.start,
        end=passage.end,
        score=hit.score,
        text=passage.text,
    )


def ingest_response(stored: Sequence[StoredDocument]) -> pb.IngestResponse:
    return pb.IngestResponse(
        documents=len(stored),
        unchanged=sum(document.unchanged for document in stored),
        chunks=sum(document.chunks for document in stored if not document.unchanged),
        results=[
            pb.IngestResult(
                document_id=document.document_id,
                version=document.version,
                chunks=document.chunks,
                unchanged=document.unchanged,
            )
            for document in stored
        ],
    )


def _timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def _out_of_range(field: str, description: str) -> DownstackError:
    violation = FieldViolation(field, description)
    return DownstackError(Reason.PARAM_OUT_OF_RANGE, f"{field} must be {description}.", violations=[violation])
