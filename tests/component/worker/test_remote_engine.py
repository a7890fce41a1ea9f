"""The remote adapter in front of servers that are not Downstack's."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from downstack.smg import common_pb2 as kv
from downstack.smg import vllm_engine_pb2 as pb
from downstack.smg.vllm_engine_pb2_grpc import add_VllmEngineServicer_to_server

from services.kit.blocks import chain_hashes, root_hash
from services.kit.errors import DownstackError, Reason, StartupError
from services.kit.models import Tokenizer
from services.worker.adapters.remote.engine import RemoteEngine
from services.worker.adapters.remote.fake_server import FakeServer
from services.worker.domain.mirror import Cleared, KvChange, Removed, Stored
from services.worker.domain.sampling import Sampling
from services.worker.ports import Ending, EngineOutput
from tests.component.worker.conftest import RATES
from tests.support.remote_engine import remote_engine
from tests.support.worker_rig import MODEL

BLOCK = 32
PLAIN = Sampling(max_tokens=8)


@asynccontextmanager
async def serve(fake: FakeServer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_VllmEngineServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def fronting(fake: FakeServer, tokenizer: Tokenizer) -> AsyncIterator[RemoteEngine]:
    """A started adapter in front of the fake."""
    async with serve(fake) as target:
        engine = remote_engine(target, tokenizer, rates=RATES, metadata=lambda: (), wait_s=0)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()


async def answer(engine: RemoteEngine, sampling: Sampling = PLAIN, *, salt: str = "") -> list[EngineOutput]:
    outputs = engine.generate([1, 2, 3], sampling, request_id="r", cache_salt=salt, priority=0)
    return [output async for output in outputs]


def chunk(*token_ids: int, index: int = 0, cached: int = 0) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        chunk=pb.GenerateStreamChunk(token_ids=token_ids, index=index, cached_tokens=cached, prompt_tokens=3)
    )


def complete(reason: str, *token_ids: int, index: int = 0) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        complete=pb.GenerateComplete(finish_reason=reason, output_ids=token_ids, index=index, prompt_tokens=3)
    )


def letters(text: str) -> list[int]:
    return list(text.encode())


async def test_a_server_that_says_little_can_be_fronted(tokenizer: Tokenizer) -> None:
    """No load, no tokenizer, no KV events, no sizes: the settings fill in, and the scheduler is told."""
    fake = FakeServer(script=[chunk(*letters("hi")), complete("stop")])
    async with fronting(fake, tokenizer) as engine:
        spec = engine.spec
        assert (spec.engine, spec.engine_version, spec.kv_events) == ("remote", "vllm-grpc", False)
        assert (spec.context_tokens, spec.block_size, spec.max_num_seqs) == (512, 32, 8)
        assert spec.kv_blocks == 512 * 8 // 32
        assert spec.vocab_size == tokenizer.vocab_size
        outputs = await answer(engine)
        assert "".join(output.text for output in outputs) == "hi"
        assert fake.metadata.keys().isdisjoint({"x-downstack-assertion"})


async def test_the_end_may_repeat_the_last_chunk(tokenizer: Tokenizer) -> None:
    """As the reference server does; the tokens count once."""
    script = [chunk(*letters("ab")), chunk(*letters("c")), complete("length", *letters("c"))]
    async with fronting(FakeServer(script=script), tokenizer) as engine:
        outputs = await answer(engine)
        tokens = [token for output in outputs for token in output.token_ids]
        assert tokens == letters("abc")
        assert outputs[-1].ending is Ending.LENGTH
        stats = engine.stats()
        assert (stats.generated_tokens, stats.unfinished, stats.running) == (3, 0, 0)


async def test_the_end_may_bring_everything(tokenizer: Tokenizer) -> None:
    """A server that does not stream sends an answer at once."""
    script = [complete("stop", *letters("abc"), index=1), complete("length", *letters("de"))]
    async with fronting(FakeServer(script=script), tokenizer) as engine:
        outputs = await answer(engine, Sampling(max_tokens=8, n=2))
        texts = ["".join(output.text for output in outputs if output.index == index) for index in range(2)]
        assert texts == ["de", "abc"]


async def test_a_stop_string_is_found_here(tokenizer: Tokenizer) -> None:
    """The contract has no text: the server may go on, and is left."""
    fake = FakeServer(script=[chunk(*letters("one, tw")), chunk(*letters("o, three"))], endless=True)
    async with fronting(fake, tokenizer) as engine:
        outputs = await answer(engine, Sampling(max_tokens=99, stop=("two",)))
        assert "".join(output.text for output in outputs) == "one, "
        assert outputs[-1].ending is Ending.STOP
        tokens = [token for output in outputs for token in output.token_ids]
        assert tokens == letters("one, two")


async def test_what_the_server_is_asked(tokenizer: Tokenizer) -> None:
    """The salt goes as the name of an image that is not there, and a seed is folded into what fits."""
    fake = FakeServer(script=[chunk(65), complete("stop")])
    async with fronting(fake, tokenizer) as engine:
        await answer(engine, Sampling(max_tokens=8, seed=2**40 + 5, regex="a+"), salt="s1")
        await answer(engine, Sampling(max_tokens=8, seed=7))
    first, second = fake.requests
    assert list(first.mm_inputs.mm_hashes) == ["s1"]
    assert first.sampling_params.regex == "a+"
    assert 0 < first.sampling_params.seed < 2**31
    assert first.sampling_params.seed != second.sampling_params.seed == 7
    assert not second.HasField("mm_inputs")
    assert list(second.tokenized.input_ids) == [1, 2, 3]


@pytest.mark.parametrize(
    ("code", "sampling", "reason"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, PLAIN, Reason.PARAM_OUT_OF_RANGE),
        (grpc.StatusCode.INVALID_ARGUMENT, Sampling(max_tokens=8, regex="("), Reason.BAD_SCHEMA),
        (grpc.StatusCode.UNIMPLEMENTED, PLAIN, Reason.UNSUPPORTED_FEATURE),
        (grpc.StatusCode.UNAVAILABLE, PLAIN, Reason.ENGINE_DEAD),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, PLAIN, Reason.OVERLOADED),
        (grpc.StatusCode.PERMISSION_DENIED, PLAIN, Reason.DEPENDENCY_UNAVAILABLE),
        (grpc.StatusCode.INTERNAL, PLAIN, Reason.INTERNAL),
    ],
)
async def test_a_failure_has_a_reason(
    tokenizer: Tokenizer, code: grpc.StatusCode, sampling: Sampling, reason: Reason
) -> None:
    """Whatever the server says, the caller gets one of the closed list, and the adapter goes on."""
    fake = FakeServer(script=[chunk(65)], failure=(code, "because"))
    async with fronting(fake, tokenizer) as engine:
        with pytest.raises(DownstackError) as caught:
            await answer(engine, sampling)
        assert caught.value.reason == reason
        assert "because" in caught.value.message
        assert engine.stats().unfinished == 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([chunk(65)], Reason.ENGINE_DEAD),
        ([chunk(65), complete("error")], Reason.INTERNAL),
        ([chunk(65, index=4)], Reason.INTERNAL),
    ],
)
async def test_a_broken_stream_is_no_answer(
    tokenizer: Tokenizer, script: list[pb.GenerateResponse], reason: Reason
) -> None:
    """An end that is missing, an error, an answer too many."""
    async with fronting(FakeServer(script=script), tokenizer) as engine:
        with pytest.raises(DownstackError) as caught:
            await answer(engine)
        assert caught.value.reason == reason


async def test_an_abort_does_not_depend_on_the_server(tokenizer: Tokenizer) -> None:
    """It is asked first; asked again, the stream is left."""
    fake = FakeServer(script=[chunk(65)], endless=True)
    async with fronting(fake, tokenizer) as engine:
        outputs = engine.generate([1, 2, 3], PLAIN, request_id="r", cache_salt="", priority=0)
        await anext(outputs)
        await engine.abort(["r", "unknown"])
        assert fake.aborted == ["r"]
        await engine.abort(["r"])
        rest = [output async for output in outputs]
        assert [output.ending for output in rest] == [Ending.ABORT]
        assert engine.stats().unfinished == 0


async def test_its_pulse_is_the_servers_word(tokenizer: Tokenizer) -> None:
    """While the server says that it is well the pulse goes on, and then no more."""
    fake = FakeServer()
    async with fronting(fake, tokenizer) as engine:
        before = engine.stats().pulse or 0
        async with asyncio.timeout(10):
            while (engine.stats().pulse or 0) < before + 2:
                await engine.changed()
        fake.healthy = False
        pulses = []
        for _ in range(4):
            fake.checked.clear()
            await fake.checked.wait()
            pulses.append(engine.stats().pulse)
        # The first may have been asked before.
        assert pulses[1] == pulses[2] == pulses[3]


@pytest.mark.parametrize(
    ("fake", "why"),
    [
        (FakeServer(healthy=False), "is not healthy: as told"),
        (FakeServer(forbidden=True), "refuses this worker"),
        (FakeServer(archive=b"no archive"), None),
    ],
)
async def test_what_cannot_be_fronted(tokenizer: Tokenizer, fake: FakeServer, why: str | None) -> None:
    """One sentence says why; what is unknown is no obstacle."""
    if why is None:
        async with fronting(fake, tokenizer) as engine:
            assert engine.spec.engine == "remote"
        return
    with pytest.raises(StartupError, match=why):
        async with fronting(fake, tokenizer):
            pass


async def test_another_tokenizer_is_refused(tokenizer: Tokenizer) -> None:
    """Its answers would be gibberish, and its blocks would have wrong names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tokenizer.json", "{}")
    with pytest.raises(StartupError, match="another tokenizer"):
        async with fronting(FakeServer(archive=buffer.getvalue()), tokenizer):
            pass


async def test_nobody_there_is_one_sentence(tokenizer: Tokenizer, unused_tcp_port: int) -> None:
    """After the wait that the settings name."""
    engine = remote_engine(f"127.0.0.1:{unused_tcp_port}", tokenizer, rates=RATES, wait_s=0)
    with pytest.raises(StartupError, match="does not answer"):
        await engine.start()
    await engine.stop()


def stored(blocks: list[list[int]], *, first: int, parent: int | None = None, **more: object) -> kv.KvCacheEvent:
    event = kv.KvBlocksStored(
        blocks=[
            kv.KvBlock(block_hash=first + at, token_ids=tokens, block_size=len(tokens))
            for at, tokens in enumerate(blocks)
        ],
        parent_block_hash=parent,
        **more,  # type: ignore[arg-type]
    )
    return kv.KvCacheEvent(stored=event)


def removed(*hashes: int) -> kv.KvCacheEvent:
    return kv.KvCacheEvent(removed=kv.KvBlocksRemoved(block_hashes=hashes))


def batch(sequence: int, *events: kv.KvCacheEvent) -> kv.KvEventBatch:
    return kv.KvEventBatch(sequence_number=sequence, events=events)


async def test_its_blocks_get_our_names(tokenizer: Tokenizer) -> None:
    """Chained from parents and tokens, under the salt; what is not the device's or not tokens alone is left out."""
    tokens = list(range(96))
    blocks = [tokens[start : start + BLOCK] for start in range(0, 96, BLOCK)]
    names = chain_hashes(root_hash(model=MODEL, tokenizer_revision=tokenizer.revision, cache_salt="s1"), tokens, BLOCK)
    image = kv.KvBlock(block_hash=70, token_ids=blocks[0], extra_keys=[kv.KvBlockExtraKey(number=1)])
    batches = [
        batch(40, stored(blocks[:2], first=-10, cache_salt="mm:s1"), stored(blocks[2:], first=30, parent=-9)),
        batch(40),  # a load record, which repeats the number
        batch(41, stored(blocks[:1], first=50, tier=kv.KV_CACHE_TIER_HOST), stored(blocks[:1], first=60, parent=999)),
        batch(42, kv.KvCacheEvent(stored=kv.KvBlocksStored(blocks=[image])), removed(30, 50)),
        batch(44, removed(-9)),  # 43 is missing
    ]
    fake = FakeServer(batches=batches)
    async with fronting(fake, tokenizer) as engine:
        assert engine.spec.kv_events
        found: list[KvChange] = []
        async for changes in engine.kv_events():
            found += [change for change in changes if not isinstance(change, Cleared) and change.hashes]
            if any(isinstance(change, Cleared) for change in changes):
                break
        assert found == [Stored(tuple(names[:2])), Stored((names[2],)), Removed((names[2],))]


async def test_a_lost_subscription_begins_anew(tokenizer: Tokenizer) -> None:
    """From empty, with what the server says then."""
    tokens = list(range(BLOCK))
    fake = FakeServer(batches=[batch(1, stored([tokens], first=5))])
    async with fronting(fake, tokenizer) as engine:
        seen: list[type[KvChange]] = []
        async for changes in engine.kv_events():
            seen += [type(change) for change in changes]
            if len(seen) == 3:
                break
        assert seen == [Stored, Cleared, Stored]
        assert fake.subscriptions == 2
