"""A LoRA adapter by its name: listed, placed by its id, hashed apart, and refused where nobody holds it."""

import pytest
from downstack.inference.v1 import inference_pb2 as inference_pb
from downstack.scheduler.v1 import scheduler_pb2 as scheduler_pb

from services.kit.blocks import chain_hashes, root_hash
from services.kit.errors import DownstackError, Reason
from services.kit.tickets import verify_ticket
from tests.component.router.world import MODEL, REVISION, SECRET, Build, bearer, refused, spec

LEGAL = f"{MODEL}:legal"
VIEW = {"adapters": [scheduler_pb.Adapter(name="legal", id="legal@1", rank=8)]}
TEXT = "What does the law say about adapters? " * 8


async def test_it_is_listed_after_its_model(build: Build) -> None:
    """With the same context and price; `base` says what it is an adapter of."""
    async with build(view=VIEW) as world:
        listed = await world.stub.ListModels(inference_pb.ListModelsRequest(), metadata=bearer("key"))
        model, adapter = listed.models
        assert (model.name, model.base) == (MODEL, "")
        assert (adapter.name, adapter.base, adapter.workers) == (LEGAL, MODEL, 1)
        assert (adapter.context_tokens, adapter.price) == (model.context_tokens, model.price)


async def test_it_is_placed_by_its_id(build: Build) -> None:
    """The prompt is the model's, its blocks are the adapter's; caller and audit see the name that was asked for."""
    async with build(view=VIEW) as world:
        frames = await world.frames(spec(TEXT, model=LEGAL))
        await world.frames(spec(TEXT))
        (candidate,), (base,) = (order.candidates for order in world.scheduler.orders)
        assert (candidate.model, candidate.adapter, base.adapter) == (MODEL, "legal@1", "")
        assert candidate.prompt_tokens == base.prompt_tokens
        assert not set(candidate.block_hashes) & set(base.block_hashes)
        prompt = list(world.worker.requests[0].prompt_token_ids)
        salt = world.scheduler.orders[0].cache_salt
        root = root_hash(model=MODEL, tokenizer_revision=REVISION, adapter="legal@1", cache_salt=salt)
        assert list(candidate.block_hashes) == chain_hashes(root, prompt, 16)
        assert verify_ticket(world.worker.requests[0].ticket, secret=SECRET.encode()).adapter == "legal@1"
        assert frames[0].started.model == LEGAL
        assert [fact.admitted.model for fact in await world.facts("admitted")] == [LEGAL, MODEL]


@pytest.mark.parametrize(
    ("name", "reason"),
    [(f"{MODEL}:art", Reason.ADAPTER_NOT_FOUND), ("nobody:legal", Reason.MODEL_NOT_FOUND)],
)
async def test_it_is_refused_where_nobody_holds_it(build: Build, name: str, reason: Reason) -> None:
    """Before anything is placed, and with what there is instead."""
    async with build(view=VIEW) as world:
        with refused() as told:
            await world.once(spec(model=name))
        assert told[0].reason == reason
        assert LEGAL in told[0].message
        assert world.scheduler.orders == []


async def test_another_worker_may_hold_it_still(build: Build) -> None:
    """A worker that has just withdrawn it is left for another one."""
    async with build(workers=2, view=VIEW) as world:
        world.workers[0].failure = DownstackError(Reason.ADAPTER_NOT_FOUND, "This worker has no adapter legal@1.")
        answer = await world.once(spec(model=LEGAL))
        assert answer.started.worker_id == "worker-1"
        assert len(world.scheduler.orders) == 2
