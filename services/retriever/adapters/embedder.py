"""all-MiniLM-L6-v2 on onnxruntime."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from services.kit.errors import DownstackError, Reason
from services.retriever.adapters.metrics import EMBED, EMBEDDED
from services.retriever.adapters.model_files import find_model_files
from services.retriever.ports import Embeddings

MODEL = "all-MiniLM-L6-v2"
_MAX_TOKENS = 256  # what the model was trained for; the rest of a longer text is not seen
_MEASURE_BATCH = 1024  # encodings held at once


class OnnxEmbedder:
    """Mean-pooled, normalized embeddings, computed in threads (onnxruntime leaves the interpreter free meanwhile).

    Documents take one thread at a time, so that a query never waits behind a long ingest.
    """

    model = MODEL

    def __init__(self, *, folder: Path | None = None, threads: int = 1, batch: int = 8, queries_max: int = 256) -> None:
        """Load the model; blocks for about a second.

        threads: threads within one run of the network.
        batch: texts in one run; those of similar length run together.
        queries_max: queries that may wait; one more is refused with OVERLOADED.
        """
        files = find_model_files(folder)
        self._tokenizer = Tokenizer.from_file(str(files.tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._network = onnxruntime.InferenceSession(
            str(files.network), _session_options(threads), providers=["CPUExecutionProvider"]
        )
        self._batch = batch
        self._queries_max = queries_max
        self._queries_waiting = 0
        self._documents = asyncio.Semaphore(1)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="embed")
        self.dimensions = int(self._network.get_outputs()[0].shape[-1])

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def measure(self, texts: Sequence[str]) -> list[int]:
        sizes: list[int] = []
        for start in range(0, len(texts), _MEASURE_BATCH):
            encodings = self._tokenizer.encode_batch_fast(
                list(texts[start : start + _MEASURE_BATCH]), add_special_tokens=False
            )
            sizes += [len(encoding.ids) for encoding in encodings]
        return sizes

    async def embed_query(self, text: str) -> Embeddings:
        if self._queries_waiting >= self._queries_max:
            raise DownstackError(Reason.OVERLOADED, "Too many queries wait for the embedding model.", retry_after_s=1.0)
        self._queries_waiting += 1
        EMBEDDED.labels("query").inc()
        try:
            with EMBED.labels("query").time():
                rows = await asyncio.get_running_loop().run_in_executor(self._threads, self.embed, [text])
        finally:
            self._queries_waiting -= 1
        vector: Embeddings = rows[0]
        return vector

    async def embed_documents(self, texts: Sequence[str]) -> Embeddings:
        loop = asyncio.get_running_loop()
        rows = [np.zeros((0, self.dimensions), dtype=np.float32)]
        for start in range(0, len(texts), self._batch * 4):
            part = list(texts[start : start + self._batch * 4])
            EMBEDDED.labels("document").inc(len(part))
            with EMBED.labels("document").time():
                async with self._documents:
                    rows.append(await loop.run_in_executor(self._threads, self.embed, part))
        return np.concatenate(rows)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """One row per text, in their order. Blocks."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        ids = [_truncate(tokens) for tokens in ids]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        vectors = np.zeros((len(ids), self.dimensions), dtype=np.float32)
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            vectors[rows] = self._run([ids[n] for n in rows])
        return vectors

    def _run(self, batch: list[list[int]]) -> Embeddings:
        width = max(len(tokens) for tokens in batch)
        input_ids = np.zeros((len(batch), width), dtype=np.int64)
        mask = np.zeros((len(batch), width), dtype=np.int64)
        for row, tokens in enumerate(batch):
            input_ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feed = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": np.zeros_like(input_ids)}
        hidden = self._network.run(None, feed)[0]
        weights = mask[:, :, None].astype(np.float32)
        pooled = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        return _normalized(pooled)


def _truncate(tokens: list[int]) -> list[int]:
    """Cut to the model's length, keeping the closing special token."""
    return tokens if len(tokens) <= _MAX_TOKENS else [*tokens[: _MAX_TOKENS - 1], tokens[-1]]


def _normalized(rows: Embeddings) -> Embeddings:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Embeddings = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the core from the event loop between two runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options
