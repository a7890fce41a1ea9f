"""Embed over gRPC: what it refuses, what it returns, and what becomes of it when the engine is lost."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import grpc
import pytest
from downstack.worker.v1 import worker_pb2

from services.kit.clock import SystemClock
from services.kit.errors import Reason
from services.kit.models import Tokenizer
from services.kit.status import error_from_rpc
from services.worker.adapters.sim.engine import SimEngine
from services.worker.app.engine_life import LifeLimits
from tests.support.worker_rig import LIMITS, Rig, worker_rig

CONTEXT = 512
MAX_TEXTS = 300


class Gate:
    """A step that takes until the gate is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def __call__(self, _seconds: float) -> None:
        self.reached.set()
        await self.opened.wait()


def stop_at(rig: Rig) -> Gate:
    """Lets the engine's next steps wait."""
    gate, engine = Gate(), rig.engine
    assert isinstance(engine, SimEngine)
    engine._sleep = gate
    return gate


@asynccontextmanager
async def embedding_rig(sim: SimEngine, tokenizer: Tokenizer) -> AsyncIterator[Rig]:
    engine = SimEngine(replace(sim._settings, embeds=True), tokenizer, clock=SystemClock())
    async with worker_rig(
        engine,
        tokenizer_revision=tokenizer.revision,
        limits=replace(LIMITS, needs_scheduler=False),
        life_limits=LifeLimits(first_pause_s=0.05),
        encode=partial(tokenizer.encode, add_special_tokens=True),
        max_texts=MAX_TEXTS,
    ) as rig:
        yield rig
    await rig.life.stop()


@pytest.fixture
async def embedder(sim: SimEngine, tokenizer: Tokenizer) -> AsyncIterator[Rig]:
    async with embedding_rig(sim, tokenizer) as rig:
        yield rig


async def embed(rig: Rig, *texts: str, service: str = "retriever") -> worker_pb2.EmbedResponse:
    request = worker_pb2.EmbedRequest(texts=texts)
    response: worker_pb2.EmbedResponse = await rig.stub.Embed(request, metadata=rig.metadata(service), timeout=30)
    return response


async def refusal(rig: Rig, *texts: str, service: str = "retriever") -> tuple[grpc.StatusCode, Reason]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(rig, *texts, service=service)
    return caught.value.code(), error_from_rpc(caught.value).reason


async def test_vectors_are_of_length_one_and_repeatable(embedder: Rig, tokenizer: Tokenizer) -> None:
    """In the order of the texts, whatever is beside them; the tokens are counted."""
    first = await embed(embedder, "a cat", "a dog", "a cat")
    again = await embed(embedder, "a dog")
    cat, dog, same = (list(each.values) for each in first.embeddings)
    assert cat == same != dog
    assert list(again.embeddings[0].values) == dog
    assert math.isclose(sum(value * value for value in cat), 1.0, abs_tol=1e-5)
    assert first.tokens == sum(
        len(tokenizer.encode(text, add_special_tokens=True)) for text in ("a cat", "a dog", "a cat")
    )
    assert first.model == "test-model"
    assert not embedder.journal.events, "an embedding is no lease"


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ((), Reason.PARAM_OUT_OF_RANGE),
        (("x",) * 257, Reason.PARAM_OUT_OF_RANGE),
        (("x", ""), Reason.PARAM_OUT_OF_RANGE),
        (("x" * (64 * 1024 + 1),), Reason.PARAM_OUT_OF_RANGE),
        (("x", "x" * (CONTEXT + 8)), Reason.PROMPT_TOO_LONG),
    ],
)
async def test_what_is_out_of_bounds_is_refused(embedder: Rig, texts: tuple[str, ...], reason: Reason) -> None:
    """INVALID_ARGUMENT before the engine sees it, and the next call is answered."""
    assert await refusal(embedder, *texts) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert len((await embed(embedder, *["x"] * 256)).embeddings) == 256


async def test_who_may_embed(embedder: Rig) -> None:
    """Services that act for a caller; a worker does not."""
    assert len((await embed(embedder, "x", service="router")).embeddings) == 1
    code, _ = await refusal(embedder, "x", service="worker")
    assert code == grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embedder.stub.Embed(worker_pb2.EmbedRequest(texts=["x"]))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_worker_either_generates_or_embeds(rig: Rig, embedder: Rig) -> None:
    """METHOD_DISABLED with a sentence, from either kind."""
    disabled = (grpc.StatusCode.UNIMPLEMENTED, Reason.METHOD_DISABLED)
    assert await refusal(rig, "x") == disabled
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embedder.generate([1, 2, 3])
    assert (caught.value.code(), error_from_rpc(caught.value).reason) == disabled


async def test_the_number_of_texts_that_wait_is_bounded(embedder: Rig) -> None:
    """OVERLOADED, with a time after which to try again; what was taken is answered."""
    gate = stop_at(embedder)
    first = asyncio.create_task(embed(embedder, *["x"] * 256))
    await gate.reached.wait()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(embedder, *["x"] * 45)
    refused = error_from_rpc(caught.value)
    assert (refused.reason, refused.retry_after_s) == (Reason.OVERLOADED, 1.0)
    gate.opened.set()
    assert len((await first).embeddings) == 256
    assert len((await embed(embedder, *["x"] * 45)).embeddings) == 45


async def test_a_lost_engine_ends_the_call(sim: SimEngine, tokenizer: Tokenizer) -> None:
    """ENGINE_DEAD, which may be repeated, also where the engine itself never answers; a drain refuses new calls."""
    async with embedding_rig(sim, tokenizer) as rig:
        gate = stop_at(rig)
        call = asyncio.create_task(refusal(rig, "x"))
        await gate.reached.wait()
        assert isinstance(rig.engine, SimEngine)
        rig.engine.crash()
        assert await call == (grpc.StatusCode.UNAVAILABLE, Reason.ENGINE_DEAD)
        rig.worker.begin_drain()
        assert await refusal(rig, "x") == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)
