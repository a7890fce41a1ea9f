"""Errors on the wire: google.rpc.Status with exactly one ErrorInfo, and back."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details_pb
from google.rpc import status_pb2

from services.kit.errors import CODE_OF, Code, DownstackError, FieldViolation, Reason

DOMAIN = "downstack"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# gRPC replaces an error whose trailers pass 8 KiB by another one, so everything that goes into them is bounded.
_MAX_MESSAGE = 512
_MAX_VALUE = 256
_MAX_METADATA = 16
_MAX_VIOLATIONS = 16
_MAX_STATUS_BYTES = 4096

# What an error without our ErrorInfo means: it came from gRPC itself or from something between the services.
_FOREIGN: Mapping[grpc.StatusCode, Reason] = MappingProxyType(
    {
        grpc.StatusCode.CANCELLED: Reason.CLIENT_CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_IN_GENERATION,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.MESSAGE_TOO_LARGE,
        grpc.StatusCode.UNIMPLEMENTED: Reason.METHOD_DISABLED,
        grpc.StatusCode.UNAUTHENTICATED: Reason.AUTH_INVALID,
        grpc.StatusCode.PERMISSION_DENIED: Reason.ACTION_NOT_ALLOWED,
    }
)


class RpcStatus(NamedTuple):
    """What `abort_with_status` sends; satisfies grpc.Status.

    Attributes:
        code: The status code.
        details: The message.
        trailing_metadata: The serialized google.rpc.Status, and what a client's retry policy listens to.
    """

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def to_rpc_status(
    error: DownstackError, *, trailers: Iterable[tuple[str, str | bytes]] = (), caller_decides: bool = False
) -> RpcStatus:
    """The wire form of an error; `trailers` are sent beside it.

    gRPC's retry policy waits for `retry_after_s` and repeats the call by itself, unless the caller decides: a service
    that was refused must learn it at once, to try another instance or to pass the refusal on.
    """
    code = grpc.StatusCode[error.code.value]
    message = _cut(error.message, _MAX_MESSAGE)
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in _details(error):
        packed = PackedAny()
        packed.Pack(detail)
        if status.ByteSize() + packed.ByteSize() <= _MAX_STATUS_BYTES:
            status.details.append(packed)
    metadata: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString()), *trailers]
    if caller_decides:
        metadata.append((PUSHBACK_KEY, "-1"))
    elif error.retry_after_s is not None:
        metadata.append((PUSHBACK_KEY, str(max(0, round(error.retry_after_s * 1000)))))
    return RpcStatus(code, message, tuple(metadata))


def error_from_rpc(error: grpc.RpcError) -> DownstackError:
    """The error that a called service meant, with its reason; what never came from a service becomes one of ours."""
    code = error.code() or grpc.StatusCode.UNKNOWN
    message = error.details() or f"The call ended with {code.name}."
    status = _status_of(error)
    parts = _unpacked(status)
    info: details_pb.ErrorInfo = parts.get("ErrorInfo", details_pb.ErrorInfo())
    if info.domain != DOMAIN or info.reason not in Reason.__members__:
        return DownstackError(_FOREIGN.get(code, Reason.DEPENDENCY_UNAVAILABLE), message, metadata={"code": code.name})
    retry = parts.get("RetryInfo")
    violations = parts["BadRequest"].field_violations if "BadRequest" in parts else ()
    return DownstackError(
        Reason(info.reason),
        message,
        metadata=dict(info.metadata),
        violations=[FieldViolation(v.field, v.description) for v in violations],
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds() if retry is not None else None,
    )


def _details(error: DownstackError) -> list[Message]:
    metadata = {_cut(k, 64): _cut(v, _MAX_VALUE) for k, v in list(error.metadata.items())[:_MAX_METADATA]}
    info = details_pb.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=metadata)
    while info.ByteSize() > _MAX_STATUS_BYTES // 2 and info.metadata:
        info.metadata.pop(next(reversed(list(info.metadata))))
    found: list[Message] = [info]
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(max(0.0, error.retry_after_s) * 1e9))
        found.append(details_pb.RetryInfo(retry_delay=delay))
    if CODE_OF[error.reason] is Code.RESOURCE_EXHAUSTED:
        subject = error.metadata.get("subject", "tenant")
        violation = details_pb.QuotaFailure.Violation(
            subject=_cut(subject, _MAX_VALUE), description=_cut(error.message, _MAX_VALUE)
        )
        found.append(details_pb.QuotaFailure(violations=[violation]))
    if error.violations:
        found.append(_bad_request(error.violations))
    return found


def _bad_request(violations: Iterable[FieldViolation]) -> details_pb.BadRequest:
    bad, room = details_pb.BadRequest(), _MAX_STATUS_BYTES // 2 - _MAX_MESSAGE
    for violation in list(violations)[:_MAX_VIOLATIONS]:
        entry = details_pb.BadRequest.FieldViolation(
            field=_cut(violation.field, 128), description=_cut(violation.description, _MAX_VALUE)
        )
        if bad.ByteSize() + entry.ByteSize() > room:
            break
        bad.field_violations.append(entry)
    return bad


def _status_of(error: grpc.RpcError) -> status_pb2.Status:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def _unpacked(status: status_pb2.Status) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for packed in status.details:
        for kind in (details_pb.ErrorInfo, details_pb.RetryInfo, details_pb.BadRequest):
            message = kind()
            if packed.Is(kind.DESCRIPTOR) and packed.Unpack(message):
                found.setdefault(kind.DESCRIPTOR.name, message)
    return found


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, at a code point."""
    data = text.encode(errors="replace")
    return text if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "…"
