"""A worker as the scheduler sees it: what it is, how fast, how busy."""

import math
from dataclasses import dataclass, field
from enum import Enum

# No step of an engine takes longer than eleven days.
MAX_RATE_MS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """A linear model of an engine's speed, in milliseconds."""

    prefill_base_ms: float = 0.0
    prefill_ms_per_token: float = 0.0
    decode_base_ms: float = 0.0
    decode_ms_per_request: float = 0.0
    prefill_ms_per_pair: float = 0.0
    """Each pair of a new token and a token before it: attention."""
    decode_ms_per_context_token: float = 0.0
    """Each token of context, summed over the batch."""

    def plausible(self) -> bool:
        """Whether the numbers can be those of an engine: not negative, not all zero, none beyond all measure."""
        numbers = (
            self.prefill_base_ms,
            self.prefill_ms_per_token,
            self.decode_base_ms,
            self.decode_ms_per_request,
            self.prefill_ms_per_pair,
            self.decode_ms_per_context_token,
        )
        return all(0 <= number <= MAX_RATE_MS for number in numbers) and any(numbers)


# Used until a worker has said anything plausible: a small model on a CPU.
DEFAULT_RATES = Rates(prefill_base_ms=10.0, prefill_ms_per_token=0.5, decode_base_ms=20.0, decode_ms_per_request=2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter that a worker holds. The id names its content, too."""

    name: str
    id: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """A worker's description of itself."""

    model: str
    tokenizer_revision: str = ""
    context_tokens: int
    block_size: int
    kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int = 0
    engine: str = ""
    engine_version: str = ""
    device_kind: str = ""
    price_per_hour_nano: int = 0
    rates: Rates = DEFAULT_RATES
    kv_events: bool = False
    adapters: tuple[Adapter, ...] = ()

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.block_size

    def holds(self, adapter_id: str) -> bool:
        """Whether it can answer with that adapter."""
        return any(adapter.id == adapter_id for adapter in self.adapters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A worker's report on how busy it is."""

    running_requests: int = 0
    waiting_requests: int = 0
    kv_usage: float = 0.0
    steps: int = 0
    generated_tokens: int = 0
    serving: bool = True
    rates: Rates | None = None
    prefix_queries: int = 0
    prefix_hits: int = 0

    def plausible(self) -> bool:
        """Whether the report can be true."""
        return math.isfinite(self.kv_usage) and 0.0 <= self.kv_usage <= 1.0 and self.prefix_hits <= self.prefix_queries


class WorkerPhase(Enum):
    """What a worker can do."""

    READY = "ready"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker. `connection` is the stream that speaks for it, None while it is lost."""

    worker_id: str
    epoch: str
    endpoint: str
    spec: WorkerSpec
    connection: int | None
    reported_at: float
    load: Load = field(default_factory=Load)
    rates: Rates = DEFAULT_RATES
    draining: bool = False
    settles_at: float | None = None
    """While its cache is not known: the time from which on it is taken as it is."""
    lost_at: float = 0.0
    resync_asked_at: float | None = None

    @property
    def phase(self) -> WorkerPhase:
        if self.connection is None:
            return WorkerPhase.LOST
        if self.draining:
            return WorkerPhase.DRAINING
        return WorkerPhase.READY if self.load.serving else WorkerPhase.UNHEALTHY

    @property
    def ready(self) -> bool:
        """Whether it takes leases."""
        settled = self.settles_at is None
        return self.connection is not None and not self.draining and self.load.serving and settled
