"""A request of vLLM's contract in the worker's own terms, or the reason why it cannot be honoured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from downstack.smg import vllm_engine_pb2 as pb

from services.kit.errors import DownstackError, Reason, Violations
from services.kit.models import Tokenizer
from services.worker.domain.sampling import Sampling

MAX_REQUEST_ID = 256
MAX_SALT = 1024
_ANY_OBJECT = '{"type": "object"}'
_UNSUPPORTED_CONSTRAINTS = ("grammar", "structural_tag", "choice")
# How servers of this contract turn the names of images that come without the images into a cache salt.
_SALT_MARK = "mm:"


@dataclass(frozen=True)
class Asked:
    """What a caller asks for.

    Attributes:
        request_id: The caller's own name of the request; may be empty.
        salt: The cache salt that the caller wants. Empty: none.
        stream: Whether the answer is to come in pieces.
    """

    request_id: str
    prompt: tuple[int, ...]
    params: pb.SamplingParams
    salt: str
    stream: bool


def read_request(request: pb.GenerateRequest, tokenizer: Tokenizer) -> Asked:
    """Takes a request apart.

    Raises:
        DownstackError: UNSUPPORTED_FEATURE for what this worker does not have, PARAM_OUT_OF_RANGE for an id or a salt
            that is too long.
    """
    _check_features(request)
    salt, found = _salt(request.mm_inputs.mm_hashes), Violations()
    if len(request.request_id) > MAX_REQUEST_ID:
        found.add("request_id", f"must be at most {MAX_REQUEST_ID} characters")
    if len(salt) > MAX_SALT:
        found.add("mm_inputs.mm_hashes", f"must be at most {MAX_SALT} characters together")
    found.check()
    return Asked(
        request_id=request.request_id,
        prompt=_prompt(request, tokenizer),
        params=request.sampling_params,
        salt=salt,
        stream=request.stream,
    )


def read_sampling(params: pb.SamplingParams, *, room: int) -> Sampling:
    """The parameters, with the contract's own defaults; `room` is the longest answer that fits."""
    constraint = params.WhichOneof("constraint")
    schemas: Mapping[str, str] = {"json_schema": params.json_schema, "json_object": _ANY_OBJECT}
    return Sampling(
        max_tokens=min(params.max_tokens, room) if params.HasField("max_tokens") else room,
        min_tokens=params.min_tokens,
        temperature=params.temperature if params.HasField("temperature") else 1.0,
        top_p=params.top_p or 1.0,
        top_k=params.top_k,
        min_p=params.min_p,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty or 1.0,
        seed=params.seed if params.HasField("seed") else None,
        n=params.n or 1,
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        stop=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        json_schema=schemas.get(constraint or ""),
        regex=params.regex if constraint == "regex" else None,
    )


def _prompt(request: pb.GenerateRequest, tokenizer: Tokenizer) -> tuple[int, ...]:
    if request.WhichOneof("input") == "text":
        return tuple(tokenizer.encode(request.text, add_special_tokens=True))
    return tuple(request.tokenized.input_ids)


def _salt(hashes: Sequence[str]) -> str:
    return _SALT_MARK + ",".join(hashes) if hashes else ""


def _check_features(request: pb.GenerateRequest) -> None:
    params, media = request.sampling_params, request.mm_inputs
    asked = {
        "kv_transfer_params": request.HasField("kv_transfer_params") or request.HasField("kv_transfer_params_json"),
        "media_refs": request.HasField("media_refs"),
        "mm_inputs": media.HasField("pixel_values") or media.model_specific_tensors or media.mm_placeholders,
        "extra_mm_inputs": request.extra_mm_inputs,
        "data_parallel_rank": request.data_parallel_rank,
        "sampling_params.prompt_logprobs": params.HasField("prompt_logprobs"),
        "sampling_params.logit_bias": params.logit_bias,
        "sampling_params.truncate_prompt_tokens": params.HasField("truncate_prompt_tokens"),
        **{f"sampling_params.{name}": params.WhichOneof("constraint") == name for name in _UNSUPPORTED_CONSTRAINTS},
    }
    missing = [name for name, wanted in asked.items() if wanted]
    if missing:
        message = f"This worker does not support {', '.join(missing)}."
        raise DownstackError(Reason.UNSUPPORTED_FEATURE, message, metadata={"features": ",".join(missing)})
