"""Sampling parameters and outputs, ours and vLLM's."""

from collections.abc import Mapping
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from services.worker.domain.sampling import Sampling
from services.worker.ports import Ending, EngineOutput, TokenLogprob

# vLLM's names of finish reasons. A repetition has no ending here, and the request fails; so it does with an error.
_ENDINGS: Mapping[str, Ending] = {"stop": Ending.STOP, "length": Ending.LENGTH, "abort": Ending.ABORT}
_ERROR = "error"
# Below these a share is none, and a logit divided by a penalty is infinite, in the numbers that vLLM computes with.
_LEAST_TOP_P, _LEAST_PENALTY = 1e-6, 1e-3


class RequestFailedError(Exception):
    """The engine gave a request up, such as for a constraint that it could not compile."""


def vllm_params(sampling: Sampling) -> Any:
    """VLLM's SamplingParams."""
    constraint = None
    if sampling.json_schema is not None:
        constraint = StructuredOutputsParams(json=sampling.json_schema)
    elif sampling.regex is not None:
        constraint = StructuredOutputsParams(regex=sampling.regex)
    return SamplingParams(
        n=sampling.n,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=max(sampling.top_p, _LEAST_TOP_P),
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=max(sampling.repetition_penalty, _LEAST_PENALTY),
        seed=sampling.seed,
        logprobs=sampling.logprobs,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        structured_outputs=constraint,
        output_kind=RequestOutputKind.DELTA,
    )


def engine_outputs(output: Any, *, logprobs: int | None) -> list[EngineOutput]:
    """What a RequestOutput says of each of its answers. Raises RequestFailedError."""
    if any(completion.finish_reason == _ERROR for completion in output.outputs):
        raise RequestFailedError
    queue_ms, prefill_ms = _timings(output.metrics)
    return [
        EngineOutput(
            index=completion.index,
            token_ids=tuple(completion.token_ids),
            text=completion.text,
            logprobs=_logprobs(completion, count=logprobs),
            cached_tokens=output.num_cached_tokens if completion.token_ids else None,
            prefill_began=bool(completion.token_ids),
            ending=_ENDINGS.get(completion.finish_reason) if completion.finish_reason else None,
            queue_ms=queue_ms,
            prefill_ms=prefill_ms,
        )
        for completion in output.outputs
    ]


def _timings(metrics: Any) -> tuple[float | None, float | None]:
    if metrics is None or not metrics.scheduled_ts or not metrics.first_token_ts:
        return None, None
    queue = max(0.0, metrics.scheduled_ts - metrics.queued_ts)
    return queue * 1000, (metrics.first_token_ts - metrics.scheduled_ts) * 1000


def _logprobs(completion: Any, *, count: int | None) -> tuple[TokenLogprob, ...]:
    if count is None or not completion.logprobs:
        return ()
    pairs = zip(completion.token_ids, completion.logprobs, strict=False)
    return tuple(_token_logprob(token_id, entries, count) for token_id, entries in pairs)


def _token_logprob(token_id: int, entries: Mapping[int, Any], count: int) -> TokenLogprob:
    # vLLM gives the sampled token besides the most likely ones, wherever it ranks.
    ranked = sorted(((other, entry.logprob) for other, entry in entries.items()), key=lambda pair: -pair[1])
    return TokenLogprob(token_id, entries[token_id].logprob, tuple(ranked[:count]))
