"""The closed list of what a call can be refused with, and the one table from reason to status code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Code(StrEnum):
    """A gRPC status code by name."""

    CANCELLED = "CANCELLED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"


class Reason(StrEnum):
    """Why a call was refused: the `reason` of the ErrorInfo that the caller gets."""

    AUTH_MISSING = "AUTH_MISSING"
    AUTH_INVALID = "AUTH_INVALID"
    AUTH_EXPIRED = "AUTH_EXPIRED"
    AUTH_REVOKED = "AUTH_REVOKED"

    MODEL_NOT_ALLOWED = "MODEL_NOT_ALLOWED"
    ACTION_NOT_ALLOWED = "ACTION_NOT_ALLOWED"
    TENANT_SUSPENDED = "TENANT_SUSPENDED"
    PEER_IDENTITY_DENIED = "PEER_IDENTITY_DENIED"
    TICKET_INVALID = "TICKET_INVALID"
    TICKET_EXPIRED = "TICKET_EXPIRED"
    TICKET_USED = "TICKET_USED"

    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    ADAPTER_NOT_FOUND = "ADAPTER_NOT_FOUND"
    COLLECTION_NOT_FOUND = "COLLECTION_NOT_FOUND"
    DOCUMENT_NOT_FOUND = "DOCUMENT_NOT_FOUND"
    REQUEST_NOT_FOUND = "REQUEST_NOT_FOUND"
    KEY_NOT_FOUND = "KEY_NOT_FOUND"
    TENANT_NOT_FOUND = "TENANT_NOT_FOUND"

    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    PARAM_OUT_OF_RANGE = "PARAM_OUT_OF_RANGE"
    PARAM_CONFLICT = "PARAM_CONFLICT"
    BAD_ENCODING = "BAD_ENCODING"
    BAD_SCHEMA = "BAD_SCHEMA"
    FILTER_NOT_ALLOWED = "FILTER_NOT_ALLOWED"
    EMBEDDING_DIM_MISMATCH = "EMBEDDING_DIM_MISMATCH"
    UNSUPPORTED_FEATURE = "UNSUPPORTED_FEATURE"

    RATE_LIMITED = "RATE_LIMITED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    TENANT_CONCURRENCY = "TENANT_CONCURRENCY"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    STREAM_LIMIT = "STREAM_LIMIT"

    OVERLOADED = "OVERLOADED"
    NO_HEALTHY_WORKER = "NO_HEALTHY_WORKER"
    ENGINE_DEAD = "ENGINE_DEAD"
    DRAINING = "DRAINING"
    DEPENDENCY_UNAVAILABLE = "DEPENDENCY_UNAVAILABLE"
    JOURNAL_FULL = "JOURNAL_FULL"

    DEADLINE_IN_QUEUE = "DEADLINE_IN_QUEUE"
    DEADLINE_IN_GENERATION = "DEADLINE_IN_GENERATION"

    WORKER_LOST_MID_STREAM = "WORKER_LOST_MID_STREAM"
    CLIENT_TOO_SLOW = "CLIENT_TOO_SLOW"
    CONFLICTING_UPDATE = "CONFLICTING_UPDATE"

    REQUEST_QUARANTINED = "REQUEST_QUARANTINED"
    STALE_EPOCH = "STALE_EPOCH"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    INDEX_NOT_READY = "INDEX_NOT_READY"

    CLIENT_CANCELLED = "CLIENT_CANCELLED"
    METHOD_DISABLED = "METHOD_DISABLED"
    INTERNAL = "INTERNAL"


_REASONS_OF: Mapping[Code, Sequence[Reason]] = {
    Code.UNAUTHENTICATED: (Reason.AUTH_MISSING, Reason.AUTH_INVALID, Reason.AUTH_EXPIRED, Reason.AUTH_REVOKED),
    Code.PERMISSION_DENIED: (
        Reason.MODEL_NOT_ALLOWED,
        Reason.ACTION_NOT_ALLOWED,
        Reason.TENANT_SUSPENDED,
        Reason.PEER_IDENTITY_DENIED,
        Reason.TICKET_INVALID,
        Reason.TICKET_EXPIRED,
        Reason.TICKET_USED,
    ),
    Code.NOT_FOUND: (
        Reason.MODEL_NOT_FOUND,
        Reason.ADAPTER_NOT_FOUND,
        Reason.COLLECTION_NOT_FOUND,
        Reason.DOCUMENT_NOT_FOUND,
        Reason.REQUEST_NOT_FOUND,
        Reason.KEY_NOT_FOUND,
        Reason.TENANT_NOT_FOUND,
    ),
    Code.INVALID_ARGUMENT: (
        Reason.PROMPT_TOO_LONG,
        Reason.PARAM_OUT_OF_RANGE,
        Reason.PARAM_CONFLICT,
        Reason.BAD_ENCODING,
        Reason.BAD_SCHEMA,
        Reason.FILTER_NOT_ALLOWED,
        Reason.EMBEDDING_DIM_MISMATCH,
        Reason.UNSUPPORTED_FEATURE,
    ),
    Code.RESOURCE_EXHAUSTED: (
        Reason.RATE_LIMITED,
        Reason.QUOTA_EXCEEDED,
        Reason.TENANT_CONCURRENCY,
        Reason.MESSAGE_TOO_LARGE,
        Reason.STREAM_LIMIT,
    ),
    Code.UNAVAILABLE: (
        Reason.OVERLOADED,
        Reason.NO_HEALTHY_WORKER,
        Reason.ENGINE_DEAD,
        Reason.DRAINING,
        Reason.DEPENDENCY_UNAVAILABLE,
        Reason.JOURNAL_FULL,
    ),
    Code.DEADLINE_EXCEEDED: (Reason.DEADLINE_IN_QUEUE, Reason.DEADLINE_IN_GENERATION),
    Code.ABORTED: (Reason.WORKER_LOST_MID_STREAM, Reason.CLIENT_TOO_SLOW, Reason.CONFLICTING_UPDATE),
    Code.FAILED_PRECONDITION: (
        Reason.REQUEST_QUARANTINED,
        Reason.STALE_EPOCH,
        Reason.IDEMPOTENCY_KEY_REUSED,
        Reason.INDEX_NOT_READY,
    ),
    Code.CANCELLED: (Reason.CLIENT_CANCELLED,),
    Code.UNIMPLEMENTED: (Reason.METHOD_DISABLED,),
    Code.INTERNAL: (Reason.INTERNAL,),
}

CODE_OF: Mapping[Reason, Code] = MappingProxyType(
    {reason: code for code, reasons in _REASONS_OF.items() for reason in reasons}
)


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that cannot be right.

    Attributes:
        field: The path of the field, such as `spec.sampling.temperature`.
        description: What is wrong and what would be right. Never the value of a text field.
    """

    field: str
    description: str


class DownstackError(Exception):
    """A call is refused, for one reason of the closed list.

    Attributes:
        reason: Why.
        message: One sentence for a person; it goes to the caller as it is.
        metadata: Every dynamic part of the message, for programs.
        violations: The fields that were refused.
        retry_after_s: When a repetition has a chance. None: nobody knows, or never.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: Mapping[str, str] = MappingProxyType({}),
        violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata)
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> Code:
        """The status code of the reason."""
        return CODE_OF[self.reason]

    def __repr__(self) -> str:
        return f"DownstackError({self.reason}, {self.message!r})"


class StartupError(Exception):
    """The process cannot start; the message is one sentence that says why and what would help."""


class Violations:
    """Collects all that is wrong with a request, so that the caller learns it at once."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        """Notes that `field` cannot be right."""
        self._found.append(FieldViolation(field, description))

    def __bool__(self) -> bool:
        return bool(self._found)

    def check(self, reason: Reason = Reason.PARAM_OUT_OF_RANGE) -> None:
        """Raises DownstackError with everything that was noted; does nothing if that is nothing."""
        if not self._found:
            return
        first = self._found[0]
        others = f" (and {len(self._found) - 1} more)" if len(self._found) > 1 else ""
        raise DownstackError(reason, f"{first.field}: {first.description}{others}", violations=self._found)
