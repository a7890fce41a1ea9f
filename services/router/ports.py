"""What the router needs of the world, in its own words.

Every method raises DownstackError and nothing else. The request id and the trace travel by context, as everywhere.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from services.kit.identity import Identity
from services.router.domain.explanation import Billed, Placed
from services.router.domain.facts import Record
from services.router.domain.models import ServedModel
from services.router.domain.outcome import Cost, FinishReason, Timings, Usage
from services.router.domain.prompt import Passage
from services.router.domain.request import Message, Sampling, Tool


class PromptModel(Protocol):
    """A model's chat template and tokenizer."""

    @property
    def revision(self) -> str:
        """The tokenizer's revision; a worker with another one cannot be used."""
        ...

    async def chat_tokens(self, messages: Sequence[Message], *, tools: Sequence[Tool] = ()) -> list[int]:
        """Render and tokenize a conversation, ready for the model's turn. UNSUPPORTED_FEATURE, PARAM_CONFLICT."""
        ...

    async def text_tokens(self, text: str) -> list[int]:
        """Tokenize raw text as it is, special tokens included."""
        ...

    async def count(self, text: str) -> int:
        """The number of tokens of a piece of text inside a prompt."""
        ...


class FleetPort(Protocol):
    """The fleet as it was last seen."""

    def served(self) -> Mapping[str, ServedModel]:
        """The models that live workers serve, by name. Empty before the first view arrived."""
        ...


class RetrieverPort(Protocol):
    """Finds passages under the caller's permissions."""

    async def prepare(
        self, identity: Identity, *, query: str, collections: Sequence[str], top_k: int | None, timeout_s: float
    ) -> list[Passage]:
        """The passages, best first, not yet marked."""
        ...


@dataclass(frozen=True, slots=True)
class PlaceOrder:
    """A request as the scheduler sees it: counts and hashes. `name` is what the caller says for model and adapter."""

    request_id: str
    attempt: int
    name: str
    model: str
    adapter: str
    prompt_tokens: int
    block_size: int
    block_hashes: Sequence[int]
    max_output_tokens: int
    cache_salt: str
    retrieved_tokens: int = 0
    priority: int = 0
    conversation_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    excluded_workers: tuple[str, ...] = ()
    value: float | None = None
    max_cost: float | None = None
    min_quality: float | None = None
    answers: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """A lease. `record` is the scheduler's decision, handed to the caller as it came."""

    lease_id: str
    endpoint: str
    ticket: bytes
    expires_at_ns: int
    model: str
    worker_id: str
    queue_ms: float
    record: object


class SchedulerPort(Protocol):
    """Places requests and takes leases back."""

    async def place(self, identity: Identity, order: PlaceOrder, *, timeout_s: float) -> Placement:
        """Wait for a placement. NO_HEALTHY_WORKER, DEADLINE_IN_QUEUE, QUOTA_EXCEEDED, OVERLOADED."""
        ...

    async def release(self, identity: Identity, *, lease_id: str, finish_reason: FinishReason, usage: Usage) -> None:
        """End a lease; repeating it is harmless."""
        ...


class LedgerPort(Protocol):
    """Reads what is known of a request."""

    async def describe(
        self, identity: Identity, *, request_id: str, timeout_s: float
    ) -> tuple[Sequence[Placed], Sequence[Billed]]:
        """The placements and ledger rows of one of the caller's own requests."""
        ...


@dataclass(frozen=True, slots=True)
class StartedFrame:
    """The worker accepted the lease."""

    cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class DeltaFrame:
    """New tokens. `wire` is the frame itself, which goes to the caller untouched."""

    output_tokens: int
    cached_tokens: int | None
    wire: object


@dataclass(frozen=True, slots=True)
class FinishedFrame:
    """The worker's last frame. `sequence` is its number in the stream."""

    sequence: int
    finish_reason: FinishReason
    usage: Usage
    cost: Cost | None
    timings: Timings


WorkerFrame = StartedFrame | DeltaFrame | FinishedFrame


class WorkerPort(Protocol):
    """Runs leases."""

    def generate(
        self,
        identity: Identity,
        *,
        endpoint: str,
        ticket: bytes,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        timeout_s: float,
    ) -> AbstractAsyncContextManager[AsyncIterator[WorkerFrame]]:
        """The stream of a lease. Leaving the context ends the call, however far it came."""
        ...


class AuditPort(Protocol):
    """The audit stream. Records are durable when `record` returns."""

    def check_open(self) -> None:
        """Raise JOURNAL_FULL where no more facts can be kept, before any work is accepted."""
        ...

    async def record(self, *records: Record) -> None:
        """Append records in order, all or none. JOURNAL_FULL."""
        ...


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """What is measured of one request. Labels are bounded: `model` is a served one or empty."""

    method: str
    model: str
    code: str
    reason: str
    usage: Usage
    ttft_s: float | None
    tpot_s: float | None
    total_s: float
    attempts: int
    retrieval_degraded: bool = False


class MeterPort(Protocol):
    """The router's own metrics."""

    def stream_opened(self) -> None: ...

    def stream_closed(self) -> None: ...

    def request_ended(self, end: RequestEnd) -> None: ...

    def accounting_failed(self, step: str) -> None:
        """A fact or a release could not be delivered; the request itself was not affected."""
        ...
