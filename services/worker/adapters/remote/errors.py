"""What a failed call to a remote server means for the request that it was made for."""

import grpc
import grpc.aio

from services.kit.errors import DownstackError, Reason
from services.kit.status import error_from_rpc
from services.worker.domain.sampling import Sampling

_FIRST_CHARACTERS = 300
# What a server of Downstack's says by these is about the request or the server, and the caller may hear it.
_PASSED = frozenset(
    {
        Reason.PROMPT_TOO_LONG,
        Reason.PARAM_OUT_OF_RANGE,
        Reason.BAD_SCHEMA,
        Reason.UNSUPPORTED_FEATURE,
        Reason.OVERLOADED,
        Reason.DRAINING,
        Reason.ENGINE_DEAD,
        Reason.JOURNAL_FULL,
        Reason.INTERNAL,
    }
)
_OF_CODE = {
    grpc.StatusCode.UNIMPLEMENTED: Reason.UNSUPPORTED_FEATURE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.OVERLOADED,
    grpc.StatusCode.UNAVAILABLE: Reason.ENGINE_DEAD,
    grpc.StatusCode.CANCELLED: Reason.ENGINE_DEAD,
    grpc.StatusCode.UNKNOWN: Reason.INTERNAL,
    grpc.StatusCode.INTERNAL: Reason.INTERNAL,
}
_RETRYABLE = frozenset({Reason.OVERLOADED, Reason.DRAINING, Reason.ENGINE_DEAD, Reason.DEPENDENCY_UNAVAILABLE})


def request_error(error: grpc.aio.AioRpcError, sampling: Sampling) -> DownstackError:
    """Why the engine could not answer. That the server does not let this worker in is not the caller's doing."""
    said = error_from_rpc(error)
    if "code" not in said.metadata and said.reason in _PASSED:
        return said
    reason = _reason(error.code(), sampling)
    text = (error.details() or error.code().name).partition("\n")[0][:_FIRST_CHARACTERS]
    message = f"The remote server ended the request: {text}"
    return DownstackError(reason, message, retry_after_s=1.0 if reason in _RETRYABLE else None)


def _reason(code: grpc.StatusCode, sampling: Sampling) -> Reason:
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        constrained = sampling.json_schema is not None or sampling.regex is not None
        return Reason.BAD_SCHEMA if constrained else Reason.PARAM_OUT_OF_RANGE
    return _OF_CODE.get(code, Reason.DEPENDENCY_UNAVAILABLE)
