"""The remote adapter in front of a worker that runs vLLM: what goes over the contract is what the engine did."""

import grpc
import pytest
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.types.v1.usage_pb2 import FinishReason

from services.kit.blocks import chain_hashes, root_hash
from services.kit.errors import Reason
from services.kit.models import Tokenizer
from services.kit.status import error_from_rpc
from tests.support.prompts import greedy, prompt_of
from tests.support.worker_rig import MODEL, Rig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


async def test_the_answer_is_the_engines_own(remote_vllm: Rig, vllm: Rig, smollm2_tokenizer: Tokenizer) -> None:
    """Token for token, and text for text."""
    prompt = smollm2_tokenizer.encode("The capital of France is Paris. The capital of Italy is")
    ours = await remote_vllm.generate(prompt, greedy(16, logprobs=2))
    theirs = await vllm.generate(prompt, greedy(16, logprobs=2))
    assert ours.token_ids() == theirs.token_ids()
    assert ours.text() == theirs.text() == smollm2_tokenizer.decode(ours.token_ids())
    entries = [[entry for frame in answer.deltas for entry in frame.delta.logprobs] for answer in (ours, theirs)]
    assert [entry.token_id for entry in entries[0]] == [entry.token_id for entry in entries[1]]
    pairs = zip(*entries, strict=True)
    assert all(one.logprob == pytest.approx(other.logprob, abs=1e-3) for one, other in pairs)


async def test_the_cache_is_seen_through_the_contract(
    remote_vllm: Rig, vllm: Rig, smollm2_tokenizer: Tokenizer
) -> None:
    """Cached tokens, and the names of the blocks; a tenant's salt keeps its blocks apart on the far side, too."""
    prompt = prompt_of(41)
    assert (await remote_vllm.generate(prompt, greedy(4), cache_salt="tenant-a")).cached_tokens == 0
    assert (await remote_vllm.generate(prompt, greedy(4), cache_salt="tenant-a")).cached_tokens == 96
    assert (await remote_vllm.generate(prompt, greedy(4), cache_salt="tenant-b")).cached_tokens == 0
    root = root_hash(model=MODEL, tokenizer_revision=smollm2_tokenizer.revision, cache_salt="tenant-a")
    expected = chain_hashes(root, prompt, 32)
    await remote_vllm.scheduler.until(lambda seen: seen.blocks.issuperset(expected))
    assert (await vllm.generate(prompt, greedy(4), cache_salt="tenant-a")).cached_tokens == 0


async def test_stops_and_constraints_go_over(remote_vllm: Rig) -> None:
    """A stop string cuts the text, a regular expression holds, and one that does not compile is refused."""
    text = (await remote_vllm.generate(prompt_of(42, 40), greedy(24))).text()
    stop = text[len(text) // 2 :][:4]
    answer = await remote_vllm.generate(prompt_of(42, 40), greedy(24, stop=[stop]))
    assert answer.text() == text[: text.index(stop)]
    assert answer.finished.finished.finish_reason == FinishReason.FINISH_REASON_STOP
    choice = SamplingParams(max_tokens=8, temperature=0, regex="(yes|no)")
    assert (await remote_vllm.generate(prompt_of(43, 40), choice)).text() in {"yes", "no"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await remote_vllm.generate(prompt_of(43, 40), SamplingParams(regex="(unclosed"))
    assert error_from_rpc(caught.value).reason == Reason.BAD_SCHEMA


async def test_an_abort_reaches_the_engine(remote_vllm: Rig, vllm: Rig) -> None:
    """A caller that hangs up here frees the engine there."""
    grant = remote_vllm.grant(prompt_of(44), max_output_tokens=300)
    call = remote_vllm.stub.Generate(remote_vllm.request(prompt_of(44), greedy(300), grant=grant))
    frames = aiter(call)
    while (await anext(frames)).WhichOneof("frame") != "delta":
        pass
    call.cancel()
    await remote_vllm.scheduler.until(lambda seen: grant.lease_id in seen.finished, timeout_s=30)
    await vllm.until_idle(timeout_s=30)
    assert vllm.engine.stats().unfinished == 0
    assert 1 <= remote_vllm.usage(grant.lease_id).usage.output_total < 300
