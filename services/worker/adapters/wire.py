"""From the contract's messages to the worker's own values."""

from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.types.v1.chat_pb2 import Priority, SamplingParams

from services.worker.domain.sampling import Sampling

# The engine takes the lowest first.
_PRIORITIES = {
    Priority.PRIORITY_INTERACTIVE: 0,
    Priority.PRIORITY_UNSPECIFIED: 1,
    Priority.PRIORITY_STANDARD: 1,
    Priority.PRIORITY_BATCH: 2,
}


def engine_priority(grant: LeaseGrant) -> int:
    """The engine's number for the class of a grant; an unknown class is standard."""
    return _PRIORITIES.get(grant.priority, 1)


def sampling_of(params: SamplingParams, *, max_tokens: int) -> Sampling:
    """The parameters with the contract's defaults; `max_tokens` is that of an answer without one."""
    constraint = params.WhichOneof("constraint")
    return Sampling(
        max_tokens=params.max_tokens if params.HasField("max_tokens") else max_tokens,
        min_tokens=params.min_tokens,
        temperature=params.temperature if params.HasField("temperature") else 1.0,
        top_p=params.top_p if params.HasField("top_p") else 1.0,
        top_k=params.top_k,
        min_p=params.min_p,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty if params.HasField("repetition_penalty") else 1.0,
        seed=params.seed if params.HasField("seed") else None,
        n=params.n if params.HasField("n") else 1,
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        stop=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        json_schema=params.json_schema if constraint == "json_schema" else None,
        regex=params.regex if constraint == "regex" else None,
    )
