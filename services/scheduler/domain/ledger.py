"""The ledger's rows as values: one for each lease that ended, one for each decision."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from services.scheduler.domain.lease import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long the parts of an attempt took, in milliseconds; None where unknown."""

    queue_ms: float | None = None
    engine_queue_ms: float | None = None
    prefill_ms: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    total_ms: float | None = None
    prepare_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEntry:
    """The row that a lease ends in. Moments are in seconds since 1970, `finish` and `source` lower-case names."""

    lease_id: str
    request_id: str
    attempt: int
    key_id: str
    model: str
    requested_model: str
    worker_id: str
    worker_epoch: str
    engine: str
    usage: Usage
    cost_nano: int
    currency: str
    price_version: str
    finish: str
    source: str
    times: Times
    gpu_seconds: float | None
    predicted_cached_tokens: int
    granted_at: float
    started_at: float | None
    finished_at: float
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionEntry:
    """A decision as it was published: `payload` is the serialized downstack.types.v1.Decision.

    `grant` is the serialized downstack.scheduler.v1.LeaseGrant; empty where it was not published.
    """

    request_id: str
    attempt: int
    lease_id: str
    decided_at: float
    payload: bytes
    grant: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Which rows; None keeps all. `since` is inclusive, `until` is not."""

    since: float | None = None
    until: float | None = None
    model: str | None = None
    key_id: str | None = None
    request_id: str | None = None


class Grouping(Enum):
    """What totals are grouped by; a day is one in UTC."""

    NOTHING = "nothing"
    MODEL = "model"
    KEY = "key"
    DAY = "day"
    WORKER = "worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotal:
    """The sum of some rows, all in one currency."""

    group: str
    requests: int
    rows: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int
    currency: str


@dataclass(frozen=True, slots=True)
class Page:
    """Rows, and whether there are more after them."""

    entries: list[UsageEntry]
    more: bool
