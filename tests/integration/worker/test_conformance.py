"""What every engine does alike, over real gRPC."""

import asyncio
import itertools
import random

import grpc
import pytest
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.types.v1.usage_pb2 import FinishReason

from services.kit.blocks import chain_hashes, root_hash
from services.kit.errors import Reason
from services.kit.status import error_from_rpc
from tests.support.engine_features import Feature, lacks
from tests.support.prompts import greedy, prompt_of
from tests.support.worker_rig import MODEL, Rig

pytestmark = pytest.mark.timeout(900)
BLOCK = 32


def hashes_of(rig: Rig, tokens: list[int], *, salt: str) -> list[int]:
    """The blocks' names as router and scheduler know them."""
    revision = rig.scheduler.hellos[-1].spec.tokenizer_revision
    root = root_hash(model=MODEL, tokenizer_revision=revision, cache_salt=salt)
    return chain_hashes(root, tokens, BLOCK)


async def test_it_describes_itself(rig: Rig) -> None:
    """The scheduler's first word from a worker says what fits on it."""
    spec = rig.scheduler.hellos[-1].spec
    assert spec.model == MODEL
    assert spec.block_size == BLOCK
    assert spec.context_tokens == 512
    assert spec.kv_blocks * spec.block_size >= spec.context_tokens
    assert spec.kv_events
    assert spec.rates.decode_base_ms > 0
    # Which of the two a longer prompt is longer by is for what was measured to say.
    assert spec.rates.prefill_ms_per_token + spec.rates.prefill_ms_per_pair > 0


async def test_an_answer_is_streamed(rig: Rig, kind: str) -> None:
    """More than one frame, every token counted, the ending named."""
    answer = await rig.generate(prompt_of(1), greedy(24))
    assert len(answer.token_ids()) == 24
    assert len(answer.deltas) > 1
    assert answer.finished.finished.finish_reason == FinishReason.FINISH_REASON_LENGTH
    assert answer.finished.finished.usage.input_total == 100
    assert answer.finished.finished.usage.output_total == 24
    assert (answer.finished.finished.timings.prefill_ms > 0) is not lacks(kind, Feature.PREFILL_TIME)


async def test_the_second_identical_prompt_reports_cached_tokens(rig: Rig) -> None:
    """All full blocks are found again; a prompt that ends with a block still computes its last one."""
    prompt = prompt_of(2)
    assert (await rig.generate(prompt, greedy(4), cache_salt="s2")).cached_tokens == 0
    again = await rig.generate(prompt, greedy(4), cache_salt="s2")
    assert again.cached_tokens == 96
    assert again.finished.finished.usage.input_cached == 96
    whole = prompt[:96]
    assert (await rig.generate(whole, greedy(4), cache_salt="s2")).cached_tokens == 64


async def test_kv_events_have_the_names_that_the_router_computes(rig: Rig) -> None:
    """Block for block, with the cache salt, and with the answer's own blocks; another salt gives other names."""
    prompt = prompt_of(3)
    answer = await rig.generate(prompt, greedy(40), cache_salt="s3")
    tokens = prompt + answer.token_ids()
    expected = hashes_of(rig, tokens[:-1], salt="s3")
    assert len(expected) == 4
    await rig.scheduler.until(lambda seen: seen.blocks.issuperset(expected))
    assert not rig.scheduler.blocks.intersection(hashes_of(rig, prompt, salt=""))
    assert not rig.scheduler.blocks.intersection(hashes_of(rig, prompt, salt="s4"))
    assert rig.scheduler.gaps == 0


async def test_what_the_scheduler_predicts_is_what_the_engine_finds(rig: Rig) -> None:
    """With a cache that evicts all the time, the index says exactly how much of each prompt is cached."""
    chooser = random.Random(7)
    families = [prompt_of(100 + family, 320) for family in range(8)]
    found = []
    for number in range(24):
        family = chooser.choice(families)
        prompt = family[: chooser.randrange(40, 320)] + prompt_of(200 + number, chooser.randrange(1, 40))
        await fence(rig, number)
        hashes = hashes_of(rig, prompt[:-1], salt="index")
        predicted = sum(1 for _ in itertools.takewhile(rig.scheduler.blocks.__contains__, hashes)) * BLOCK
        answer = await rig.generate(prompt, greedy(chooser.randrange(1, 40)), cache_salt="index")
        assert answer.cached_tokens == predicted, f"request {number} of {len(prompt)} tokens"
        found.append(predicted)
    assert sum(cached > 0 for cached in found) > 5
    assert rig.scheduler.gaps == 0


async def fence(rig: Rig, number: int) -> None:
    """Returns when the scheduler knows all that has happened in the cache: events come in order."""
    prompt = prompt_of(1000 + number, BLOCK + 1)
    await rig.generate(prompt, greedy(1), cache_salt="fence")
    (last,) = hashes_of(rig, prompt, salt="fence")
    await rig.scheduler.until(lambda seen: last in seen.blocks)


async def test_an_abort_frees_the_engine(rig: Rig) -> None:
    """A cancelled call leaves nothing running, and its record counts the tokens until then."""
    grant = rig.grant(prompt_of(4), max_output_tokens=400)
    call = rig.stub.Generate(rig.request(prompt_of(4), greedy(400), grant=grant))
    frames = aiter(call)
    while (await anext(frames)).WhichOneof("frame") != "delta":
        pass
    call.cancel()
    await rig.scheduler.until(lambda seen: grant.lease_id in seen.finished, timeout_s=30)
    await rig.until_idle(timeout_s=30)
    assert rig.engine.stats().unfinished == 0
    record = rig.usage(grant.lease_id)
    assert record.finish_reason == FinishReason.FINISH_REASON_CANCELLED
    assert record.usage.input_total == 100
    assert 1 <= record.usage.output_total < 400


async def test_an_abort_before_the_first_token_frees_the_engine(rig: Rig) -> None:
    """Calls that are dropped at once, in the queue or in their prefill, leave nothing running."""
    grants = [rig.grant(prompt_of(50 + number, 400), max_output_tokens=50) for number in range(12)]
    calls = [
        rig.stub.Generate(rig.request(prompt_of(50 + number, 400), greedy(50), grant=grant))
        for number, grant in enumerate(grants)
    ]
    await asyncio.gather(*(anext(aiter(call)) for call in calls))
    for call in calls:
        call.cancel()
    await rig.scheduler.until(lambda seen: all(grant.lease_id in seen.finished for grant in grants), timeout_s=60)
    await rig.until_idle(timeout_s=60)
    assert rig.engine.stats().unfinished == 0
    assert all(rig.usage(grant.lease_id).usage.output_total <= 50 for grant in grants)


async def test_answers_run_side_by_side(rig: Rig) -> None:
    """Eight streams at once have the answers that they have alone."""
    alone = [await rig.generate(prompt_of(seed, 40), greedy(8), cache_salt="alone") for seed in range(20, 24)]
    together = await asyncio.gather(
        *(rig.generate(prompt_of(seed, 40), greedy(8), cache_salt="alone") for seed in range(20, 24))
    )
    assert [answer.token_ids() for answer in together] == [answer.token_ids() for answer in alone]


async def test_several_answers_to_one_prompt(rig: Rig) -> None:
    """n answers come under their indexes, and the counts are those of all."""
    params = SamplingParams(max_tokens=6, n=3, temperature=1, seed=11, ignore_eos=True)
    answer = await rig.generate(prompt_of(5, 40), params)
    assert [len(answer.token_ids(index)) for index in range(3)] == [6, 6, 6]
    assert answer.finished.finished.usage.output_total == 18
    assert answer.deltas[-1].delta.output_tokens == 18


async def test_a_seed_makes_sampling_repeatable(rig: Rig) -> None:
    """The same seed, the same answer; another one, another."""

    def params(seed: int) -> SamplingParams:
        return SamplingParams(max_tokens=12, temperature=1, seed=seed, ignore_eos=True)

    first = await rig.generate(prompt_of(6, 40), params(1))
    again = await rig.generate(prompt_of(6, 40), params(1))
    other = await rig.generate(prompt_of(6, 40), params(2))
    assert first.token_ids() == again.token_ids()
    assert first.token_ids() != other.token_ids()


async def test_logprobs_come_with_each_token(rig: Rig) -> None:
    """As many alternatives as were asked for, most likely first; at temperature 0 the token is the first."""
    answer = await rig.generate(prompt_of(7, 40), greedy(5, logprobs=3))
    entries = [entry for frame in answer.deltas for entry in frame.delta.logprobs]
    assert [entry.token_id for entry in entries] == answer.token_ids()
    assert all(len(entry.top) == 3 for entry in entries)
    assert all(entry.top[0].token_id == entry.token_id for entry in entries)
    assert all(entry.logprob <= 0 for entry in entries)


async def test_a_stop_string_ends_the_answer_before_it(rig: Rig) -> None:
    """The text up to the stop string is there, the stop string is not."""
    whole = await rig.generate(prompt_of(8, 40), greedy(24))
    text = whole.text()
    stop = text[len(text) // 2 :][:4]
    answer = await rig.generate(prompt_of(8, 40), greedy(24, stop=[stop]))
    assert answer.text() == text[: text.index(stop)]
    assert answer.finished.finished.finish_reason == FinishReason.FINISH_REASON_STOP


async def test_a_stop_token_ends_the_answer_with_it(rig: Rig) -> None:
    """The stop token is the last token, is counted, and has no text."""
    whole = await rig.generate(prompt_of(12, 40), greedy(24))
    tokens = whole.token_ids()
    stop = tokens[len(tokens) // 2]
    answer = await rig.generate(prompt_of(12, 40), greedy(24, stop_token_ids=[stop]))
    assert answer.token_ids() == tokens[: tokens.index(stop) + 1]
    assert answer.finished.finished.finish_reason == FinishReason.FINISH_REASON_STOP
    before = await rig.generate(prompt_of(12, 40), greedy(max(1, tokens.index(stop))))
    assert answer.text() == (before.text() if tokens.index(stop) else "")


async def test_a_constraint_holds_or_is_refused(rig: Rig, kind: str) -> None:
    """The answer is of the form asked for; an engine without constraints says so, and goes on."""
    params = SamplingParams(max_tokens=8, temperature=0, regex="(yes|no)")
    if lacks(kind, Feature.CONSTRAINTS):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.generate(prompt_of(13, 40), params)
        assert error_from_rpc(caught.value).reason == Reason.UNSUPPORTED_FEATURE
        assert len((await rig.generate(prompt_of(13, 40), greedy(2))).token_ids()) == 2
    else:
        assert (await rig.generate(prompt_of(13, 40), params)).text() in {"yes", "no"}


async def test_the_same_answer_goes_on_from_its_middle(rig: Rig) -> None:
    """A prompt that ends with the first half of its greedy answer is answered with the second half."""
    prompt = prompt_of(9, 40)
    whole = (await rig.generate(prompt, greedy(16))).token_ids()
    rest = (await rig.generate(prompt + whole[:8], greedy(8))).token_ids()
    assert rest == whole[8:]


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (SamplingParams(temperature=3), Reason.PARAM_OUT_OF_RANGE),
        (SamplingParams(temperature=float("nan")), Reason.PARAM_OUT_OF_RANGE),
        (SamplingParams(logprobs=21), Reason.PARAM_OUT_OF_RANGE),
        (SamplingParams(n=9), Reason.PARAM_OUT_OF_RANGE),
        (SamplingParams(max_tokens=65), Reason.PARAM_OUT_OF_RANGE),
        (SamplingParams(stop=["x" * 257]), Reason.PARAM_OUT_OF_RANGE),
        (SamplingParams(stop_token_ids=[10**6]), Reason.PARAM_OUT_OF_RANGE),
        (SamplingParams(repetition_penalty=0), Reason.PARAM_OUT_OF_RANGE),
    ],
)
async def test_parameters_out_of_range_never_reach_the_engine(rig: Rig, params: SamplingParams, reason: Reason) -> None:
    """INVALID_ARGUMENT with the field; the engine goes on."""
    tokens = rig.engine.stats().prefix_queries
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(prompt_of(10), params)
    error = error_from_rpc(caught.value)
    assert error.reason == reason
    assert error.violations[0].field.startswith("sampling.")
    assert rig.engine.stats().prefix_queries == tokens


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], Reason.PARAM_OUT_OF_RANGE),
        ([10**6] * 10, Reason.PARAM_OUT_OF_RANGE),
        ([1] * 512, Reason.PROMPT_TOO_LONG),
        ([1] * 200_000, Reason.PROMPT_TOO_LONG),
    ],
)
async def test_bad_prompts_are_refused(rig: Rig, prompt: list[int], reason: Reason) -> None:
    """Empty, unknown tokens, the context or far beyond it: each its reason, and the engine goes on."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(prompt)
    assert error_from_rpc(caught.value).reason == reason
    assert len((await rig.generate(prompt_of(11), greedy(2))).token_ids()) == 2
