"""What the retriever stores and finds, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Collection:
    """A set of documents. `collection_id` is the store's; callers know the name.

    chunks and lexemes are the totals of its passages and of the distinct words of each passage.
    """

    collection_id: int
    name: str
    private: bool
    embedding_model: str
    dimensions: int
    documents: int
    chunks: int
    lexemes: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DocumentInput:
    """A document to store, checked: `content` is sound UTF-8 text without NUL."""

    document_id: str
    title: str
    uri: str
    media_type: str
    content: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Document:
    """The live version of a stored document."""

    document_id: str
    collection: str
    title: str
    uri: str
    media_type: str
    content: str
    metadata: Mapping[str, str]
    version: int
    chunks: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """What became of a document that was ingested."""

    document_id: str
    version: int
    chunks: int
    unchanged: bool


class SearchMode(StrEnum):
    """How passages are found."""

    VECTOR = "vector"
    TEXT = "text"
    HYBRID = "hybrid"

    @property
    def uses_vector(self) -> bool:
        return self is not SearchMode.TEXT

    @property
    def uses_text(self) -> bool:
        return self is not SearchMode.VECTOR


@dataclass(frozen=True, slots=True)
class Query:
    """A search, checked."""

    text: str
    collections: tuple[str, ...]
    top_k: int
    mode: SearchMode = SearchMode.HYBRID
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage as one leg of a search found it. The score is the cosine similarity or the full-text score."""

    chunk_id: int
    score: float


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage with what a citation needs."""

    chunk_id: int
    collection: str
    document_id: str
    version: int
    title: str
    uri: str
    start: int
    end: int
    text: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that a search returns, and why: its rank and score in each leg that found it."""

    passage: Passage
    score: float
    vector_rank: int | None = None
    vector_similarity: float | None = None
    text_rank: int | None = None
    text_score: float | None = None
