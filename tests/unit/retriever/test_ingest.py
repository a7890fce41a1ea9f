"""What an embedding model must return before anything is stored."""

import numpy as np
import pytest

from services.kit.errors import DownstackError, Reason
from services.retriever.adapters.hashing_embedder import HashingEmbedder
from services.retriever.ingest import check_embeddings
from services.retriever.ports import Embeddings


@pytest.mark.parametrize(
    "rows",
    [
        np.ones((3, 3), dtype=np.float32),
        np.ones((2, 4), dtype=np.float32),
        np.array([[1, np.nan, 0], [1, 0, 0]], dtype=np.float32),
        np.array([[1, np.inf, 0], [1, 0, 0]], dtype=np.float32),
        np.array([[0, 0, 0], [1, 0, 0]], dtype=np.float32),
    ],
)
def test_bad_vectors(rows: Embeddings) -> None:
    """A wrong number, a wrong length, NaN, infinity and zero are refused before they reach a table."""
    good = np.ones((2, 3), dtype=np.float32)
    assert check_embeddings(good, (2, 3)) is good
    with pytest.raises(DownstackError) as caught:
        check_embeddings(rows, (2, 3))
    assert caught.value.reason is Reason.EMBEDDING_DIM_MISMATCH


async def test_the_stand_in_model_knows_words() -> None:
    """Equal texts have equal vectors of length one; shared words make texts near, any text has a vector."""
    model = HashingEmbedder()
    rows = await model.embed_documents(["red apple pie", "red apple tart", "blue sky", "..."])
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1.0] * 4)
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
    assert (await model.embed_query("red apple pie") == rows[0]).all()
    assert (await model.embed_documents([])).shape == (0, 384)
