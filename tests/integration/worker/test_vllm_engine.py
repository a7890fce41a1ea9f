"""What only the real engine does: real text, constraints, and the internals that the adapter relies on."""

import dataclasses
import inspect
import json

import grpc
import pytest
from downstack.scheduler.v1.scheduler_pb2 import Rates
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.worker.v1 import worker_pb2

from services.kit.errors import Reason
from services.kit.models import Tokenizer
from services.kit.status import error_from_rpc
from tests.support.worker_rig import Rig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def chat(tokenizer: Tokenizer, question: str) -> list[int]:
    return tokenizer.encode(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_it_knows_the_capital_of_france(vllm: Rig, smollm2_tokenizer: Tokenizer) -> None:
    """The converted weights, the tokenizer and the template fit together."""
    prompt = chat(smollm2_tokenizer, "What is the capital of France?")
    answer = await vllm.generate(prompt, SamplingParams(max_tokens=24, temperature=0))
    assert "Paris" in answer.text()
    assert answer.text().strip() == smollm2_tokenizer.decode(answer.token_ids()).strip()


async def test_a_json_schema_and_a_regex_hold(vllm: Rig, smollm2_tokenizer: Tokenizer) -> None:
    """A constrained answer is of the form asked for."""
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
    prompt = chat(smollm2_tokenizer, "Name the capital of France as JSON.")
    params = SamplingParams(max_tokens=60, temperature=0, json_schema=json.dumps(schema))
    document = json.loads((await vllm.generate(prompt, params)).text())
    assert isinstance(document["city"], str)
    params = SamplingParams(max_tokens=8, temperature=0, regex="(yes|no)")
    assert (await vllm.generate(prompt, params)).text() in {"yes", "no"}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(json_schema="{"),
        SamplingParams(json_schema='{"type": "nothing"}'),
        SamplingParams(regex="(unclosed"),
    ],
)
async def test_a_constraint_that_does_not_compile_is_refused(
    vllm: Rig, smollm2_tokenizer: Tokenizer, params: SamplingParams
) -> None:
    """BAD_SCHEMA, and the engine survives it."""
    prompt = chat(smollm2_tokenizer, "Say something.")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await vllm.generate(prompt, params)
    assert error_from_rpc(caught.value).reason == Reason.BAD_SCHEMA
    assert len((await vllm.generate(prompt, SamplingParams(max_tokens=2, ignore_eos=True))).token_ids()) == 2


async def test_rates_are_measured(vllm: Rig) -> None:
    """What the worker says of its speed is measured, not declared, and moves with what it sees."""

    async def said() -> Rates:
        status = await vllm.stub.GetStatus(worker_pb2.GetStatusRequest(), metadata=vllm.metadata())
        found: Rates = status.load.rates
        return found

    before = await said()
    assert before.decode_base_ms != 10.0
    assert before.prefill_ms_per_token != 0.1
    await vllm.generate([7] * 400, SamplingParams(max_tokens=16, ignore_eos=True))
    assert await said() != before


def test_the_adapter_finds_what_it_relies_on(smollm2: object) -> None:
    """Each import and field of vLLM's internals that the adapter uses; an upgrade fails here first."""
    from vllm import __version__  # noqa: PLC0415
    from vllm.config import KVEventsConfig  # noqa: PLC0415
    from vllm.distributed.kv_events import (  # noqa: PLC0415
        AllBlocksCleared,
        BlockRemoved,
        BlockStored,
        KVEventBatch,
    )
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.exceptions import GracefulHTTPError, VLLMClientError  # noqa: PLC0415
    from vllm.inputs import TokensPrompt  # noqa: PLC0415
    from vllm.outputs import CompletionOutput, RequestOutput  # noqa: PLC0415
    from vllm.platforms import current_platform  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError  # noqa: PLC0415
    from vllm.v1.metrics.loggers import StatLoggerBase  # noqa: PLC0415
    from vllm.v1.metrics.stats import (  # noqa: PLC0415
        IterationStats,
        PrefixCacheStats,
        PromptTokenStats,
        RequestStateStats,
        SchedulerIterationDetails,
        SchedulerStats,
    )

    def fields(cls: type) -> set[str]:
        return {field.name for field in dataclasses.fields(cls)}

    assert __version__.startswith("0.32.")
    assert {"events"} <= set(KVEventBatch.__struct_fields__)
    stored = {"block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_name", "extra_keys"}
    assert stored <= set(BlockStored.__struct_fields__)
    assert {"block_hashes"} <= set(BlockRemoved.__struct_fields__)
    assert issubclass(AllBlocksCleared, object)
    assert {"enable_kv_cache_events", "publisher", "endpoint", "replay_endpoint"} <= set(
        inspect.signature(KVEventsConfig).parameters
    )
    arguments = {
        "model", "served_model_name", "dtype", "max_model_len", "block_size", "max_num_seqs",
        "max_num_batched_tokens", "gpu_memory_utilization", "enforce_eager", "enable_prefix_caching",
        "scheduling_policy", "distributed_executor_backend", "disable_log_stats", "kv_events_config",
        "num_gpu_blocks_override", "worker_extension_cls", "enable_logging_iteration_details",
        "load_format", "tensor_parallel_size",
    }  # fmt: skip
    assert arguments <= fields(AsyncEngineArgs)
    assert {"prompt_token_ids", "cache_salt"} <= set(TokensPrompt.__annotations__) | set(
        TokensPrompt.__mro__[0].__optional_keys__
    )
    generate = inspect.signature(AsyncLLM.generate).parameters
    assert {"prompt", "sampling_params", "request_id", "priority"} <= set(generate)
    for name in ("abort", "shutdown", "errored", "reset_prefix_cache", "collective_rpc", "get_num_unfinished_requests"):
        assert hasattr(AsyncLLM, name)
    assert "stat_loggers" in inspect.signature(AsyncLLM.from_engine_args).parameters
    assert list(inspect.signature(StatLoggerBase.record).parameters)[1:3] == ["scheduler_stats", "iteration_stats"]
    scheduler = {
        "num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "kv_cache_usage", "prefix_cache_stats",
        "iteration_details",
    }  # fmt: skip
    assert scheduler <= fields(SchedulerStats)
    assert {"queries", "hits"} <= fields(PrefixCacheStats)
    iteration = {
        "num_generation_tokens", "inter_token_latencies_iter", "time_to_first_tokens_iter", "prompt_token_stats",
    }  # fmt: skip
    assert iteration <= set(vars(IterationStats()))
    assert {"num_ctx_requests", "num_ctx_tokens", "num_generation_requests"} <= fields(SchedulerIterationDetails)
    assert {"computed", "cached_tokens"} <= fields(PromptTokenStats)
    assert {"queued_ts", "scheduled_ts", "first_token_ts"} <= fields(RequestStateStats)
    assert {"index", "text", "token_ids", "logprobs", "finish_reason"} <= fields(CompletionOutput)
    assert {"outputs", "num_cached_tokens", "metrics"} <= set(inspect.signature(RequestOutput).parameters)
    assert {"json", "regex"} <= fields(StructuredOutputsParams)
    assert RequestOutputKind.DELTA is not None
    assert {"seed", "logprobs", "stop", "structured_outputs", "output_kind"} <= set(
        inspect.signature(SamplingParams).parameters
    )
    assert issubclass(EngineDeadError, Exception)
    assert issubclass(EngineGenerateError, Exception)
    assert issubclass(GracefulHTTPError, Exception)
    assert issubclass(VLLMClientError, Exception)
    assert hasattr(current_platform, "is_cpu")
