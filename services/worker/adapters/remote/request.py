"""A request in the messages of vLLM's contract."""

from collections.abc import Sequence

from downstack.smg import vllm_engine_pb2 as pb

from services.worker.domain.sampling import Sampling

_SEED_BITS = 31


def generate_request(
    prompt: Sequence[int], sampling: Sampling, *, request_id: str, cache_salt: str
) -> pb.GenerateRequest:
    """A streamed request.

    The contract has no field for a cache salt. Its servers make one of the names of images that come without the
    images, so that is how ours travels: without it, callers of different tenants would share a cache.
    """
    request = pb.GenerateRequest(request_id=request_id, sampling_params=_params(sampling), stream=True)
    request.tokenized.input_ids.extend(prompt)
    if cache_salt:
        request.mm_inputs.mm_hashes.append(cache_salt)
    return request


def _params(sampling: Sampling) -> pb.SamplingParams:
    params = pb.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        skip_special_tokens=True,
        spaces_between_special_tokens=True,
        ignore_eos=sampling.ignore_eos,
        n=sampling.n,
        logprobs=sampling.logprobs,
        seed=None if sampling.seed is None else _folded(sampling.seed),
    )
    if sampling.json_schema is not None:
        params.json_schema = sampling.json_schema
    elif sampling.regex is not None:
        params.regex = sampling.regex
    return params


def _folded(seed: int) -> int:
    """The contract's seeds have 31 bits: equal seeds stay equal, and different ones nearly always differ."""
    folded = 0
    while seed:
        folded, seed = folded ^ (seed & (2**_SEED_BITS - 1)), seed >> _SEED_BITS
    return folded
