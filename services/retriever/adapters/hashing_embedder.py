"""A stand-in for the embedding model: hashed words, no files, the same vectors everywhere."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from services.retriever.ports import Embeddings

_WORD = re.compile(r"\w+")


class HashingEmbedder:
    """Texts that share words are near each other; meaning plays no part. For tests and for runs without the model."""

    model = "hashing-words"

    def __init__(self, *, dimensions: int = 384) -> None:
        self.dimensions = dimensions
        self.embedded: int = 0
        """Documents' texts embedded so far."""

    def measure(self, texts: Sequence[str]) -> list[int]:
        return [len(_WORD.findall(text)) for text in texts]

    async def embed_query(self, text: str) -> Embeddings:
        return self._vector(text)

    async def embed_documents(self, texts: Sequence[str]) -> Embeddings:
        self.embedded += len(texts)
        rows = [self._vector(text) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.dimensions), dtype=np.float32)

    def _vector(self, text: str) -> Embeddings:
        vector = np.zeros(self.dimensions, dtype=np.float32)
        for word in _WORD.findall(text.lower()) or [text]:
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            slot = int.from_bytes(digest[:4], "little") % self.dimensions
            vector[slot] += 1.0 if digest[4] % 2 else -1.0
        length = float(np.linalg.norm(vector))
        if length == 0.0:  # opposite words cancelled each other out
            vector[0] = length = 1.0
        scaled: Embeddings = (vector / length).astype(np.float32)
        return scaled
