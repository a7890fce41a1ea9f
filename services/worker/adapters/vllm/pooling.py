"""Embeddings by vLLM: the arguments that make it pool instead of generate, and the call."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.pooling_params import PoolingParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from services.kit.errors import DownstackError, Reason
from services.kit.ids import new_id
from services.worker.ports import Vector


class Llm(Protocol):
    """What is used of AsyncLLM."""

    def encode(self, prompt: Any, pooling_params: PoolingParams, request_id: str) -> AsyncGenerator[Any, None]: ...


def pooling_arguments(arguments: AsyncEngineArgs) -> AsyncEngineArgs:
    """The same engine, for a model that pools: it keeps no KV cache, and computes each text in one step."""
    return replace(
        arguments,
        runner="pooling",
        kv_events_config=None,
        enable_prefix_caching=False,
        max_num_batched_tokens=max(arguments.max_num_batched_tokens or 0, arguments.max_model_len or 0),
    )


async def embed(llm: Llm, prompts: Sequence[Sequence[int]]) -> list[Vector]:
    """One vector a prompt, in their order; vLLM makes its batches of them. Ends them all where one fails.

    Raises:
        DownstackError: ENGINE_DEAD, PARAM_OUT_OF_RANGE, INTERNAL.
    """
    call = new_id("emb")
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_embed_one(llm, prompt, request_id=f"{call}-{number}"))
                for number, prompt in enumerate(prompts)
            ]
    except* DownstackError as failed:
        raise _first(failed) from None
    return [task.result() for task in tasks]


async def _embed_one(llm: Llm, prompt: Sequence[int], *, request_id: str) -> Vector:
    params = PoolingParams(task="embed")
    vector: Vector = ()
    try:
        async with aclosing(llm.encode(TokensPrompt(prompt_token_ids=list(prompt)), params, request_id)) as outputs:
            async for output in outputs:
                vector = tuple(output.outputs.data.tolist())
    except EngineDeadError:
        raise DownstackError(Reason.ENGINE_DEAD, "The engine has died.", retry_after_s=1.0) from None
    except (VLLMClientError, ValueError) as error:
        raise DownstackError(Reason.PARAM_OUT_OF_RANGE, f"The engine refuses the text: {str(error)[:300]}") from None
    except EngineGenerateError as error:
        raise DownstackError(Reason.INTERNAL, "The engine failed with this text.") from error
    return vector


def _first(failed: BaseExceptionGroup[DownstackError]) -> DownstackError:
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DownstackError)
    return error
