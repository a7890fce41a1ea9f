"""What a call can fail with: one class per gRPC code, each carrying the service's own reason."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"


@dataclass(frozen=True)
class Violation:
    """One field of the request that was refused, and why."""

    field: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Details:
    """What a status carries beside its code and message."""

    reason: str = ""
    request_id: str = ""
    retry_after_s: float | None = None
    violations: Sequence[Violation] = ()
    metadata: Mapping[str, str] | None = None


class ApiError(Exception):
    """A call failed.

    Attributes:
        code: The gRPC code's name.
        reason: The reason in the service's closed list, such as `MODEL_NOT_FOUND`. `UNREACHABLE` where nobody answered.
        message: One sentence for a person.
        request_id: The request, where it had got an id. Else empty.
        retry_after_s: When a repetition has a chance. None: the service did not say.
        violations: The fields that were refused.
        metadata: Further attributes of the reason.
    """

    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, details: Details | None = None) -> None:
        super().__init__(message)
        details = details or Details()
        self.message = message
        self.reason = details.reason or self.code
        self.request_id = details.request_id
        self.retry_after_s = details.retry_after_s
        self.violations = tuple(details.violations)
        self.metadata = dict(details.metadata or {})

    def __str__(self) -> str:
        fields = "; ".join(f"{v.field}: {v.description}" for v in self.violations if v.description not in self.message)
        return f"{self.message} ({fields})" if fields else self.message


class CallCancelledError(ApiError):
    """The caller cancelled."""

    code = "CANCELLED"


class InvalidRequestError(ApiError):
    """The request cannot be right; `violations` names the fields."""

    code = "INVALID_ARGUMENT"


class DeadlineError(ApiError):
    """The deadline passed."""

    code = "DEADLINE_EXCEEDED"


class NotFoundError(ApiError):
    """The thing does not exist, or belongs to another tenant."""

    code = "NOT_FOUND"


class AlreadyExistsError(ApiError):
    """The thing exists."""

    code = "ALREADY_EXISTS"


class PermissionDeniedError(ApiError):
    """The key may not do this."""

    code = "PERMISSION_DENIED"


class UnauthenticatedError(ApiError):
    """The key is missing, wrong, expired or revoked."""

    code = "UNAUTHENTICATED"


class ExhaustedError(ApiError):
    """A limit, quota or budget is used up."""

    code = "RESOURCE_EXHAUSTED"


class PreconditionError(ApiError):
    """The state of the system forbids it."""

    code = "FAILED_PRECONDITION"


class AbortedError(ApiError):
    """A stream broke off and could not be continued."""

    code = "ABORTED"


class UnavailableError(ApiError):
    """A service, or something it needs, cannot be reached now."""

    code = "UNAVAILABLE"


class UnimplementedError(ApiError):
    """The method is switched off or unknown to the service."""

    code = "UNIMPLEMENTED"


class InternalError(ApiError):
    """The service has a defect."""

    code = "INTERNAL"


_CLASSES: Mapping[str, type[ApiError]] = {kind.code: kind for kind in ApiError.__subclasses__()}


def from_rpc(error: Any, *, target: str, request_id: str = "") -> ApiError:
    """The typed form of what gRPC raised (sync or asyncio); `target` is named where nobody answered."""
    trailing = _pairs(error.trailing_metadata())
    code = error.code() or grpc.StatusCode.UNKNOWN
    details = _details(trailing, request_id or _request_id(error, trailing))
    message = error.details() or f"the call ended with {code.name}"
    if code is grpc.StatusCode.UNAVAILABLE and DETAILS_KEY not in trailing:
        message = f"nobody answers at {target}; is it running there?"
        details = Details(reason="UNREACHABLE", request_id=details.request_id)
    return _CLASSES.get(code.name, ApiError)(message, details)


def _pairs(metadata: Iterable[Any] | None) -> dict[str, Any]:
    return {str(key): value for key, value in metadata or ()}


def _request_id(error: Any, trailing: Mapping[str, Any]) -> str:
    return str(trailing.get(REQUEST_ID_KEY) or _pairs(error.initial_metadata()).get(REQUEST_ID_KEY, ""))


def _details(trailing: Mapping[str, Any], request_id: str) -> Details:
    status = status_pb2.Status.FromString(trailing.get(DETAILS_KEY, b""))
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    has_retry = False
    for packed in status.details:
        packed.Unpack(info) or packed.Unpack(bad)
        has_retry = packed.Unpack(retry) or has_retry
    return Details(
        reason=info.reason,
        request_id=request_id or info.metadata.get("request_id", ""),
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds() if has_retry else None,
        violations=[Violation(v.field, v.description) for v in bad.field_violations],
        metadata=dict(info.metadata),
    )
