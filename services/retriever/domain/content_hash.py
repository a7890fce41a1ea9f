"""What makes two versions of a document the same."""

import hashlib

from services.retriever.domain.chunking import REVISION, ChunkingPolicy
from services.retriever.domain.entities import DocumentInput


def content_hash(document: DocumentInput, *, policy: ChunkingPolicy, embedding_model: str) -> bytes:
    """SHA-256 of all that passages and embeddings are made from, the rules and the model included.

    Equal hashes: what is stored need not be cut and embedded again. URI and metadata play no part.
    """
    rules = f"{REVISION}/{policy.target}/{policy.overlap}/{policy.max_chars}/{embedding_model}"
    digest = hashlib.sha256()
    for part in (rules, document.document_id, document.media_type, document.title, document.content):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
