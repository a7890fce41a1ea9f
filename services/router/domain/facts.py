"""What the router writes into the audit stream."""

from dataclasses import dataclass

from services.router.domain.outcome import FinishReason, Timings, Usage


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom and what a fact is about; the events of one conversation stay in order."""

    tenant_id: str
    principal: str
    key_id: str
    request_id: str = ""
    conversation_id: str = ""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request was accepted."""

    model: str
    prompt_tokens: int
    max_output_tokens: int
    prompt_hash: str
    method: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A request was not accepted, or not placed."""

    code: str
    reason: str
    method: str


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """The end of a request as the caller saw it; `reason` is empty if it ended well."""

    code: str
    reason: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    attempts: int


@dataclass(frozen=True, slots=True)
class Administered:
    """Tenants or keys were changed."""

    action: str
    resource: str


@dataclass(frozen=True, slots=True)
class CallerEvent:
    """The caller's own event. `attributes` is a serialized google.protobuf.Struct; None time is the time of receipt."""

    id: str
    kind: str
    request_id: str = ""
    conversation_id: str = ""
    caller_time_ns: int | None = None
    attributes: bytes = b""


Fact = Admitted | Refused | RequestFinished | Administered | CallerEvent


@dataclass(frozen=True, slots=True)
class Record:
    """One fact and what it is about."""

    subject: Subject
    fact: Fact
