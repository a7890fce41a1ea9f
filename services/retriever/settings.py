"""Settings of the retriever; each is DOWNSTACK_RETRIEVER_<NAME> in the environment."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.settings import AccountSettings, EventSettings, PostgresSettings, ServiceSettings


class RetrieverSettings(ServiceSettings, PostgresSettings, EventSettings, AccountSettings):
    """What the retriever can be told."""

    model_config = SettingsConfigDict(env_prefix="DOWNSTACK_RETRIEVER_")

    embedder: Literal["minilm", "hashing"] = "minilm"
    """`minilm` is all-MiniLM-L6-v2; `hashing` needs no model and knows words only, for tests."""

    embedding_folder: Path | None = None
    """A folder with model.onnx and tokenizer.json of all-MiniLM-L6-v2. None: the installed packages have them."""

    embedding_threads: int = Field(default=1, ge=1, le=256)
    """Threads of one run of the embedding model."""

    embedding_batch: int = Field(default=8, ge=1, le=256)
    """Texts in one run of the embedding model."""

    embedding_queue_max: int = Field(default=256, ge=1)
    """Queries that may wait for the embedding model; more are refused with OVERLOADED."""

    chunk_tokens: int = Field(default=200, ge=32, le=240)
    """Tokens of a passage. The model sees 256, headings included. A change makes every document new."""

    chunk_overlap_tokens: int = Field(default=25, ge=0, le=100)
    """Tokens that a passage repeats of the one before it, at most."""

    ingest_documents_max: int = Field(default=10_000, ge=1)
    """Documents in one ingest; one more is STREAM_LIMIT."""

    ingest_chunks_max: int = Field(default=10_000, ge=1)
    """Passages of one document; more are PARAM_OUT_OF_RANGE."""

    collections_max: int = Field(default=1000, ge=1)
    """Collections that one principal may own; one more is QUOTA_EXCEEDED."""

    leg_depth: int = Field(default=100, ge=1, le=1000)
    """Passages that the vector and the text search each contribute to a fusion, at least."""

    exact_max_chunks: int = Field(default=20_000, ge=0)
    """Candidates up to which every embedding is compared; above, the HNSW index is used."""

    hnsw_ef_search: int = Field(default=200, ge=1, le=1000)
    """Candidates that the HNSW index keeps while it looks."""

    hnsw_scan_max: int = Field(default=40_000, ge=1)
    """Passages that the HNSW index visits, where filters discard many, before the search is made exact."""

    text_candidates_max: int = Field(default=50_000, ge=1)
    """Passages with a word of the query that a text search ranks, at most."""

    text_rescored_max: int = Field(default=300, ge=1)
    """Of these, the ones that get the exact score."""

    statement_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds after which PostgreSQL gives up a statement."""
