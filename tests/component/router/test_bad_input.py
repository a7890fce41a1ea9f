"""What is refused before anything is spent: one status and one reason each, and a record."""

import pytest
from downstack.inference.v1 import inference_pb2 as inference_pb
from downstack.types.v1 import chat_pb2 as chat_pb

from services.kit.errors import Code, Reason
from tests.component.router.world import Build, World, bearer, refused, spec, worker_view

USER = chat_pb.ROLE_USER


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"messages": []}, Reason.PARAM_OUT_OF_RANGE, "spec.messages"),
        ({"model": ""}, Reason.PARAM_OUT_OF_RANGE, "spec.model"),
        ({"prompt": "both"}, Reason.PARAM_CONFLICT, "spec.prompt"),
        ({"messages": [chat_pb.Message(content="no role")]}, Reason.PARAM_OUT_OF_RANGE, "spec.messages[0].role"),
        ({"messages": [chat_pb.Message(role=USER)]}, Reason.PARAM_OUT_OF_RANGE, "spec.messages[0].content"),
        ({"sampling": chat_pb.SamplingParams(temperature=-1)}, Reason.PARAM_OUT_OF_RANGE, "spec.sampling.temperature"),
        ({"sampling": chat_pb.SamplingParams(n=9)}, Reason.PARAM_OUT_OF_RANGE, "spec.sampling.n"),
        ({"sampling": chat_pb.SamplingParams(json_schema="[")}, Reason.BAD_SCHEMA, "spec.sampling.json_schema"),
        ({"labels": {"a": "\x00"}}, Reason.BAD_ENCODING, "spec.labels"),
        ({"retrieval": inference_pb.RetrievalSpec()}, Reason.PARAM_OUT_OF_RANGE, "spec.retrieval.collections"),
    ],
)
async def test_invalid_requests(world: World, fields: dict[str, object], reason: Reason, field: str) -> None:
    """INVALID_ARGUMENT with the reason and the field, and nobody else is asked."""
    with refused() as told:
        await world.frames(spec(**fields))
    assert (told[0].code, told[0].reason) == (Code.INVALID_ARGUMENT, reason)
    assert field in [violation.field for violation in told[0].violations]
    assert world.scheduler.orders == []
    (fact,) = await world.facts("refused")
    assert (fact.refused.code, fact.refused.reason, fact.refused.method) == ("INVALID_ARGUMENT", reason, "Generate")


async def test_everything_wrong_is_said_at_once(world: World) -> None:
    """All violations of all parts are in one answer."""
    sampling = chat_pb.SamplingParams(temperature=3, top_p=0, n=0, max_tokens=0)
    with refused() as told:
        await world.frames(spec(sampling=sampling, model="", min_quality=2))
    assert {violation.field for violation in told[0].violations} == {
        "spec.model",
        "spec.min_quality",
        *(f"spec.sampling.{name}" for name in ("temperature", "top_p", "n", "max_tokens")),
    }


async def test_an_unknown_model(world: World) -> None:
    """NOT_FOUND, with the models that there are."""
    with refused() as told:
        await world.frames(spec(model="gpt-17"))
    assert told[0].reason == Reason.MODEL_NOT_FOUND
    assert "sim-small" in told[0].message


async def test_a_model_without_workers(build: Build) -> None:
    """A model that is known and served by nobody is UNAVAILABLE, with a time to come back."""
    async with build(workers=0) as world:
        with refused() as told:
            await world.frames(spec())
        assert (told[0].code, told[0].reason) == (Code.UNAVAILABLE, Reason.NO_HEALTHY_WORKER)
        assert told[0].retry_after_s == 2.0


async def test_a_worker_with_another_tokenizer(build: Build) -> None:
    """Its hashes and tokens would mean something else: the model is not there for this router."""
    async with build(view={"tokenizer_revision": "another"}) as world:
        with refused() as told:
            await world.frames(spec())
        assert told[0].reason == Reason.MODEL_NOT_FOUND
        assert "tokenizer" in told[0].message


async def test_a_prompt_over_the_context(world: World) -> None:
    """The refusal names both numbers."""
    with refused() as told:
        await world.frames(spec("x" * 600))
    assert told[0].reason == Reason.PROMPT_TOO_LONG
    assert told[0].metadata["context_tokens"] == "512"
    assert int(told[0].metadata["prompt_tokens"]) > 600
    assert told[0].metadata["prompt_tokens"] in told[0].message


async def test_an_oversize_message(world: World) -> None:
    """Over 4 MiB nothing is read."""
    with refused() as told:
        await world.frames(spec("x" * (4 * 1024 * 1024 + 1)))
    assert told[0].reason == Reason.MESSAGE_TOO_LARGE
    assert told[0].metadata["max_bytes"] == str(4 * 1024 * 1024)
    assert len(await world.frames(spec())) == 5


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), Reason.AUTH_MISSING),
        (bearer("wrong"), Reason.AUTH_INVALID),
        (bearer("scopeless"), Reason.ACTION_NOT_ALLOWED),
        (bearer("operator"), Reason.ACTION_NOT_ALLOWED),
        ((("x-downstack-assertion", "forged.forged"),), Reason.AUTH_MISSING),
    ],
)
async def test_keys_that_do_not_open(world: World, metadata: tuple[tuple[str, str], ...], reason: Reason) -> None:
    """Missing, wrong, without the scope, without a tenant, and an assertion where only keys count."""
    with refused() as told:
        async for _ in world.stub.Generate(inference_pb.GenerateRequest(spec=spec()), metadata=metadata, timeout=10):
            pass
    assert told[0].reason == reason
    assert world.scheduler.orders == []


async def test_a_deadline_that_is_gone(world: World) -> None:
    """Nothing is begun."""
    with refused() as told:
        await world.frames(spec(), timeout_s=0)
    assert told[0].code == Code.DEADLINE_EXCEEDED
    assert world.scheduler.orders == []


async def test_the_fleet_is_followed(build: Build) -> None:
    """A worker that comes later is used; one that leaves is not."""
    async with build() as world:
        await world.scheduler.set_workers([])
        await world.until_models([])
        with refused() as told:
            await world.frames(spec())
        assert told[0].reason == Reason.NO_HEALTHY_WORKER
        await world.scheduler.add_worker(worker_view("worker-0", world.endpoints[0]))
        await world.until_models(["sim-small"])
        assert len(await world.frames(spec())) == 5


async def test_text_that_is_no_utf8(world: World) -> None:
    """Bytes that are no message are the caller's mistake, not a defect of the service."""
    call = world.channel.unary_unary("/downstack.inference.v1.InferenceService/CountTokens")
    with refused() as told:
        await call(b"\x0a\x03\x0a\x01\xff", metadata=bearer("key"))
    assert told[0].reason == Reason.BAD_ENCODING
