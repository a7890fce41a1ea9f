"""A lease: one worker's permission to run one request, once."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from services.scheduler.domain.request import MAX_OFFERS, Price, Priority

# With the longest prompt and these, a cost stays within 64 bits.
MAX_PRICE = 10**11
MAX_ANSWERS = 8


class LeasePhase(Enum):
    """Where a lease stands. GRANTED: no worker has said that it runs it."""

    GRANTED = "granted"
    STARTED = "started"
    DECODING = "decoding"
    FINISHED = "finished"


class Ending(Enum):
    """Why the scheduler, and not the worker, closes a lease."""

    UNUSED = "unused"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Counts of tokens; None where unknown, never 0 for it."""

    input_total: int | None = None
    input_cached: int | None = None
    output_total: int | None = None
    reasoning: int | None = None
    retrieved_context: int | None = None
    output_delivered: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a lease was granted for. Times are on the monotonic clock of `now`."""

    lease_id: str
    request_id: str
    attempt: int
    tenant_id: str
    key_id: str
    worker_id: str
    worker_epoch: str
    model: str
    requested_model: str
    adapter: str
    cache_salt: str
    prompt_tokens: int
    max_output_tokens: int
    priority: Priority
    conversation_id: str
    labels: Mapping[str, str]
    price: Price
    granted_at: float
    expires_at: float
    queue_ms: float
    predicted_cached_tokens: int
    retrieved_tokens: int
    answers: int = 1
    expected_output: int = 0
    """Tokens that the answer was expected to have. 0: not known."""
    offered: tuple[str, ...] = ()
    """The models that could have answered, sorted."""

    def plausible(self, *, max_tokens: int) -> bool:
        """Whether a grant that a worker tells of can be one that a scheduler made."""
        counts = (self.prompt_tokens, self.max_output_tokens)
        prices = (self.price.input_nano, self.price.cached_nano, self.price.output_nano)
        if not all(1 <= count <= max_tokens for count in counts) or len(self.offered) > MAX_OFFERS:
            return False
        return all(0 <= each <= MAX_PRICE for each in prices)

    def allows(self, usage: "Usage") -> bool:
        """Whether a lease of this grant can have consumed that."""
        read, cached, written = usage.input_total or 0, usage.input_cached or 0, usage.output_total or 0
        return max(read, cached) <= self.prompt_tokens and written <= MAX_ANSWERS * self.max_output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """A lease as its worker reports it."""

    lease_id: str
    phase: LeasePhase
    usage: Usage | None = None
    grant: Grant | None = None


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What leases take of a worker: places in its batch, prompts still to be computed, room in its KV cache."""

    requests: int = 0
    prefills: int = 0
    prefill_tokens: int = 0
    kv_tokens: int = 0
    prefill_pairs: int = 0
    """Pairs of a token still to be computed and a token before it."""
    context_tokens: int = 0
    """Tokens that decoding reads, at half of each answer."""

    def plus(self, other: "Occupancy") -> "Occupancy":
        return Occupancy(
            self.requests + other.requests,
            self.prefills + other.prefills,
            self.prefill_tokens + other.prefill_tokens,
            self.kv_tokens + other.kv_tokens,
            self.prefill_pairs + other.prefill_pairs,
            self.context_tokens + other.context_tokens,
        )

    def minus(self, other: "Occupancy") -> "Occupancy":
        return Occupancy(
            self.requests - other.requests,
            self.prefills - other.prefills,
            self.prefill_tokens - other.prefill_tokens,
            self.kv_tokens - other.kv_tokens,
            self.prefill_pairs - other.prefill_pairs,
            self.context_tokens - other.context_tokens,
        )


NOTHING = Occupancy()


@dataclass(slots=True, kw_only=True)
class Lease:
    """A live lease.

    `orphaned_at` is set while nobody vouches for it: its worker is lost, restarted, or did not name it on reconnecting.
    """

    grant: Grant
    phase: LeasePhase = LeasePhase.GRANTED
    usage: Usage | None = None
    released: bool = False
    orphaned_at: float | None = None
    counted: Occupancy = NOTHING

    @property
    def expected_output(self) -> int:
        """The answer's tokens as predicted; at most what was granted."""
        return min(self.grant.expected_output or self.grant.max_output_tokens, self.grant.max_output_tokens)

    @property
    def uncached_tokens(self) -> int:
        return self.grant.prompt_tokens - self.grant.predicted_cached_tokens

    @property
    def prefill_pairs(self) -> int:
        return self.uncached_tokens * (2 * self.grant.prompt_tokens - self.uncached_tokens) // 2

    def occupancy(self) -> Occupancy:
        """What the lease takes of its worker now."""
        if self.released or self.orphaned_at is not None or self.phase is LeasePhase.FINISHED:
            return NOTHING
        prefilling = self.phase is not LeasePhase.DECODING
        return Occupancy(
            requests=1,
            prefills=1 if prefilling else 0,
            prefill_tokens=self.uncached_tokens if prefilling else 0,
            kv_tokens=self.uncached_tokens + self.expected_output,
            prefill_pairs=self.prefill_pairs if prefilling else 0,
            context_tokens=self.grant.prompt_tokens + self.expected_output // 2,
        )
