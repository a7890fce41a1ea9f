"""Counting, listing, reserving, explaining and recording."""

import grpc
from downstack.inference.v1 import inference_pb2 as inference_pb
from downstack.types.v1 import chat_pb2 as chat_pb
from downstack.worker.v1 import worker_pb2 as worker_pb
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceStub
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.clock import SystemClock
from services.kit.errors import Code, Reason
from services.kit.identity import internal_metadata
from services.kit.models import Tokenizer, model_folder
from services.kit.tickets import verify_ticket
from tests.component.router.world import KEYS, SECRET, TENANT, Build, World, bearer, refused, spec


async def test_counting_tokens(world: World) -> None:
    """The count is that of the prompt which Generate would send, and nothing is placed."""
    counted = await world.stub.CountTokens(inference_pb.CountTokensRequest(spec=spec("hello")), metadata=bearer("key"))
    assert world.scheduler.orders == []
    await world.frames(spec("hello"))
    assert list(counted.token_ids) == list(world.worker.requests[0].prompt_token_ids)
    assert (counted.input_tokens, counted.context_tokens) == (len(counted.token_ids), 512)


async def test_tools_are_part_of_the_prompt(world: World) -> None:
    """The worker gets them where the model's template puts them; a schema that is none is refused."""
    tool = chat_pb.Tool(name="weather", description="of a city", parameters='{"type": "object"}')
    await world.frames(spec("hello", tools=[tool]))
    prompt = Tokenizer.load(model_folder("builtin:sim")).decode(list(world.worker.requests[0].prompt_token_ids))
    assert '"name": "weather"' in prompt
    assert prompt.index("weather") < prompt.index("hello")
    with refused() as told:
        await world.frames(spec("hello", tools=[chat_pb.Tool(name="weather", parameters="[]")]))
    assert told[0].reason == Reason.BAD_SCHEMA


async def test_counting_tokens_of_an_unknown_model(world: World) -> None:
    """It is refused as in Generate."""
    with refused() as told:
        request = inference_pb.CountTokensRequest(spec=spec(model="nope"))
        await world.stub.CountTokens(request, metadata=bearer("key"))
    assert told[0].reason == Reason.MODEL_NOT_FOUND


async def test_listing_models(build: Build) -> None:
    """A model with its workers, context and price; one whose tokenizer differs is not there."""
    async with build(workers=2) as world:
        (model,) = (await world.stub.ListModels(inference_pb.ListModelsRequest(), metadata=bearer("key"))).models
        assert (model.name, model.workers, model.context_tokens, model.engine) == ("sim-small", 2, 512, "sim")
        assert model.price.output_nano == 400
    async with build(view={"tokenizer_revision": "another"}) as world:
        assert not (await world.stub.ListModels(inference_pb.ListModelsRequest(), metadata=bearer("key"))).models


async def test_reserving(world: World) -> None:
    """The caller gets endpoint, ticket and tokens, and the worker accepts them; the router holds no lease."""
    request = inference_pb.ReserveRequest(spec=spec())
    reserved = await world.stub.Reserve(request, metadata=bearer("key"))
    grant = verify_ticket(reserved.ticket, secret=SECRET.encode())
    assert (grant.request_id, grant.prompt_tokens) == (reserved.request_id, len(reserved.prompt_token_ids))
    assert reserved.started.decision.lease_id == grant.lease_id
    assert reserved.expires_at.seconds == grant.expires_at.seconds
    async with grpc.aio.insecure_channel(reserved.endpoint) as channel:
        metadata = internal_metadata("router", identity=KEYS["key"], secret=SECRET.encode(), now=SystemClock().now())
        call = WorkerServiceStub(channel).Generate(
            worker_pb.GenerateRequest(ticket=reserved.ticket, prompt_token_ids=reserved.prompt_token_ids),
            metadata=metadata,
        )
        assert len([frame async for frame in call]) == 5
    assert world.scheduler.releases == []
    assert [fact.admitted.method for fact in await world.facts("admitted")] == ["Reserve"]
    assert await world.facts("finished") == []


async def test_explaining_a_request(build: Build) -> None:
    """Every attempt with its decision and how it ended."""
    async with build(dead=1) as world:
        request_id = (await world.frames(spec()))[0].started.request_id
        await world.scheduler.releases_are(2)
        explained = await world.explain(request_id)
        assert explained.request_id == request_id
        assert [(a.decision.worker_id, a.decision.attempt) for a in explained.attempts] == [
            ("dead-0", 1),
            ("worker-0", 2),
        ]
        assert explained.attempts[1].usage.output_total == 3
        assert explained.attempts[1].HasField("decided_at")


async def test_another_tenants_request_does_not_exist(world: World) -> None:
    """NOT_FOUND, word for word as for an id that never was."""
    request_id = (await world.frames(spec()))[0].started.request_id
    with refused() as told:
        await world.explain(request_id, key="other")
    with refused() as never:
        await world.explain(request_id.replace("req_", "req_0"), key="other")
    assert (told[0].code, told[0].reason) == (Code.NOT_FOUND, Reason.REQUEST_NOT_FOUND)
    assert told[0].message.replace(request_id, "") == never[0].message.replace(request_id.replace("req_", "req_0"), "")


async def test_recording_events(world: World) -> None:
    """They are in the outbox when the call returns, in order, and a repetition has the same ids."""
    attributes = Struct()
    attributes.update({"stars": 5})
    events = [
        inference_pb.CallerEvent(id="e1", kind="rating", request_id="req_1", attributes=attributes),
        inference_pb.CallerEvent(id="e2", kind="click", conversation_id="c1", occurred_at=Timestamp(seconds=5)),
    ]
    for _ in range(2):
        response = await world.stub.RecordEvents(
            inference_pb.RecordEventsRequest(events=events), metadata=bearer("key")
        )
        assert response.recorded == 2
    facts = await world.facts("caller_event")
    assert [fact.caller_event.id for fact in facts] == ["e1", "e2", "e1", "e2"]
    assert (facts[0].tenant_id, facts[0].request_id, facts[1].conversation_id) == (TENANT, "req_1", "c1")
    assert facts[0].caller_event.attributes["stars"] == 5
    assert facts[1].caller_event.caller_time.seconds == 5
    ids = [entry.event.id for entry in await world.outbox.read(10)]
    assert ids[:2] == ids[2:]


async def test_bad_events_are_refused_whole(world: World) -> None:
    """One wrong event keeps all of them out."""
    events = [inference_pb.CallerEvent(id="e1", kind="ok"), inference_pb.CallerEvent(id="", kind="x" * 65)]
    with refused() as told:
        await world.stub.RecordEvents(inference_pb.RecordEventsRequest(events=events), metadata=bearer("key"))
    assert {violation.field for violation in told[0].violations} == {"events[1].id", "events[1].kind"}
    assert await world.facts("caller_event") == []
