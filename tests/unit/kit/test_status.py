"""Errors on the wire and back."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import CODE_OF, Code, DownstackError, FieldViolation, Reason
from services.kit.status import DETAILS_KEY, RpcStatus, error_from_rpc, to_rpc_status


def received(status: RpcStatus) -> AioRpcError:
    return AioRpcError(status.code, Metadata(), Metadata(*status.trailing_metadata), details=status.details)


def details_of(status: RpcStatus) -> list[str]:
    wire = status_pb2.Status.FromString(dict(status.trailing_metadata)[DETAILS_KEY])
    assert (wire.code, wire.message) == (status.code.value[0], status.details)
    return [detail.type_url.rpartition(".")[2] for detail in wire.details]


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_survives_the_wire(reason: Reason) -> None:
    error = DownstackError(reason, "Because.", metadata={"a": "b"}, retry_after_s=1.25)
    status = to_rpc_status(error)
    back = error_from_rpc(received(status))
    assert status.code.name == CODE_OF[reason].value
    assert (back.reason, back.message, back.retry_after_s) == (reason, "Because.", 1.25)
    assert back.metadata == {"a": "b"}
    assert details_of(status).count("ErrorInfo") == 1


def test_details_fit_the_reason() -> None:
    """BadRequest for violations, QuotaFailure for quotas, RetryInfo where a repetition has a chance."""
    bad = DownstackError(Reason.PARAM_CONFLICT, "No.", violations=[FieldViolation("a.b", "not with c")])
    assert details_of(to_rpc_status(bad)) == ["ErrorInfo", "BadRequest"]
    assert error_from_rpc(received(to_rpc_status(bad))).violations == (FieldViolation("a.b", "not with c"),)
    quota = DownstackError(Reason.QUOTA_EXCEEDED, "Spent.", retry_after_s=60)
    assert details_of(to_rpc_status(quota)) == ["ErrorInfo", "RetryInfo", "QuotaFailure"]
    assert dict(to_rpc_status(quota).trailing_metadata)["grpc-retry-pushback-ms"] == "60000"


@given(
    st.text(max_size=5000),
    st.dictionaries(st.text(max_size=300), st.text(max_size=2000), max_size=50),
    st.lists(st.builds(FieldViolation, st.text(max_size=500), st.text(max_size=2000)), max_size=60),
)
def test_trailers_stay_below_grpcs_limit(
    message: str, metadata: dict[str, str], violations: list[FieldViolation]
) -> None:
    """gRPC replaces an error with large trailers by another error; ours are cut, and the reason stays."""
    error = DownstackError(Reason.PARAM_OUT_OF_RANGE, message, metadata=metadata, violations=violations)
    status = to_rpc_status(error)
    size = sum(len(key) + len(value) for key, value in status.trailing_metadata)
    # Base64 adds a third, and a message that is not ASCII is sent with three characters for each byte.
    assert size * 4 / 3 + 3 * len(status.details.encode()) < 8192
    assert error_from_rpc(received(status)).reason is Reason.PARAM_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.DEPENDENCY_UNAVAILABLE),
        (grpc.StatusCode.INTERNAL, Reason.DEPENDENCY_UNAVAILABLE),
        (grpc.StatusCode.UNKNOWN, Reason.DEPENDENCY_UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_IN_GENERATION),
        (grpc.StatusCode.CANCELLED, Reason.CLIENT_CANCELLED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.MESSAGE_TOO_LARGE),
        (grpc.StatusCode.UNIMPLEMENTED, Reason.METHOD_DISABLED),
        (grpc.StatusCode.INVALID_ARGUMENT, Reason.DEPENDENCY_UNAVAILABLE),
    ],
)
def test_what_came_from_the_infrastructure_gets_a_reason(code: grpc.StatusCode, reason: Reason) -> None:
    error = error_from_rpc(AioRpcError(code, Metadata(), Metadata(), details="broken pipe"))
    assert (error.reason, error.metadata) == (reason, {"code": code.name})


def test_foreign_details_are_not_taken_for_ours() -> None:
    """Another domain's reason of the same name means something else; broken details mean nothing."""
    info = error_details_pb2.ErrorInfo(reason="RATE_LIMITED", domain="example.com")
    status = status_pb2.Status(code=8)
    status.details.add().Pack(info)
    for data in (status.SerializeToString(), b"\xff\xff\xff"):
        foreign = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata((DETAILS_KEY, data)), details="x")
        assert error_from_rpc(foreign).reason is Reason.DEPENDENCY_UNAVAILABLE
    assert CODE_OF[Reason.DEPENDENCY_UNAVAILABLE] is Code.UNAVAILABLE
