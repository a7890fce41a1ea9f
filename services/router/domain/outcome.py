"""How an answer ends: counts, cost, timings, and the reason of the end. None is unknown, never zero."""

from dataclasses import dataclass
from enum import IntEnum


class FinishReason(IntEnum):
    """Why an answer ended; the numbers are those of the contract."""

    UNSPECIFIED = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    DEADLINE = 4
    ERROR = 5
    UNUSED = 6


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by class."""

    input_total: int | None = None
    input_cached: int | None = None
    output_total: int | None = None
    reasoning: int | None = None
    retrieved_context: int | None = None
    output_delivered: int | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """An exact amount of money, in 1e-9 of the currency's unit."""

    nano_units: int
    currency: str
    price_version: str


@dataclass(frozen=True, slots=True)
class Price:
    """What one token costs by class, in 1e-9 of the currency's unit."""

    version: str
    currency: str
    input_nano: int
    cached_nano: int
    output_nano: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of one attempt, in milliseconds."""

    queue_ms: float | None = None
    engine_queue_ms: float | None = None
    prefill_ms: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    total_ms: float | None = None
    prepare_ms: float | None = None
