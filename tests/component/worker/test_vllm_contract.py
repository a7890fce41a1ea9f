"""vLLM's own contract, served by a worker on the simulated engine."""

import hashlib
import io
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest
from downstack.smg import common_pb2
from downstack.smg import vllm_engine_pb2 as pb
from downstack.smg.vllm_engine_pb2_grpc import VllmEngineStub
from downstack.types.v1.usage_pb2 import FinishReason
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from services.kit.errors import Reason
from services.kit.models import BUILTIN_SIM, Tokenizer
from services.worker.adapters.sim.engine import SimEngine
from tests.support.contract_calls import as_tenant, asked, read, records, refusal
from tests.support.prompts import greedy
from tests.support.remote_engine import TENANT, asserted, contract_server
from tests.support.worker_rig import LIMITS, Rig, worker_rig

OTHER = "1d6c2b63-7b2f-4d3f-8b66-1e2d4d2e0a21"


@pytest.fixture
async def stub(rig: Rig, tokenizer: Tokenizer) -> AsyncIterator[VllmEngineStub]:
    """The contract, for those who carry an assertion; there is no tenant for callers who name none."""
    server = contract_server(rig.worker, tokenizer, model_path=BUILTIN_SIM, tenant_id="")
    async with server as target, grpc.aio.insecure_channel(target) as channel:
        yield VllmEngineStub(channel)


async def test_a_stream_has_chunks_and_an_end(open_stub: VllmEngineStub, rig: Rig) -> None:
    """The tokens are those of the worker's own contract; the end repeats none of them."""
    own = await rig.generate(list(range(40)), greedy(8))
    messages = [message async for message in open_stub.Generate(asked(list(range(40))))]
    chunks, complete = [message.chunk for message in messages[:-1]], messages[-1].complete
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    assert tokens == own.token_ids()
    assert all(chunk.completion_tokens == len(chunk.token_ids) for chunk in chunks)
    assert (complete.finish_reason, complete.completion_tokens) == ("length", 8)
    assert (complete.prompt_tokens, list(complete.output_ids)) == (40, [])


async def test_without_stream_each_answer_comes_at_once(open_stub: VllmEngineStub) -> None:
    """One message for each of the n answers, with all tokens and their log probabilities."""
    request = asked([7] * 40, stream=False, n=3, temperature=1.0, seed=5, logprobs=2)
    ends = [message.complete async for message in open_stub.Generate(request)]
    assert [end.index for end in ends] == [0, 1, 2]
    assert all(len(end.output_ids) == 8 == end.completion_tokens for end in ends)
    assert [list(end.output_logprobs.token_ids) for end in ends] == [list(end.output_ids) for end in ends]
    assert all(len(top.values) == 2 for end in ends for top in end.output_logprobs.top_logprobs)


async def test_each_request_has_a_lease_and_a_usage_record(open_stub: VllmEngineStub, rig: Rig) -> None:
    """Of the configured tenant; the scheduler hears of the lease as of any other."""
    await read(open_stub.Generate(asked([3] * 20, request_id="gateway-7")))
    (record,) = records(rig)
    assert record.grant.tenant_id == TENANT
    assert (record.usage.input_total, record.usage.output_total) == (20, 8)
    assert record.grant.labels == {"contract": "vllm.grpc.engine.VllmEngine", "request": "gateway-7"}
    assert record.cost.nano_units == 0
    await rig.scheduler.until(lambda seen: record.grant.lease_id in seen.finished)


async def test_an_assertion_names_the_tenant(stub: VllmEngineStub, rig: Rig) -> None:
    """The caller's tenant and key are in the record."""
    async for _ in stub.Generate(asked([3] * 20), metadata=as_tenant(OTHER)):
        pass
    (record,) = records(rig)
    assert (record.grant.tenant_id, record.grant.key_id) == (OTHER, "key12345")


async def test_who_may_call(stub: VllmEngineStub, rig: Rig) -> None:
    """Nobody without an assertion, none without the scope, and no service where nobody would be charged."""
    assert await refusal(stub.Generate(asked([1]))) == Reason.AUTH_MISSING
    assert await refusal(stub.HealthCheck(pb.HealthCheckRequest())) == Reason.AUTH_MISSING
    forbidden = as_tenant(OTHER, scopes=("usage",))
    assert await refusal(stub.Generate(asked([1]), metadata=forbidden)) == Reason.ACTION_NOT_ALLOWED
    assert await refusal(stub.Generate(asked([1]), metadata=asserted())) == Reason.ACTION_NOT_ALLOWED
    assert (await stub.HealthCheck(pb.HealthCheckRequest(), metadata=asserted())).healthy
    assert records(rig) == []


async def test_abort_ends_the_callers_own_request(stub: VllmEngineStub, rig: Rig) -> None:
    """Another tenant's abort does nothing; the caller's ends the stream with `abort`, and the engine is free."""
    request = asked([7] * 40, request_id="mine", max_tokens=400)
    call = stub.Generate(request, metadata=as_tenant(TENANT))
    messages = aiter(call)
    await anext(messages)
    await stub.Abort(pb.AbortRequest(request_ids=["mine"]), metadata=as_tenant(OTHER))
    await anext(messages)
    again = stub.Generate(request, metadata=as_tenant(TENANT))
    assert await refusal(again) == Reason.PARAM_CONFLICT
    await stub.Abort(pb.AbortRequest(request_ids=["mine", "unknown"]), metadata=as_tenant(TENANT))
    rest = [message async for message in messages]
    assert rest[-1].complete.finish_reason == "abort"
    (record,) = records(rig)
    assert record.finish_reason == FinishReason.FINISH_REASON_CANCELLED
    assert 0 < record.usage.output_total < 400
    await rig.until_idle()


async def test_a_caller_who_leaves_frees_the_engine(open_stub: VllmEngineStub, rig: Rig) -> None:
    """As with the worker's own contract, and the name can be used again."""
    call = open_stub.Generate(asked([7] * 40, request_id="gone", max_tokens=400))
    await anext(aiter(call))
    call.cancel()
    await rig.until_idle()
    assert [record.finish_reason for record in records(rig)] == [FinishReason.FINISH_REASON_CANCELLED]
    ends = [message async for message in open_stub.Generate(asked([7] * 40, request_id="gone"))]
    assert ends[-1].complete.finish_reason == "length"


async def test_an_answer_is_cut_to_the_context(open_stub: VllmEngineStub) -> None:
    """A gateway need not know how much fits; a prompt of text is taken, too."""
    ends = [message.complete async for message in open_stub.Generate(asked([1] * 500, stream=False, max_tokens=4000))]
    assert (ends[0].completion_tokens, ends[0].finish_reason) == (12, "length")
    request = asked([], stream=False)
    request.text = "Hello there"
    ends = [message.complete async for message in open_stub.Generate(request)]
    assert ends[0].prompt_tokens == len("Hello there")


async def test_leases_are_bounded_together(sim: SimEngine, tokenizer: Tokenizer) -> None:
    """A request without a ticket counts as a lease like any other."""
    async with worker_rig(sim, tokenizer_revision=tokenizer.revision, limits=replace(LIMITS, max_leases=1)) as rig:
        server = contract_server(rig.worker, tokenizer, model_path=BUILTIN_SIM, access="open")
        async with server as target, grpc.aio.insecure_channel(target) as channel:
            stub = VllmEngineStub(channel)
            call = stub.Generate(asked([7] * 40, max_tokens=400))
            await anext(aiter(call))
            assert await refusal(stub.Generate(asked([8] * 40))) == Reason.OVERLOADED
            call.cancel()
            await rig.until_idle()
    await sim.stop()


async def test_kv_events_are_of_the_callers_own_requests(stub: VllmEngineStub) -> None:
    """Parents before children, with tokens; another tenant's blocks are not shown, nor are those of tickets."""
    mine, others = list(range(64)), list(range(64, 128))
    call = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(), metadata=as_tenant(TENANT))
    batches = aiter(call)
    first = await anext(batches)
    assert first.snapshot.count == 1
    assert [event.WhichOneof("data") for event in first.events] == ["cleared"]
    async for _ in stub.Generate(asked(others), metadata=as_tenant(OTHER)):
        pass
    async for _ in stub.Generate(asked(mine, salt="a-salt"), metadata=as_tenant(TENANT)):
        pass
    seen: list[int] = []
    parents: set[int] = set()
    while len(seen) < 64:
        batch = await anext(batches)
        for event in batch.events:
            assert event.stored.cache_salt == "mm:a-salt"
            assert not event.stored.HasField("parent_block_hash") or event.stored.parent_block_hash in parents
            parents.update(block.block_hash for block in event.stored.blocks)
            seen += [token for block in event.stored.blocks for token in block.token_ids]
    assert seen == mine
    call.cancel()


async def test_a_late_subscriber_gets_a_snapshot(open_stub: VllmEngineStub) -> None:
    """Everything that is resident, in the first batch."""
    async for _ in open_stub.Generate(asked(list(range(64)), max_tokens=17)):
        pass
    call = open_stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(start_sequence_number=9))
    batch = await anext(aiter(call))
    stored = [block for event in batch.events for block in event.stored.blocks]
    assert batch.snapshot.blocks == len(stored) == 5
    assert batch.events[0].WhichOneof("data") == "cleared"
    call.cancel()


async def test_it_describes_itself(open_stub: VllmEngineStub, tokenizer: Tokenizer) -> None:
    """Model, server, load, and the tokenizer's files."""
    model = await open_stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (model.served_model_name, model.max_context_length, model.is_generation) == ("test-model", 512, True)
    assert set(model.eos_token_ids) == set(tokenizer.eos_token_ids)
    server = await open_stub.GetServerInfo(pb.GetServerInfoRequest())
    assert (server.server_type, server.block_size, server.max_num_seqs) == ("vllm-grpc", 16, 4)
    loads = await open_stub.GetLoads(pb.GetLoadsRequest())
    assert loads.loads[0].max_total_num_tokens == 64 * 16
    chunks = [chunk async for chunk in open_stub.GetTokenizer(common_pb2.GetTokenizerRequest())]
    archive = b"".join(chunk.data for chunk in chunks)
    assert chunks[-1].sha256 == hashlib.sha256(archive).hexdigest()
    files = zipfile.ZipFile(io.BytesIO(archive))
    assert hashlib.sha256(files.read("tokenizer.json")).hexdigest().startswith(tokenizer.revision)
    assert await refusal(open_stub.Embed(pb.EmbedRequest())) == Reason.METHOD_DISABLED


async def test_reflection_knows_it(open_stub: VllmEngineStub, contract_channel: grpc.aio.Channel) -> None:
    """Tools learn the contract from the server."""
    stub = ServerReflectionStub(contract_channel)
    requests = [
        ServerReflectionRequest(list_services=""),
        ServerReflectionRequest(file_containing_symbol="vllm.grpc.engine.VllmEngine"),
    ]
    listed, file = await read(stub.ServerReflectionInfo(iter(requests)))
    names = [service.name for service in listed.list_services_response.service]
    assert "vllm.grpc.engine.VllmEngine" in names
    assert b"SubscribeKvEvents" in file.file_descriptor_response.file_descriptor_proto[0]


async def test_a_worker_that_leaves_is_not_healthy(open_stub: VllmEngineStub, rig: Rig) -> None:
    """Health, and the refusal of what comes nevertheless."""
    assert (await open_stub.HealthCheck(pb.HealthCheckRequest())).healthy
    rig.worker.begin_drain()
    said = await open_stub.HealthCheck(pb.HealthCheckRequest())
    assert not said.healthy
    assert "leaving" in said.message
    assert await refusal(open_stub.Generate(asked([1] * 20))) == Reason.DRAINING


async def test_a_dead_engine_ends_the_streams(open_stub: VllmEngineStub, sim: SimEngine, rig: Rig) -> None:
    """ENGINE_DEAD, and the record says how far it came."""
    call = open_stub.Generate(asked([7] * 40, max_tokens=400))
    messages = aiter(call)
    await anext(messages)
    sim.crash()
    assert await refusal(messages) == Reason.ENGINE_DEAD
    await rig.scheduler.until(lambda seen: seen.finished)
    assert records(rig)[0].finish_reason == FinishReason.FINISH_REASON_ERROR
